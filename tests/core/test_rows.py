"""collafuse.core.rows: rows of an array in a file, as those of an array in memory."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collafuse.core import rows as module
from collafuse.core.errors import FileFormatError
from collafuse.core.rows import FileRows, JoinedRows, blocks_of

ARRAY = np.arange(12 * 3 * 2, dtype=np.float16).reshape(12, 3, 2)
ORDERS = st.lists(st.integers(0, 11), max_size=30).map(lambda rows: np.asarray(rows, dtype=np.int64))


def in_file(folder: Path, array: np.ndarray = ARRAY, before: bytes = b"head") -> FileRows:
    path = folder / "rows"
    path.write_bytes(before + array.tobytes())
    with path.open("rb") as file:
        return FileRows(file, array.dtype, array.shape, offset=len(before), source=str(path))


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> FileRows:
    return in_file(tmp_path_factory.mktemp("rows"))


@given(ORDERS)
def test_any_rows_in_any_order_are_those_of_the_array(rows, order):
    assert (rows[order] == ARRAY[order]).all() and rows[order].shape == ARRAY[order].shape


@given(ORDERS, st.slices(12))
def test_a_selection_of_rows_is_one_of_the_array_s(rows, order, index):
    chosen = rows.take(order)
    assert (len(chosen), chosen.shape, chosen.dtype) == (len(order), ARRAY[order].shape, ARRAY.dtype)
    assert (chosen[index] == ARRAY[order][index]).all() and (np.asarray(chosen) == ARRAY[order]).all()


@given(ORDERS)
def test_joined_rows_are_those_of_all_parts_after_one_another(rows, order):
    joined = JoinedRows([rows, ARRAY[:0], rows.take(np.arange(5)), ARRAY + 100])
    whole = np.concatenate([ARRAY, ARRAY[:5], ARRAY + 100])
    order = np.concatenate([order, order + 17])
    assert joined.shape == whole.shape and (joined[order] == whole[order]).all()
    assert (joined[10:20] == whole[10:20]).all()


def test_blocks_are_all_rows_in_order(rows, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_BYTES", 30)  # of which two rows are 24
    blocks = [rows[block] for block in blocks_of(rows)]
    assert [len(block) for block in blocks] == [2] * 6 and (np.concatenate(blocks) == ARRAY).all()
    assert (np.asarray(rows) == ARRAY).all()  # a read is never larger than a block either


def test_a_file_that_was_cut_short_is_a_sentence(tmp_path):
    rows = in_file(tmp_path)
    os.truncate(tmp_path / "rows", 20)
    assert (rows[np.arange(1)] == ARRAY[:1]).all()
    with pytest.raises(FileFormatError, match="became shorter while it was read"):
        rows[:]


def test_the_file_is_open_as_long_as_any_of_its_rows_is_there(tmp_path):
    def descriptors() -> int:
        return sum(Path(os.path.realpath(one)) == tmp_path / "rows" for one in Path("/proc/self/fd").iterdir())

    whole = in_file(tmp_path)
    chosen = whole.take(np.arange(2))
    (tmp_path / "rows").rename(tmp_path / "elsewhere")
    del whole
    gc.collect()
    assert (chosen[:] == ARRAY[:2]).all()
    (tmp_path / "elsewhere").rename(tmp_path / "rows")
    assert descriptors() == 1
    del chosen
    gc.collect()
    assert descriptors() == 0
