"""edge_client.png: pictures that Pillow reads, with texts inside, and whole or nothing when read back."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from collafuse.core.errors import OutputExistsError
from edge_client import png
from tests.damage import bit_flips

TEXT = {"collafuse:steps": "6", "empty": "", "latin": "Größe", "wide": "数字 – σ"}


@given(arrays.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3]))))
def test_pillow_sees_the_very_pixels_and_texts(pixels):
    found = Image.open(io.BytesIO(png.encode(pixels, TEXT)))
    assert (found.format, found.mode) == ("PNG", "L" if pixels.shape[2] == 1 else "RGB")
    assert (np.asarray(found).reshape(pixels.shape) == pixels).all()
    assert found.text == TEXT and len(found.getexif()) == 0


@given(arrays.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3]))))
def test_there_and_back(tmp_path_factory, pixels):
    path = tmp_path_factory.mktemp("png") / "a.png"
    png.write(path, pixels, TEXT)
    picture = png.read(path)
    assert picture.text == TEXT and (picture.pixels() == pixels).all()


def test_a_picture_without_texts_has_pixels_alone():
    data = png.encode(np.zeros((2, 2, 1), np.uint8), {})
    assert [kind for kind, _ in png._chunks(data)] == [b"IHDR", b"IDAT", b"IEND"]


def test_an_existing_picture_is_kept_unless_asked(tmp_path):
    path, pixels = tmp_path / "a.png", np.zeros((2, 2, 1), np.uint8)
    path.write_bytes(b"old")
    with pytest.raises(OutputExistsError, match=r"a\.png exists already"):
        png.write(path, pixels, {})
    assert path.read_bytes() == b"old"
    png.write(path, pixels, {}, overwrite=True)
    assert png.read(path) is not None


def test_what_is_damaged_is_nothing(tmp_path):
    data = png.encode(np.arange(48, dtype=np.uint8).reshape(4, 4, 3), TEXT)
    for spoiled in [*(data[:n] for n in range(len(data))), *bit_flips(data, 200)]:
        (tmp_path / "a.png").write_bytes(spoiled)
        assert png.read(tmp_path / "a.png") is None
    assert png.read(tmp_path / "gone.png") is None


def test_pictures_of_others_have_texts_but_no_pixels_for_us(tmp_path):
    """They are refused by what they say of themselves, so nothing more of them is needed."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    for name, picture in {"filters": noise, "palette": noise.convert("P"), "alpha": noise.convert("RGBA")}.items():
        picture.save(tmp_path / f"{name}.png")
        found = png.read(tmp_path / f"{name}.png")
        assert found.text == {} and found.pixels() is None


@pytest.mark.parametrize("size", [(1 << 31, 1 << 31), (0, 5), (20_000, 20_000), (3, 3)])
def test_a_size_that_the_pixels_do_not_have_gives_none(tmp_path, size):
    header = png.struct.pack(">IIBBBBB", *size, 8, png.GREY, 0, 0, 0)
    bomb = png.zlib.compress(bytes([1, 0]) * 1_000_000)
    chunks = [(b"IHDR", header), (b"IDAT", bomb), (b"IEND", b"")]
    (tmp_path / "a.png").write_bytes(png.SIGNATURE + b"".join(png._chunk(*chunk) for chunk in chunks))
    assert png.read(tmp_path / "a.png").pixels() is None
