"""The dry look: it counts what training would use, and plans the release that would really be made."""

from __future__ import annotations

import numpy as np
from PIL import Image

from collafuse.config import Config, from_mapping
from collafuse.core import release as releases
from collafuse.core.pictures import contact_sheet
from collafuse.data.dealing import load_sites
from collafuse.data.survey import SHEET_IMAGES, sheet, survey
from collafuse.nodes.client import Client
from collafuse.nodes.ledger import Ledger
from tests.tiny import image_set


def config(root, **client) -> Config:
    """Two sites by an attribute; a copy of one image, one file that is no image, and two patients."""
    rows = ["file,patient,A,B"]
    for i in range(12):
        Image.new("L", (4, 4), i * 20).save(root / f"{i}.png")
        rows.append(f"{i}.png,{i % 2},{i % 2},{int(i > 8)}")
    Image.new("L", (4, 4), 0).save(root / "copy.png")
    (root / "bad.png").write_bytes(b"no image")
    (root / "t.csv").write_text("\n".join([*rows, "copy.png,0,0,0", "bad.png,0,0,0"]))
    table = {"path": "t.csv", "group": "patient"}
    data = {"dataset": "folder", "path": str(root), "image_size": 4, "channels": 1, "table": table}
    clients = {"odd": {"labels": ["A"]}, "even": {"labels": "not A"}}
    return from_mapping({"data": data, "client": {"cut": {"sigma": 0.7}} | client, "clients": clients})


def test_it_counts_images_labels_groups_and_what_was_left_out(tmp_path):
    found = survey(config(tmp_path))
    odd, even = found.sites["odd"], found.sites["even"]
    assert (odd.train, odd.labels, odd.without_label, odd.groups) == (6, {"A": 6}, 0, 1)
    assert (even.train, even.labels, even.without_label, even.held_out) == (7, {"B": 1}, 6, 0)
    assert len(even.problems) == 1 and "bad.png" in even.problems[0]
    assert found.image_shape == (1, 4, 4) and found.overlaps == ()


def test_the_release_it_plans_is_the_one_that_is_made(tmp_path):
    (tmp_path / "images").mkdir()
    for name, share in (("shared", True), ("kept", False)):
        settings = config(tmp_path / "images", share_labels=share)
        plan = survey(settings).sites["even"].release
        client = Client(settings, "even", load_sites(settings)["even"])
        made = client.release(tmp_path / f"{name}.safetensors", Ledger(tmp_path / f"{name}.sqlite"), simulated=True)
        assert (plan.images, plan.copies_left_out) == (len(made.z), 1) == (6, 1)
        assert plan.sigma_cut == made.sigma_cut and plan.labels == (made.label_names if share else None)
        assert 0 < len(releases.to_bytes(made)) - plan.size_bytes < 1024


def test_one_client_s_data_is_looked_at_without_the_others(tmp_path):
    settings = config(tmp_path)
    values = settings.model_dump(exclude_none=True)
    values["clients"]["odd"]["path"] = str(tmp_path / "not here")
    assert list(survey(from_mapping(values), "even").sites) == ["even"]


def test_a_sheet_shows_images_of_the_whole_set_in_their_order():
    images = image_set(1000)
    shown = sheet(images)
    rows = np.linspace(0, 999, SHEET_IMAGES).astype(np.int64)
    assert np.array_equal(shown, contact_sheet(images.pixels[rows].transpose(0, 2, 3, 1)))
    assert np.array_equal(sheet(image_set(3)), contact_sheet(image_set(3).pixels.transpose(0, 2, 3, 1)))
