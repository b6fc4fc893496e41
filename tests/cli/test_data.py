"""``collafuse data`` as a user meets it, and what other commands say of the files they read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

CONFIG = """
data: {dataset: folder, path: images, image_size: 8, channels: 1}
client: {cut: {sigma: 1.0}, ledger: ledger.sqlite}
clients:
  a: {labels: [cat]}
  b: {labels: "dog or ant"}
"""


def written(folder: Path) -> None:
    noise = np.random.default_rng(0)
    for name in ("cat", "dog", "ant"):
        (folder / "images" / name).mkdir(parents=True)
        for i in range(5):
            Image.fromarray(noise.integers(0, 256, (8, 8), dtype=np.uint8)).save(folder / "images" / name / f"{i}.png")
    (folder / "images/cat/broken.png").write_bytes(b"no image")
    (folder / "c.yaml").write_text(CONFIG)


def test_it_shows_counts_problems_releases_and_sheets(call_cli):
    written(call_cli.folder)
    done = call_cli("data", "c.yaml", "-o", "look")
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["a", "5", "0", "0", "-", "1", "sigma", "1"] in lines and ["ant", "-", "5"] in lines
    assert "b's release: 10 images noised to sigma 1, with 2 labels" in done.stdout
    assert "broken.png" in done.stderr and "reading images: 16/16" in done.stderr
    with Image.open(call_cli.folder / "look" / "b.png") as sheet:
        assert np.asarray(sheet).std() > 0
    assert sorted(path.name for path in call_cli.folder.iterdir()) == ["c.yaml", "images", "look"]  # and no ledger
    assert "a.png exists" in call_cli("data", "c.yaml", "-o", "look", code=8).stderr
    call_cli("data", "c.yaml", "-o", "look", "--overwrite")


def test_json_lists_every_problem(call_cli):
    written(call_cli.folder)
    for i in range(20):
        (call_cli.folder / f"images/dog/broken-{i}.png").write_bytes(b"")
    done = call_cli("data", "c.yaml", "--client", "b", "--json")
    found = json.loads(done.stdout)
    assert list(found["sites"]) == ["b"] and len(found["sites"]["b"]["problems"]) == 21
    assert found["sites"]["b"]["labels"] == {"ant": 5, "dog": 5} and found["overlaps"] == []
    assert "and 16 more" in done.stderr


def test_what_is_missing_is_said_and_nothing_is_fetched_unasked(call_cli):
    done = call_cli("data", "celeba.yaml", code=4)
    assert "celeba/img_align_celeba" in done.stderr and "--download" in done.stderr
    assert not list(call_cli.folder.iterdir())
    assert "cannot be downloaded" in call_cli("data", "digits.yaml", "--download", code=2).stderr


def test_a_release_says_what_it_leaves_out(call_cli):
    written(call_cli.folder)
    done = call_cli("release", "c.yaml", "--client", "a", "--new-ledger", "-o", "a.safetensors", "--json")
    assert json.loads(done.stdout)["images"] == 5 and "broken.png" in done.stderr
