"""The split that a run writes down: complete, the same each time, in the folder of its own site."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import numpy as np

from collafuse.data.dealing import SiteData, load_sites
from collafuse.data.record import COLUMNS, split_csv
from collafuse.nodes.client import Client
from collafuse.nodes.runfolder import RunFolder
from tests.tiny import CPU, Recorder, image_set


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_every_image_stands_there_once_with_its_part_name_group_and_digest():
    images = image_set(5)
    names, groups = np.asarray(["a.png", 'with "quotes", and more', "é", "d", "e"]), np.asarray(list("ppqrr"))
    images = replace(images, sources=names, groups=groups)
    written = rows(split_csv(SiteData(images.take(np.array([0, 1, 3])), images.take(np.array([2, 4])))))
    assert [row["part"] for row in written] == ["train"] * 3 + ["held_out"] * 2
    assert [row["image"] for row in written] == [names[i] for i in (0, 1, 3, 2, 4)]
    assert [row["group"] for row in written] == list("pprqr")
    assert [bytes.fromhex(row["pixels"]) for row in written] == [images.digests[i].tobytes() for i in (0, 1, 3, 2, 4)]


def test_images_without_names_are_known_by_their_pixels():
    text = split_csv(SiteData(image_set(2), image_set(0)))
    assert tuple(rows(text)[0]) == COLUMNS and [row["image"] for row in rows(text)] == ["", ""]


def test_a_training_writes_its_split_into_its_own_folder_and_the_same_each_time(tiny_config, tmp_path):
    folder = RunFolder(tmp_path).client("north")
    Client(tiny_config, "north", load_sites(tiny_config)["north"]).train(folder, CPU, Recorder())
    text = (folder.path / "split.csv").read_text()
    assert text == split_csv(load_sites(tiny_config)["north"]) and len(rows(text)) == 178 + 182 + 177
    assert {row["part"] for row in rows(text)} == {"train", "held_out"}
