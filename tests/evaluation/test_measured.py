"""What a run is measured with, of sets that are larger than memory or merely large."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from collafuse.core.rows import FileRows
from collafuse.data.dealing import SiteData, load_sites
from collafuse.data.listening import Unheard
from collafuse.evaluation import measured, report
from collafuse.evaluation.measured import halves, load_measured
from collafuse.evaluation.report import write_page
from tests.tiny import CPU, image_set


class Heard(Unheard):
    def __init__(self):
        self.said = []

    def say(self, text):
        self.said.append(text)


@pytest.fixture
def in_files(monkeypatch, tmp_path):
    """Every set of images lies in a file, as one does that memory would not hold."""

    def left(images, path):
        path.write_bytes(np.ascontiguousarray(images.pixels).tobytes())
        with path.open("rb") as file:
            return replace(images, pixels=FileRows(file, np.dtype(np.uint8), images.pixels.shape, source=str(path)))

    def load(config, listener=None):
        return {
            name: SiteData(*(left(part, tmp_path / f"{name}-{i}") for i, part in enumerate(site.parts)))
            for name, site in load_sites(config).items()
        }

    monkeypatch.setattr(measured, "load_sites", load)
    monkeypatch.setattr(report, "load_sites", load)


def test_sets_that_lie_in_files_are_measured_as_if_they_did_not(digits_run, in_files):
    config = digits_run.read_config()
    for name, site in load_measured(config).items():
        for mine, theirs in zip(site.parts, load_sites(config)[name].parts, strict=True):
            assert type(mine.pixels) is np.ndarray and np.array_equal(mine.pixels, theirs.pixels)


def test_halves_have_half_of_each_label_even_where_labels_take_turns():
    images = image_set(21, ("a", "b"))
    one, other = halves(images)
    assert one.labels.sum(axis=0).tolist() == [6, 5] and other.labels.sum(axis=0).tolist() == [5, 5]
    assert not set(map(bytes, one.digests)) & set(map(bytes, other.digests))
    assert [len(half) for half in halves(image_set(5, ()))] == [3, 2]


def test_halves_show_the_same_though_images_lie_label_by_label():
    images = image_set(40, ("a", "b"))
    by_label = images.take(np.argsort(images.labels.argmax(axis=1), kind="stable"))
    one, other = halves(by_label)
    assert one.labels.sum(axis=0).tolist() == other.labels.sum(axis=0).tolist() == [10, 10]
    assert not {p.tobytes() for p in one.pixels} & {p.tobytes() for p in other.pixels}
    assert len(one) + len(other) == 40


def test_a_page_of_them_shows_the_same_pictures(digits_run, in_files, monkeypatch):
    page = write_page(digits_run, device=CPU)
    monkeypatch.undo()
    assert page == write_page(digits_run, device=CPU)


def test_of_a_large_set_a_part_is_taken_that_is_the_same_each_time_and_said(digits_run, monkeypatch):
    monkeypatch.setattr(measured, "MOST", 100)
    config, listener = digits_run.read_config(), Heard()
    found, whole = load_measured(config, listener), load_sites(config)
    first = found["north"].train
    assert len(first) == 100 and set(map(bytes, first.digests)) <= set(map(bytes, whole["north"].train.digests))
    assert np.array_equal(first.digests, load_measured(config)["north"].train.digests)
    assert not np.array_equal(first.digests, whole["north"].train.digests[:100])
    count = len(whole["north"].train)
    assert f"north is measured with 100 of its {count} images to train on." in listener.said
