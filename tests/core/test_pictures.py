"""collafuse.core.pictures."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collafuse.core.pictures import GAP, PAPER, contact_sheet, side_by_side, to_uint8


def test_grey_levels_of_known_values():
    x = np.array([-1.0, -0.99, 0.0, 0.5, 1.0, 7.0, -7.0], dtype=np.float32).reshape(1, 1, 1, 7)
    assert to_uint8(x).ravel().tolist() == [0, 1, 128, 191, 255, 255, 0]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_every_grey_level_there_and_back(dtype):
    levels = np.arange(256, dtype=np.uint8)
    x = (levels / 127.5 - 1).astype(dtype).reshape(1, 1, 16, 16)
    assert (to_uint8(x).ravel() == levels).all()


def test_channels_move_to_the_end():
    x = np.zeros((2, 3, 4, 5))
    x[1, 2, 3, 4] = 1.0
    pixels = to_uint8(x)
    assert pixels.shape == (2, 4, 5, 3)
    assert pixels[1, 3, 4].tolist() == [128, 128, 255]


@given(count=st.integers(1, 30), side=st.integers(1, 40), channels=st.sampled_from([1, 3]), columns=st.integers(1, 40))
def test_every_image_is_on_the_sheet_in_reading_order(count, side, channels, columns):
    pixels = np.arange(1, count + 1, dtype=np.uint8).reshape(-1, 1, 1, 1) * np.ones((1, side, side, channels), np.uint8)
    sheet = contact_sheet(pixels, columns)[0]
    tile = (sheet.shape[1] - GAP) // columns
    found = [sheet[GAP + i // columns * tile, GAP + i % columns * tile, 0] for i in range(count)]
    assert found == list(range(1, count + 1))
    assert (sheet[:GAP] == PAPER).all()


def test_images_on_a_sheet_are_enlarged_by_a_whole_factor():
    one = np.random.default_rng(0).integers(0, 200, size=(1, 8, 8, 3)).astype(np.uint8)
    sheet = contact_sheet(one)[0, GAP:-GAP, GAP:-GAP]
    scale = len(sheet) // 8
    assert scale > 1
    assert (sheet[::scale, ::scale] == one[0]).all()
    assert (sheet == one[0].repeat(scale, 0).repeat(scale, 1)).all()


def test_side_by_side_has_a_line_between():
    black, grey = np.zeros((2, 3, 4, 1), np.uint8), np.full((2, 3, 4, 1), 100, np.uint8)
    joined = side_by_side(black, grey)
    assert joined.shape == (2, 3, 9, 1)
    assert joined[1, 2, :, 0].tolist() == [0] * 4 + [PAPER] + [100] * 4
