"""One image file to pixels: every kind that a site may hold, and everything that only looks like one."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from collafuse.core.errors import DataError
from collafuse.data import images
from collafuse.data.images import pixel_digest, read_image
from tests.damage import bit_flips, truncations

LEFT, RIGHT = (250, 10, 20), (0, 200, 90)


def two_halves(width: int = 8, height: int = 8) -> Image.Image:
    """Red on the left, green on the right."""
    picture = Image.new("RGB", (width, height), LEFT)
    picture.paste(RIGHT, (width // 2, 0, width, height))
    return picture


def saved(folder: Path, picture: Image.Image, name: str = "a.png", **options: object) -> Path:
    path = folder / name
    picture.save(path, **options)
    return path


def corners(pixels: np.ndarray) -> tuple[list[int], list[int]]:
    """Top left and bottom right of [C, H, W]."""
    return pixels[:, 0, 0].tolist(), pixels[:, -1, -1].tolist()


@pytest.mark.parametrize("name", ["a.png", "a.PNG", "a.webp", "a.bmp", "a.tif", "a.tiff"])
def test_lossless_formats_give_their_exact_pixels(tmp_path, name):
    pixels, _ = read_image(saved(tmp_path, two_halves(), name, **({"lossless": True} if "webp" in name else {})), 3, 8)
    assert pixels.dtype == np.uint8 and np.array_equal(pixels.transpose(1, 2, 0), np.asarray(two_halves()))


@pytest.mark.parametrize("name", ["a.jpg", "a.jpeg", "a.webp"])
def test_lossy_formats_give_nearly_their_pixels(tmp_path, name):
    pixels, _ = read_image(saved(tmp_path, two_halves(32, 32), name, quality=95), 3, 32)
    np.testing.assert_allclose(pixels[:, 8, 4], LEFT, atol=6)
    np.testing.assert_allclose(pixels[:, 8, 28], RIGHT, atol=6)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
def test_exif_orientation_is_applied(tmp_path, name):
    exif = Image.Exif()
    exif[0x0112] = 3  # stored upside down
    pixels, _ = read_image(saved(tmp_path, two_halves(32, 32), name, exif=exif, quality=95), 3, 32)
    np.testing.assert_allclose(pixels[:, 8, 4], RIGHT, atol=30)
    np.testing.assert_allclose(pixels[:, 8, 28], LEFT, atol=30)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_each_exif_orientation_is_turned_upright(tmp_path, name, orientation):
    stored = np.arange(36, dtype=np.uint8).reshape(6, 6) * 7
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels, digest = read_image(saved(tmp_path, Image.fromarray(stored), name, exif=exif), 1, 6)
    shown = [stored, stored[:, ::-1], stored[::-1, ::-1], stored[::-1], stored.T]
    shown += [np.rot90(stored, -1), np.rot90(stored, 2).T, np.rot90(stored)]
    assert np.array_equal(pixels[0], shown[orientation - 1])
    assert digest == pixel_digest(shown[orientation - 1][:, :, None])  # known as what it shows


def test_a_turned_photograph_is_upright_before_it_is_cropped(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored as 40 x 20, shown as 20 x 40 with what lies left at the top
    picture = Image.new("L", (40, 20), 0)
    picture.paste(255, (0, 0, 10, 20))
    pixels, _ = read_image(saved(tmp_path, picture, "a.png", exif=exif), 1, 20)
    assert not pixels.any()  # the middle 20 rows of 40


def test_exif_that_makes_no_sense_does_not_keep_a_good_image_out(tmp_path):
    exif = Image.Exif()
    exif[0x0112], exif[0x0128] = 6, 2
    path = saved(tmp_path, two_halves(16, 16), "a.jpg", exif=exif, quality=95)
    data = bytearray(path.read_bytes())
    entry = data.index(struct.pack(">HHI", 0x0128, 3, 1))
    data[entry + 2 : entry + 8] = struct.pack(">HI", 2, 4)  # what was a number claims to be a text
    path.write_bytes(data)
    with Image.open(path) as file, pytest.raises((TypeError, ValueError, AttributeError, struct.error)):
        ImageOps.exif_transpose(file)  # Pillow's own way stumbles, since it writes EXIF anew
    assert read_image(path, 3, 16)[0].shape == (3, 16, 16)


def test_a_palette_gives_its_colours(tmp_path):
    pixels, _ = read_image(saved(tmp_path, two_halves().quantize(4)), 3, 8)
    assert corners(pixels) == (list(LEFT), list(RIGHT))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_shows_white_paper(tmp_path, mode):
    picture = Image.new("RGBA", (8, 8), (0, 0, 0, 255))
    picture.paste((0, 0, 0, 0), (4, 0, 8, 8))
    options = {}
    if mode == "P":
        picture = Image.new("P", (8, 8), 0)
        picture.putpalette([0, 0, 0, 10, 10, 10])
        picture.paste(1, (4, 0, 8, 8))
        options = {"transparency": 1}
    pixels, _ = read_image(saved(tmp_path, picture.convert(mode), **options), 3, 8)
    assert corners(pixels) == ([0, 0, 0], [255, 255, 255])


def test_half_transparent_ink_is_mixed_with_the_paper(tmp_path):
    pixels, _ = read_image(saved(tmp_path, Image.new("RGBA", (8, 8), (0, 0, 0, 128))), 1, 8)
    assert pixels[0, 0, 0] == pytest.approx(127, abs=1)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_16_bit_grey_is_scaled_and_not_clipped(tmp_path, name):
    levels = np.array([[0, 65535], [257 * 128, 257 * 7], [40000, 128], [129, 300]], dtype=np.uint16).reshape(2, 4)
    pixels, _ = read_image(saved(tmp_path, Image.fromarray(levels.repeat(2, axis=0)), name), 1, 4)
    assert pixels[0, ::2].ravel().tolist() == [0, 255, 128, 7, 156, 0, 1, 1]


def test_black_and_white_and_cmyk_are_read(tmp_path):
    white, _ = read_image(saved(tmp_path, Image.new("1", (8, 8), 1)), 1, 8)
    assert white.min() == 255
    ink, _ = read_image(saved(tmp_path, Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "a.jpg"), 3, 8)
    np.testing.assert_allclose(ink[:, 0, 0], [255, 0, 0], atol=6)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_32_bit_grey_is_refused_since_its_range_is_not_known(tmp_path, mode):
    path = saved(tmp_path, Image.new(mode, (4, 4), 1), "a.tif")
    with pytest.raises(DataError, match=r"a\.tif has 32-bit grey levels"):
        read_image(path, 1, 4)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("width", "height"), [(8, 8), (30, 10), (7, 40), (1, 1), (1, 50)])
def test_any_size_becomes_the_one_asked_for(tmp_path, channels, width, height):
    pixels, _ = read_image(saved(tmp_path, two_halves(width, height)), channels, 8)
    assert pixels.shape == (channels, 8, 8) and pixels.flags.c_contiguous


def test_the_middle_is_kept_where_an_image_is_not_square(tmp_path):
    wide = Image.new("RGB", (30, 10), LEFT)
    wide.paste(RIGHT, (10, 0, 20, 10))
    pixels, _ = read_image(saved(tmp_path, wide), 3, 10)
    assert (pixels.transpose(1, 2, 0) == RIGHT).all()


def test_padding_keeps_all_of_an_image_with_black_beside_it(tmp_path):
    wide = Image.new("RGB", (30, 10), LEFT)
    pixels, digest = read_image(saved(tmp_path, wide), 3, 30, "pad")
    assert (pixels[:, 10:20].transpose(1, 2, 0) == LEFT).all()
    assert not pixels[:, :10].any() and not pixels[:, 20:].any()
    assert digest == read_image(tmp_path / "a.png", 3, 30)[1]  # how it is fitted does not change which image it is


def test_a_square_image_is_the_same_whether_cropped_or_padded(tmp_path):
    path = saved(tmp_path, two_halves(20, 20))
    for channels in (1, 3):
        assert np.array_equal(read_image(path, channels, 8, "crop")[0], read_image(path, channels, 8, "pad")[0])


# --- the digest ---------------------------------------------------------------------------------------------


def test_the_digest_knows_pixels_and_nothing_around_them(tmp_path):
    text = PngImagePlugin.PngInfo()
    text.add_text("patient", "J. Doe")
    exif = Image.Exif()
    exif[0x0131] = "a camera"
    picture = two_halves(20, 12)
    digests = {
        read_image(saved(tmp_path, picture, name, **options), channels, side)[1]
        for name, options in {
            "a.png": {},
            "another-name.png": {"pnginfo": text},
            "b.png": {"exif": exif, "compress_level": 1, "dpi": (300, 300)},
            "c.webp": {"lossless": True},
            "d.bmp": {},
        }.items()
        for channels, side in ((3, 8), (1, 8), (3, 4), (3, 20))
    }
    assert digests == {pixel_digest(np.asarray(picture))} and len(digests.pop()) == 32


def test_a_grey_image_is_the_same_one_in_three_equal_channels(tmp_path):
    grey = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    (tmp_path / "sub").mkdir()
    one = read_image(saved(tmp_path, grey), 1, 8)[1]
    assert one == read_image(saved(tmp_path / "sub", grey.convert("RGB")), 3, 8)[1]
    assert one == pixel_digest(np.asarray(grey)[:, :, None])


def test_one_grey_level_or_another_shape_makes_another_digest():
    pixels = np.zeros((2, 8, 3), dtype=np.uint8)
    changed = pixels.copy()
    changed[1, 7, 2] = 1
    assert len({pixel_digest(p) for p in (pixels, changed, pixels.reshape(8, 2, 3), pixels.reshape(4, 4, 3))}) == 4


# --- what is refused ----------------------------------------------------------------------------------------


def spoiled(kind: str) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "JPEG" if kind == "half a photo" else "PNG")
    data = buffer.getvalue()
    changed = bytearray(data)
    changed[len(data) // 2] ^= 0xFF
    return {
        "nothing": b"",
        "text": b"not an image at all\n",
        "half a photo": data[: len(data) // 2],
        "half a picture": data[: len(data) // 2],
        "a header alone": data[:20],
        "a changed byte": bytes(changed),
        "another format": b"GIF89a\x01\x00\x01\x00\x00\x00\x00;",
    }[kind]


@pytest.mark.parametrize(
    "kind",
    ["nothing", "text", "half a photo", "half a picture", "a header alone", "a changed byte", "another format"],
)
def test_a_file_that_is_no_whole_image_is_refused_by_name(tmp_path, kind):
    path = tmp_path / "scan.png"
    path.write_bytes(spoiled(kind))
    with pytest.raises(DataError, match=r"scan\.png .*remove or repair"):
        read_image(path, 3, 8)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # its remarks on damaged metadata, which we do not heed
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.tif", "a.bmp"])
def test_a_damaged_file_is_read_or_refused_by_name_and_raises_nothing_else(tmp_path, name):
    exif = Image.Exif()
    exif[0x0112] = 6
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    path = saved(tmp_path, noise, name, **({} if name == "a.bmp" else {"exif": exif}))
    data, refused = path.read_bytes(), 0
    for damaged in [*truncations(data, 30), *bit_flips(data, 200)]:
        path.write_bytes(damaged)
        try:
            read_image(path, 3, 8)
        except DataError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused >= 15


def test_a_file_that_is_not_there_is_refused_by_name(tmp_path):
    with pytest.raises(DataError, match=r"gone\.png"):
        read_image(tmp_path / "gone.png", 3, 8)


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 99)
    read_image(saved(tmp_path, two_halves(11, 9)), 3, 8)
    with pytest.raises(DataError, match=r"a\.png has 10 x 10 pixels; at most 99"):
        read_image(saved(tmp_path, two_halves(10, 10)), 3, 8)


@pytest.mark.parametrize("side", [7100, 60000])
def test_a_small_file_that_claims_a_huge_image_is_refused(tmp_path, side):
    buffer = io.BytesIO()
    Image.new("L", (4, 4)).save(buffer, "PNG")
    data = bytearray(buffer.getvalue())
    data[16:24] = side.to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    path = tmp_path / "bomb.png"
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"bomb\.png"):
        read_image(path, 1, 8)
