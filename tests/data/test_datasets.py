"""The digits and folders of images: what is read, how it is labelled, and what is refused."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from collafuse.config import DataSettings
from collafuse.core.errors import DataError
from collafuse.data import decoding, imageset, listing
from collafuse.data.datasets import load
from tests.data.hearing import Heard
from tests.tiny import image_set


def folder(path: Path | None, **changes: Any) -> DataSettings:
    return DataSettings(**({"dataset": "folder", "path": path, "image_size": 4, "channels": 1} | changes))


def paint(path: Path, level: int, size: int = 4) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (size, size), level).save(path)


# --- digits -------------------------------------------------------------------------------------------------


def test_digits_are_all_there_with_their_labels_and_full_contrast():
    digits = load(DataSettings(dataset="digits"))
    assert len(digits) == 1797 and digits.label_names == tuple("0123456789")
    assert digits.pixels.shape == (1797, 1, 8, 8) and (digits.pixels.min(), digits.pixels.max()) == (0, 255)
    assert (digits.labels.sum(axis=1) == 1).all()
    assert digits.labels.sum(axis=0).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_x0_lies_in_minus_one_to_one():
    x0 = load(DataSettings(dataset="digits")).x0()
    assert x0.dtype == np.float32 and (x0.min(), x0.max()) == (-1.0, 1.0)


def test_digits_of_another_size_are_refused():
    with pytest.raises(DataError, match=r"grey and 8x8, .* \[3, 16, 16\]"):
        load(DataSettings(dataset="digits", image_size=16, channels=3))


def test_digits_saved_as_files_are_known_as_the_same_images(tmp_path):
    digits = load(DataSettings(dataset="digits"))
    for row in range(3):
        Image.fromarray(digits.pixels[row, 0]).save(tmp_path / f"{row}.png")
    found = load(folder(tmp_path, image_size=8))
    assert np.array_equal(found.pixels, digits.pixels[:3]) and np.array_equal(found.digests, digits.digests[:3])


# --- folders ------------------------------------------------------------------------------------------------


def test_sub_folders_are_labels_at_any_depth_and_other_files_are_left_alone(tmp_path):
    paint(tmp_path / "cat" / "a.png", 10)
    paint(tmp_path / "cat" / "2024" / "b.jpg", 20, size=16)
    paint(tmp_path / "ant" / "c.webp", 30)
    (tmp_path / "cat" / "notes.txt").write_text("words")
    (tmp_path / "README").write_text("words")
    (tmp_path / "empty").mkdir()
    found = load(folder(tmp_path))
    assert found.label_names == ("ant", "cat")
    levels = {int(pixels.mean()): labels.tolist() for pixels, labels in zip(found.pixels, found.labels, strict=True)}
    assert levels == {30: [1, 0], 20: [0, 1], 10: [0, 1]}
    assert len(np.unique(found.digests, axis=0)) == 3


def test_images_in_the_folder_itself_have_no_label(tmp_path):
    paint(tmp_path / "a.png", 10)
    paint(tmp_path / "b.png", 20)
    found = load(folder(tmp_path))
    assert found.label_names == () and found.labels.shape == (2, 0) and len(found) == 2


def test_images_are_read_in_the_same_order_whatever_the_number_of_threads(tmp_path):
    for level in range(40):
        paint(tmp_path / "x" / f"{level:02d}.png", level)
    assert load(folder(tmp_path)).pixels[:, 0, 0, 0].tolist() == list(range(40))


def test_reading_tells_how_far_it_is(tmp_path):
    for level in range(40):
        paint(tmp_path / "x" / f"{level:02d}.png", level)
    heard = Heard()
    load(folder(tmp_path), listener=heard)
    assert heard.bars == {f"reading {tmp_path.name}": 40} and heard.advanced == 40 and not heard.said


def test_reading_leaves_the_filters_of_warnings_as_they_were(tmp_path):
    # They are the whole process's: threads that each set and restore them would leave some behind.
    for level in range(40):
        paint(tmp_path / f"{level}.png", level)
    before = list(warnings.filters)
    load(folder(tmp_path))
    assert warnings.filters == before


def test_a_path_given_takes_the_place_of_the_settings_one(tmp_path):
    paint(tmp_path / "mine" / "x" / "a.png", 10)
    paint(tmp_path / "all" / "x" / "a.png", 20)
    assert load(folder(tmp_path / "all"), tmp_path / "mine").pixels.max() == 10


@pytest.mark.parametrize("kind", ["empty", "missing", "a file", "no images"])
def test_a_folder_without_images_is_refused_by_name(tmp_path, kind):
    root = tmp_path / "images"
    if kind in ("empty", "no images"):
        (root / "cat").mkdir(parents=True)
    if kind == "no images":
        (root / "cat" / "a.txt").write_text("words")
    if kind == "a file":
        root.write_text("words")
    with pytest.raises(DataError, match=rf"{root} .*sub-folder per label"):
        load(folder(root))


def test_no_folder_at_all_is_refused():
    with pytest.raises(DataError, match=r"no folder is given; set data\.path"):
        load(folder(None))


def test_images_beside_labelled_folders_are_refused(tmp_path):
    paint(tmp_path / "stray.png", 10)
    paint(tmp_path / "cat" / "a.png", 20)
    with pytest.raises(DataError, match=r"beside labelled sub-folders, such as stray\.png"):
        load(folder(tmp_path))


@pytest.mark.parametrize("name", ["two\nlines", "x" * 201, "right\u202eleft", "\udce9"])
def test_a_sub_folder_whose_name_no_release_could_carry_is_refused_when_it_is_read(tmp_path, name):
    paint(tmp_path / "cat" / "a.png", 10)
    paint(tmp_path / name / "a.png", 20)
    with pytest.raises(DataError, match=r"sub-folders of .*cannot be the name of a label; rename it") as refused:
        load(folder(tmp_path))
    assert str(refused.value).isprintable()


def test_more_labels_than_a_file_may_name_are_refused_when_they_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(imageset, "MAX_NAMES", 2)
    for name in "abc":
        paint(tmp_path / name / "a.png", 10)
    with pytest.raises(DataError, match="name 3 labels; at most 2 are possible"):
        load(folder(tmp_path))


def test_one_damaged_image_among_many_is_left_out_and_named(tmp_path):
    for level in range(5):
        paint(tmp_path / "cat" / f"{level}.png", level)
    (tmp_path / "cat" / "3.png").write_bytes((tmp_path / "cat" / "2.png").read_bytes()[:-30])
    heard = Heard()
    found = load(folder(tmp_path), listener=heard)
    assert found.pixels[:, 0, 0, 0].tolist() == [0, 1, 2, 4] and len(found.labels) == len(found.digests) == 4
    assert found.sources.tolist() == [f"cat/{level}.png" for level in (0, 1, 2, 4)]
    assert len(found.problems) == 1 and re.search(r"cat/3\.png .*remove or repair", found.problems[0])
    assert found.problems[0] in heard.said[0] and "1 left out" in heard.said[0]


def test_a_folder_in_which_nothing_can_be_read_is_refused_with_the_first_reason(tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match=r"none of the 2 images .* the first: .*a\.png .*remove or repair"):
        load(folder(tmp_path))


def spoil(root: Path) -> dict[str, str]:
    """One file of each bad kind; returns a part of the reason that each must be listed with."""
    good = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(good, "PNG")
    data = good.getvalue()
    bomb = bytearray(data)
    bomb[16:24] = (60_000).to_bytes(4, "big") * 2
    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, "big")
    (root / "bad").mkdir(parents=True)
    for name, content in {
        "empty.png": b"",
        "truncated.png": data[: len(data) // 2],
        "corrupt.png": data[:300] + b"\xff" * 40 + data[340:],
        "bomb.png": bytes(bomb),
        "words.jpg": b"not an image",
    }.items():
        (root / "bad" / name).write_bytes(content)
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    frames[0].save(root / "bad" / "animated.webp", save_all=True, append_images=frames[1:])
    frames[0].save(root / "bad" / "pages.tif", save_all=True, append_images=frames[1:])
    reasons = dict.fromkeys(("empty.png", "truncated.png", "corrupt.png", "bomb.png", "words.jpg"), "")
    return reasons | {"animated.webp": "holds 3 pictures", "pages.tif": "holds 3 pictures"}


def test_bad_files_among_a_thousand_good_ones_are_each_listed_with_a_reason(tmp_path):
    reasons = spoil(tmp_path)
    for level in range(1000):
        paint(tmp_path / "good" / f"{level:04d}.png", level % 256)
    paint(tmp_path / "good" / "really-a-png.jpg", 7)
    Image.new("CMYK", (4, 4), (0, 0, 0, 255)).save(tmp_path / "good" / "print.jpg")
    Image.fromarray(np.full((4, 4), 257 * 9, dtype=np.uint16)).save(tmp_path / "good" / "scan16.png")
    found = load(folder(tmp_path))
    assert len(found) == 1003 and len(found.problems) == len(reasons)
    for name, reason in reasons.items():
        assert any(name in problem and reason in problem for problem in found.problems), name
    level = dict(zip(found.sources.tolist(), found.pixels[:, 0, 0, 0].tolist(), strict=True))
    assert level["good/really-a-png.jpg"] == 7 and level["good/scan16.png"] == 9 and level["good/print.jpg"] <= 2


PEAK = """
import resource, sys
from pathlib import Path
from collafuse.config import DataSettings
from collafuse.data.datasets import load

def peak(folder):
    load(DataSettings(dataset="folder", path=Path(sys.argv[1]) / folder, image_size=32, channels=3))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

good, mixed = peak("good"), peak("mixed")
print((mixed - good) / 1024)
"""


def test_memory_stays_flat_whatever_is_mixed_into_a_thousand_good_files(tmp_path):
    """A decoder that believed the bomb's header would ask for ten gigabytes."""
    for part in ("good", "mixed"):
        for level in range(1000):
            paint(tmp_path / part / "good" / f"{level:04d}.png", level % 256)
    spoil(tmp_path / "mixed")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", PEAK, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 16


def test_a_photograph_with_a_preview_inside_is_no_animation(tmp_path):
    picture = Image.new("RGB", (8, 8), (200, 0, 0))
    picture.save(tmp_path / "phone.jpg", format="MPO", save_all=True, append_images=[Image.new("RGB", (4, 4))])
    with Image.open(tmp_path / "phone.jpg") as file:
        assert file.format == "MPO" and file.n_frames == 2
    found = load(folder(tmp_path, channels=3, image_size=8))
    assert not found.problems and found.pixels[0, 0].mean() > 190


def test_more_than_memory_holds_is_refused_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(listing, "MAX_IMAGE_BYTES", 4 * 4 * 2)
    for level in range(3):
        paint(tmp_path / "cat" / f"{level}.png", level)
    monkeypatch.setattr(decoding, "read_image", pytest.fail)
    with pytest.raises(DataError, match="holds 3 images"):
        load(folder(tmp_path))


# --- taking parts -------------------------------------------------------------------------------------------


def test_rows_keep_their_labels_and_digests():
    whole = image_set(6)
    part = whole.take(np.array([4, 1]))
    for new, old in enumerate((4, 1)):
        assert np.array_equal(part.pixels[new], whole.pixels[old])
        assert np.array_equal(part.labels[new], whole.labels[old])
        assert np.array_equal(part.digests[new], whole.digests[old])


def test_labels_are_kept_by_name_in_the_order_asked_for():
    whole = image_set(6, ("a", "b", "c"))
    part = whole.with_labels(("c", "a"))
    assert part.label_names == ("c", "a") and np.array_equal(part.labels, whole.labels[:, [2, 0]])
