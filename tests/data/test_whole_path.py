"""Each published set, from its own layout on disk to finished images."""

from __future__ import annotations

import pytest

from tests.data.published import LABELS, LAYOUT_WRITERS, WRITERS
from tests.data.whole_path import run_through


@pytest.mark.parametrize("name", [*WRITERS, *LAYOUT_WRITERS])
def test_a_published_set_trains_releases_delivers_and_finishes(name, tmp_path, monkeypatch):
    root = tmp_path / "data"
    (WRITERS | LAYOUT_WRITERS)[name](root, monkeypatch)
    # Through ONNX once, with several labels at a time: from the images on all sets are alike.
    run_through({"dataset": name, "path": str(root)}, LABELS[name][:4], tmp_path, on_a_device=name == "celeba")
