"""collafuse.core.tensorstream: a tensor file in blocks, refused and read as it is in one piece."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from collafuse.core import tensorfile, tensorstream
from collafuse.core.errors import FileFormatError
from collafuse.core.tensorstream import open_stream
from tests.damage import bit_flips, safetensors_file, safetensors_parts, truncations

TENSORS = {"a": np.arange(60, dtype=np.float32).reshape(10, 6), "b": np.arange(10, dtype=np.uint8), "c": np.float64(7)}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(tensorstream, "BLOCK_BYTES", 3 * 24)  # three rows of "a"


@pytest.fixture
def path(tmp_path):
    (tmp_path / "a.thing").write_bytes(tensorfile.to_bytes("thing", 1, {"number": 0.5}, TENSORS))
    return tmp_path / "a.thing"


def test_every_stretch_of_rows_comes_back(path):
    with open_stream(path, "thing", 1) as stream:
        stream.verify()
        for start in range(10):
            for stop in range(start + 1, 11):
                assert (stream.rows("a", start, stop) == TENSORS["a"][start:stop]).all()
        assert (stream.rows("b", 3, 7) == TENSORS["b"][3:7]).all()
        assert stream.fields.number("number") == 0.5


def test_rows_without_numbers_are_rows_all_the_same(tmp_path):
    """As the labels of intermediates that name none."""
    empty = np.zeros((10, 0), np.uint8)
    (tmp_path / "a.thing").write_bytes(tensorfile.to_bytes("thing", 1, {}, {**TENSORS, "none": empty}))
    with open_stream(tmp_path / "a.thing", "thing", 1) as stream:
        stream.verify()
        assert stream.rows("none", 2, 7).shape == (5, 0)
        assert (stream.rows("a", 2, 7) == TENSORS["a"][2:7]).all()


def test_the_first_pass_shows_every_value_once_in_blocks(path):
    seen: dict[str, list] = {}
    with open_stream(path, "thing", 1) as stream:
        stream.verify(lambda name, block: seen.setdefault(name, []).append(block))
    assert [len(block) for block in seen["a"]] == [3, 3, 3, 1]
    assert (np.concatenate(seen["a"]) == TENSORS["a"]).all()
    assert (seen["c"][0].shape, float(seen["c"][0])) == ((), 7.0)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tensors=st.dictionaries(
        st.text("abcxyz", min_size=1, max_size=4),
        arrays.arrays(
            st.sampled_from([np.dtype(t) for t in ("float16", "float32", "float64", "uint8", "int64", "bool")]),
            arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=9),
        ),
        max_size=3,
    )
)
def test_the_digest_is_that_of_the_file_in_one_piece(tmp_path, tensors):
    data = tensorfile.to_bytes("thing", 1, {}, tensors)
    (tmp_path / "any").write_bytes(data)
    with open_stream(tmp_path / "any", "thing", 1) as stream:
        stream.verify()
        for name, array in tensors.items():
            if array.ndim and array.size:
                assert stream.rows(name, 0, len(array)).tobytes() == array.tobytes()


# --- damage -------------------------------------------------------------------------------------------------


def refused(path, data: bytes) -> None:
    path.write_bytes(data)
    with pytest.raises(FileFormatError, match=r"a\.thing"):
        with open_stream(path, "thing", 1) as stream:
            stream.verify()


def test_every_truncation_is_refused(path):
    for spoiled in truncations(path.read_bytes(), 200):
        refused(path, spoiled)


def test_every_bit_flip_is_refused(path):
    for spoiled in bit_flips(path.read_bytes(), 500):
        refused(path, spoiled)


def test_bytes_that_follow_are_refused(path):
    refused(path, path.read_bytes() + b"\0")


@pytest.mark.parametrize("offsets", [[0, 2], [240, 240], [230, 240], [250, 260], [-10, 0], ["0", "10"], [0], None])
def test_tensors_that_share_bytes_or_leave_gaps_are_refused(path, offsets):
    header, payload = safetensors_parts(path.read_bytes())
    header["b"]["data_offsets"] = offsets
    refused(path, safetensors_file(header, payload))


@pytest.mark.parametrize(
    ("field", "value"),
    [("dtype", "BF16"), ("dtype", "F8"), ("dtype", ["F32"]), ("dtype", None)]
    + [("shape", v) for v in ([0, 1 << 40], [1 << 62, 4], [-1], [-10, -6], [60.0], ["60"], None, [True] * 6)]
    + [("shape", [1] * 70 + [60])],  # right, but NumPy has no arrays of so many axes
)
def test_types_and_shapes_that_do_not_fit_are_refused(path, field, value):
    header, payload = safetensors_parts(path.read_bytes())
    header["a"][field] = value
    refused(path, safetensors_file(header, payload))


def test_what_is_no_file_is_refused(tmp_path):
    for name in ("gone", "."):
        with pytest.raises(FileFormatError):
            open_stream(tmp_path / name, "thing", 1)


# --- a file that changes while it is open -------------------------------------------------------------------


WIDE = np.arange(100_000, dtype=np.float32).reshape(10, 10_000)
"""More than the operating system's reader keeps by itself."""


@pytest.fixture
def wide(tmp_path):
    tensorfile.write(tmp_path / "wide.thing", "thing", 1, {}, {"a": WIDE})
    return tmp_path / "wide.thing"


def test_rows_that_changed_since_they_were_verified_are_refused(wide):
    with open_stream(wide, "thing", 1) as stream:
        stream.verify()
        data = bytearray(wide.read_bytes())
        data[data.index(WIDE[7].tobytes())] ^= 1
        with wide.open("r+b") as file:
            file.write(data)
        assert (stream.rows("a", 0, 6) == WIDE[:6]).all()
        with pytest.raises(FileFormatError, match=r"wide\.thing changed while it was read; run the command again"):
            stream.rows("a", 5, 8)


def test_a_file_that_shrinks_is_refused(wide):
    with open_stream(wide, "thing", 1) as stream:
        stream.verify()
        os.truncate(wide, wide.stat().st_size - 40)
        with pytest.raises(FileFormatError, match="became shorter"):
            stream.rows("a", 0, 10)


def test_a_file_that_is_replaced_is_read_as_it_was(path, tmp_path):
    with open_stream(path, "thing", 1) as stream:
        stream.verify()
        tensorfile.write(path, "thing", 1, {}, {"a": np.zeros((10, 6), np.float32)}, overwrite=True)
        assert (stream.rows("a", 0, 10) == TENSORS["a"]).all()


def test_a_file_that_was_let_go_is_opened_again_and_must_be_the_same(path, tmp_path):
    with open_stream(path, "thing", 1) as stream:
        stream.verify()
        for again in range(2):
            stream.let_go()
            assert (stream.rows("a", again, 10) == TENSORS["a"][again:]).all()
            stream.let_go()
            assert (stream.left("a")[2:4] == TENSORS["a"][2:4]).all()
        stream.let_go()
        tensorfile.write(path, "thing", 1, {}, {name: 0 * t for name, t in TENSORS.items()}, overwrite=True)
        with pytest.raises(FileFormatError, match="changed while it was read"):
            stream.rows("a", 0, 10)
        stream.let_go()
        path.unlink()
        with pytest.raises(FileFormatError, match="No such file"):
            stream.rows("a", 0, 10)


# --- memory -------------------------------------------------------------------------------------------------

PEAK_WHILE_READING = """
import sys
from pathlib import Path
from collafuse.core.tensorstream import open_stream

def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])

before = peak()
with open_stream(Path(sys.argv[1]), "thing", 1) as stream:
    stream.verify()
    for start in range(0, 64 << 10, 1 << 10):
        stream.rows("a", start, start + (1 << 10))
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells a process's peak")
def test_a_large_file_needs_the_memory_of_a_few_blocks(tmp_path):
    tensorfile.write(tmp_path / "large", "thing", 1, {}, {"a": np.zeros((64 << 10, 256), np.float32)})  # 64 MiB
    command = [sys.executable, "-c", PEAK_WHILE_READING, str(tmp_path / "large")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 24 << 10  # KiB
