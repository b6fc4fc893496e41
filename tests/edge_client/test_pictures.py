"""edge_client.pictures: PNG files and labelled tables."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from collafuse.core.errors import OutputExistsError
from collafuse.core.pictures import PAPER
from edge_client.pictures import labelled_table, png_bytes, read_png, to_image, write_png
from tests.damage import bit_flips


def pixels(channels: int) -> np.ndarray:
    return np.random.default_rng(channels).integers(0, 256, size=(1, 5, 7, channels)).astype(np.uint8)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_a_png_holds_the_very_pixels(channels, mode):
    image = pixels(channels)
    found = Image.open(io.BytesIO(png_bytes(to_image(image))))
    assert (found.format, found.mode, found.size) == ("PNG", mode, (7, 5))
    assert (np.asarray(found).reshape(5, 7, channels) == image[0]).all()


def test_texts_there_and_back_and_nothing_else():
    text = {"collafuse:steps": "6", "collafuse:labels": "Größe, 数字"}
    found = Image.open(io.BytesIO(png_bytes(to_image(pixels(3)), text)))
    assert found.text == text
    assert len(found.getexif()) == 0


def test_a_png_without_texts_has_pixels_alone():
    data = png_bytes(to_image(pixels(1)))
    chunks, position = [], 8
    while position < len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        chunks.append(data[position + 4 : position + 8])
        position += 12 + length
    assert chunks == [b"IHDR", b"IDAT", b"IEND"]


def test_an_existing_picture_is_kept_unless_asked(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    with pytest.raises(OutputExistsError, match=r"a\.png exists already"):
        write_png(path, to_image(pixels(1)))
    assert path.read_bytes() == b"old"
    write_png(path, to_image(pixels(1)), overwrite=True)
    assert Image.open(io.BytesIO(path.read_bytes())).size == (7, 5)


def test_a_table_shows_each_picture_once_below_its_column_and_beside_its_row():
    shades = [[10, 60], [110, 160], [210, 250]]  # of red, so that no letter looks the same
    pictures = [[Image.new("RGB", (30, 20), (shade, 0, 99)) for shade in row] for row in shades]
    page = np.asarray(labelled_table(pictures, ["client only", "server", "finished"], ["0.5", "1.0"]))
    places = {shade: np.argwhere((page == (shade, 0, 99)).all(axis=2)) for row in shades for shade in row}
    boxes = {shade: (*found.min(axis=0), *found.max(axis=0) + 1) for shade, found in places.items()}
    for top, left, bottom, right in boxes.values():
        assert (bottom - top, right - left) == (20, 30)
    assert boxes[10][0] == boxes[60][0] < boxes[110][0] < boxes[210][0]
    assert boxes[10][1] == boxes[210][1] < boxes[60][1]
    first_top, first_left = boxes[10][:2]
    assert (page[:first_top, first_left:] != PAPER).any()  # names of the columns
    assert (page[first_top:, :first_left] != PAPER).any()  # names of the rows


def test_every_truncation_and_flipped_bit_of_a_picture_is_seen(tmp_path):
    data = png_bytes(to_image(np.arange(48, dtype=np.uint8).reshape(1, 4, 4, 3)), {"collafuse:steps": "6"})
    for spoiled in [*(data[:n] for n in range(len(data) - 12)), *bit_flips(data[:-12], 200)]:
        (tmp_path / "a.png").write_bytes(spoiled)
        assert read_png(tmp_path / "a.png") is None
    (tmp_path / "a.png").write_bytes(data)
    picture = read_png(tmp_path / "a.png")
    assert (
        picture.text == {"collafuse:steps": "6"} and picture.pixels.tolist() == np.arange(48).reshape(4, 4, 3).tolist()
    )
    assert read_png(tmp_path / "gone.png") is None


@pytest.mark.parametrize("mode", ["P", "RGBA", "I;16"])
def test_pictures_that_are_neither_grey_nor_rgb_in_8_bits_are_not_ours(tmp_path, mode):
    Image.new(mode, (4, 4)).save(tmp_path / "a.png")
    assert read_png(tmp_path / "a.png") is None
