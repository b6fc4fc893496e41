"""collafuse.evaluation.curves: what the metrics say is what is drawn."""

from __future__ import annotations

import json
import re
from xml.etree import ElementTree

import pytest

from collafuse.evaluation.curves import line_chart, read_losses, smoothed


def test_losses_are_read_by_noise_level_and_a_line_cut_short_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    records = [{"step": s, "loss": 1 / s, "loss_per_sigma": {"0-1": 2.0 / s}} for s in (1, 2)]
    path.write_text("\n".join([*map(json.dumps, records), '{"step": 3, "lo']))
    assert read_losses(path) == {"all": [(1, 1), (2, 0.5)], "0-1": [(1, 2), (2, 1)]}
    assert read_losses(tmp_path / "none.jsonl") == {}


def test_what_is_logged_beside_the_loss_is_a_curve_of_its_own(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"step": 5, "loss": 3.0, "least_loss": 2.0, "validation_loss": 4.0}))
    assert read_losses(path) == {"all": [(5, 3)], "noise alone": [(5, 2)], "kept back": [(5, 4)]}


def test_smoothing_keeps_the_mean_and_few_points():
    curve = [(float(i), float(i % 7)) for i in range(1000)]
    few = smoothed(curve, 20)
    assert len(few) == 20
    assert sum(y for _, y in few) / 20 == pytest.approx(sum(y for _, y in curve) / 1000)
    assert smoothed(curve[:5], 20) == curve[:5]


def test_a_chart_is_xml_whose_curves_fill_the_axes():
    chart = line_chart("a < b", {"x & y": [(0, 4), (10, 0)], "one point": [(0, 1)]}, "step")
    root = ElementTree.fromstring(chart)
    lines = [e for e in root if e.tag == "polyline"]
    assert len(lines) == 1
    (x0, y0), (x1, y1) = re.findall(r"([\d.]+),([\d.]+)", lines[0].get("points"))
    assert (float(x0), float(y0), float(x1), float(y1)) == (48, 26, 350, 206)
    assert {"0", "1", "2", "3", "4"} <= {e.text for e in root if e.tag == "text"}


def test_nothing_to_draw_is_no_chart():
    assert line_chart("a", {}, "step") == ""


def test_a_curve_that_is_zero_can_be_drawn():
    ElementTree.fromstring(line_chart("a", {"x": [(0, 0), (0, 0)]}, "step"))
