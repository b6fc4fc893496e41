"""Each set that a person may bring, from its own layout on disk to finished images; volumes and saved Hugging Face sets
are in test_volumes.py and test_hub.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.data.published import LABELS, LAYOUT_WRITERS, WRITERS
from tests.data.whole_path import run_through


@pytest.mark.parametrize("name", [*WRITERS, *LAYOUT_WRITERS])
def test_a_published_set_trains_releases_delivers_and_finishes(name, tmp_path, monkeypatch):
    root = tmp_path / "data"
    (WRITERS | LAYOUT_WRITERS)[name](root, monkeypatch)
    # Through ONNX once, with several labels at a time: from the images on all sets are alike.
    run_through({"dataset": name, "path": str(root)}, LABELS[name][:4], tmp_path, on_a_device=name == "celeba")


def write_folders(root: Path) -> dict[str, Any]:
    pixels = np.random.default_rng(0).integers(0, 256, (18, 12, 10, 3), dtype=np.uint8)
    for row, image in enumerate(pixels):
        path = root / ("cat", "dog", "owl")[row % 3] / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return {}


def write_table(root: Path) -> dict[str, Any]:
    write_folders(root)
    rows = [f"{row},{row % 2},{row % 3 == 0:d},{row % 4 // 2}" for row in range(18)]
    (root / "attributes.csv").write_text("\n".join(["image,cat,dog,owl", *rows]))
    return {"table": {"path": "attributes.csv"}}


@pytest.mark.parametrize("write", [write_folders, write_table])
def test_a_folder_trains_releases_delivers_and_finishes_from_its_files_and_from_the_cache(tmp_path, write):
    settings = write(tmp_path / "data") | {"dataset": "folder", "path": str(tmp_path / "data")}
    for run in ("first", "second"):
        run_through(settings | {"cache": str(tmp_path / "cache")}, ("cat", "dog", "owl"), tmp_path / run)
