"""collafuse.core.tensorfile and metadata: what is refused before a release, intermediate or checkpoint looks."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from collafuse.core import tensorfile
from collafuse.core.errors import FileFormatError, OutputExistsError
from collafuse.core.metadata import Fields, parse_json
from tests.damage import bit_flips, safetensors_file, safetensors_parts, truncations

TENSORS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([1, 2], dtype=np.uint8)}
FIELDS = {"number": 0.5, "text": "hello", "none": None}


def read(data: bytes) -> tensorfile.TensorFile:
    return tensorfile.from_bytes(data, "thing", 1, source="a.thing")


@pytest.fixture(scope="module")
def data() -> bytes:
    return tensorfile.to_bytes("thing", 1, FIELDS, TENSORS)


@given(
    st.dictionaries(
        st.text("abcxyz_", min_size=1, max_size=8),
        arrays.arrays(
            st.sampled_from([np.dtype(t) for t in ("float16", "float32", "float64", "uint8", "int64")]),
            arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
        ),
        max_size=4,
    )
)
def test_tensors_there_and_back(tensors):
    found = read(tensorfile.to_bytes("thing", 1, {}, tensors)).tensors
    assert set(found) == set(tensors)
    for name, array in tensors.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes()


def test_fields_there_and_back(data):
    fields = read(data).fields
    assert (fields.number("number"), fields.text("text"), fields.take("none")) == (0.5, "hello", None)
    fields.done()


def test_equal_input_gives_equal_bytes(data):
    backwards = tensorfile.to_bytes("thing", 1, dict(reversed(FIELDS.items())), dict(reversed(TENSORS.items())))
    assert backwards == data


def test_the_layout_in_memory_does_not_matter():
    square = np.arange(9.0).reshape(3, 3)
    transposed = tensorfile.to_bytes("thing", 1, {}, {"a": square.T})
    assert transposed == tensorfile.to_bytes("thing", 1, {}, {"a": square.T.copy()})
    assert (read(transposed).tensors["a"] == square.T).all()


def test_any_safetensors_reader_can_open_it(data):
    assert (safetensors.numpy.load(data)["a"] == TENSORS["a"]).all()


def test_a_file_is_written_once(tmp_path, data):
    path = tmp_path / "a.thing"
    tensorfile.write(path, "thing", 1, FIELDS, TENSORS)
    assert path.read_bytes() == data
    with pytest.raises(OutputExistsError):
        tensorfile.write(path, "thing", 1, FIELDS, TENSORS)


# --- damage -------------------------------------------------------------------------------------------------


def test_every_truncation_is_refused(data):
    for spoiled in truncations(data, len(data)):
        with pytest.raises(FileFormatError, match=r"^a\.thing "):
            read(spoiled)


def test_every_bit_flip_is_refused(data):
    for spoiled in bit_flips(data, 500):
        with pytest.raises(FileFormatError, match=r"a\.thing"):
            read(spoiled)


def test_bytes_that_follow_are_refused(data):
    with pytest.raises(FileFormatError):
        read(data + b"\0")


def test_two_tensors_that_share_bytes_are_refused(data):
    header, payload = safetensors_parts(data)
    header["b"]["data_offsets"] = [0, 2]
    with pytest.raises(FileFormatError):
        read(safetensors_file(header, payload[:24]))


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_refused(noise):
    with pytest.raises(FileFormatError):
        read(noise)


@given(st.binary(max_size=200))
def test_arbitrary_headers_are_refused(text):
    with pytest.raises(FileFormatError):
        read(len(text).to_bytes(8, "little") + text)


@pytest.mark.parametrize("length", [1 << 21, 1 << 40, (1 << 64) - 1])
def test_a_header_that_claims_too_much_is_refused(length):
    with pytest.raises(FileFormatError, match=r"claims a header of|cut short"):
        read(length.to_bytes(8, "little") + b"{" + bytes(1 << 21))


def test_a_foreign_safetensors_file_is_refused():
    with pytest.raises(FileFormatError, match="was not written by collafuse: it lacks our metadata; expected a thing"):
        read(safetensors.numpy.save(TENSORS))
    with pytest.raises(FileFormatError, match="was not written by collafuse"):
        read(safetensors.numpy.save(TENSORS, metadata={"format": "pt"}))


def test_metadata_of_someone_else_beside_ours_is_refused(data):
    header, payload = safetensors_parts(data)
    header["__metadata__"]["comment"] = "taken at home"
    with pytest.raises(FileFormatError, match="was not written by collafuse"):
        read(safetensors_file(header, payload))


def test_another_kind_is_named():
    with pytest.raises(FileFormatError, match="a.thing is a 'release' file, expected a thing"):
        read(tensorfile.to_bytes("release", 1, {}, TENSORS))


@pytest.mark.parametrize("version", [2, 0, None, "1", 1.5, 1.0, True])
def test_another_version_is_named(version):
    with pytest.raises(FileFormatError, match=f"thing format version {version!r}, this program reads version 1"):
        read(tensorfile.to_bytes("thing", version, {}, TENSORS))


def test_a_key_that_occurs_twice_is_refused(data):
    header, payload = safetensors_parts(data)
    ours = header["__metadata__"]["collafuse"]
    assert ours.startswith("{")
    header["__metadata__"]["collafuse"] = '{"number": 0.5, ' + ours[1:]
    with pytest.raises(FileFormatError, match="a key occurs twice"):
        read(safetensors_file(header, payload))
    text = json.dumps(safetensors_parts(data)[0])
    with pytest.raises(FileFormatError, match="a key occurs twice"):
        read(safetensors_file('{"b": {}, ' + text[1:], payload))


@pytest.mark.parametrize("dtype", ["BF16", "F8_E4M3", "F4", "C64", "I1", "nonsense"])
def test_types_that_numpy_lacks_are_refused(data, dtype):
    header, payload = safetensors_parts(data)
    header["a"]["dtype"] = dtype
    with pytest.raises(FileFormatError):
        read(safetensors_file(header, payload))


@pytest.mark.parametrize("shape", [[0, 1 << 40, 1 << 40], [1 << 62, 4], [-1], [2, 3, 1, 1, 1, 7], ["2"], None])
def test_shapes_that_do_not_fit_are_refused(data, shape):
    header, payload = safetensors_parts(data)
    header["a"]["shape"] = shape
    with pytest.raises(FileFormatError):
        read(safetensors_file(header, payload))


# --- places that hold no file -------------------------------------------------------------------------------


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileFormatError, match=r"cannot read .*gone\.thing: No such file or directory; check the name"):
        tensorfile.read(tmp_path / "gone.thing", "thing", 1)


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(FileFormatError, match="is a folder or a device"):
        tensorfile.read(tmp_path, "thing", 1)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="only POSIX has named pipes")
def test_a_pipe_is_refused_without_waiting_for_its_writer(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileFormatError, match="is a folder or a device"):
        tensorfile.read(tmp_path / "pipe", "thing", 1)


def test_a_huge_file_is_refused_unread(tmp_path):
    with (tmp_path / "huge.thing").open("wb") as file:
        file.truncate(tensorfile.MAX_FILE_BYTES + 1)  # sparse: takes no room
    with pytest.raises(FileFormatError, match="bytes; a thing has at most"):
        tensorfile.read(tmp_path / "huge.thing", "thing", 1)


def test_a_large_foreign_file_is_refused_before_memory_is_spent_on_it(tmp_path, data):
    path = tmp_path / "large.thing"
    for head in (b"", data[:200], tensorfile.to_bytes("other", 1, {}, TENSORS)):
        with path.open("wb") as file:
            file.write(head)
            file.truncate(32 << 30)
        with pytest.raises(FileFormatError, match="not valid JSON|is a 'other' file"):  # and not for want of memory
            tensorfile.read(path, "thing", 1)


READ_WITH_LITTLE_MEMORY = """
import resource, sys
from pathlib import Path
from collafuse.core import tensorfile
from collafuse.core.errors import FileFormatError

resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
try:
    tensorfile.read(Path(sys.argv[1]), "thing", 1)
except FileFormatError as error:
    sys.exit(str(error))
"""


def test_a_file_that_does_not_fit_into_memory_is_refused(tmp_path, data):
    pytest.importorskip("resource", reason="only POSIX limits a process's memory")
    header, _ = safetensors_parts(data)
    with (tmp_path / "large.thing").open("wb") as file:
        file.write(safetensors_file(header, b""))
        file.truncate(8 << 30)
    command = [sys.executable, "-c", READ_WITH_LITTLE_MEMORY, str(tmp_path / "large.thing")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "bytes, more than this machine's memory holds" in done.stderr


def test_a_hostile_name_neither_fills_nor_steers_the_terminal():
    for tensors in ({"\x1b[2J": np.zeros(1)}, {f"{i:0100}": np.zeros(1) for i in range(100)}):
        with pytest.raises(FileFormatError) as caught:
            tensorfile.expect_nothing_else(tensors, "f")
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 400


def test_peeking_tells_the_kind_of_our_files_only(tmp_path, data):
    (tmp_path / "ours").write_bytes(data)
    (tmp_path / "theirs").write_bytes(safetensors.numpy.save(TENSORS))
    (tmp_path / "noise").write_bytes(b"\x89PNG")
    kinds = [tensorfile.peek_kind(tmp_path / name) for name in ("ours", "theirs", "noise", "missing", ".")]
    assert kinds == ["thing", None, None, None, None]


# --- metadata -----------------------------------------------------------------------------------------------


def fields(**values) -> Fields:
    return Fields(parse_json(json.dumps(values), "f"), "f")


@pytest.mark.parametrize("value", [0.0, 1.01, -5, 10**400, True, "0.5", None, [0.5], float("nan"), float("inf")])
def test_a_number_in_its_range(value):
    assert fields(a=1).number("a", above=0, at_most=1) == 1.0
    with pytest.raises(FileFormatError, match=r"metadata a=.*, expected a number in \(0, 1\]"):
        fields(a=value).number("a", above=0, at_most=1)


@pytest.mark.parametrize("value", [0, 11, 10**400, 1.0, True, "1", None])
def test_a_whole_number_in_its_range(value):
    assert fields(a=10).integer("a", at_least=1, at_most=10) == 10
    with pytest.raises(FileFormatError, match="a whole number from 1 to 10"):
        fields(a=value).integer("a", at_least=1, at_most=10)


@pytest.mark.parametrize("value", [1, 0, "true", None])
def test_true_or_false(value):
    assert fields(a=True).boolean("a") is True
    with pytest.raises(FileFormatError, match="true or false"):
        fields(a=value).boolean("a")


@pytest.mark.parametrize("value", [1, None, "a\nb", "\x1b[31m", "\ud800", "x" * 5000, ["a"]])
def test_a_short_printable_text(value):
    assert fields(a="Größe").text("a") == "Größe"
    with pytest.raises(FileFormatError, match="a short printable text"):
        fields(a=value).text("a")


def test_a_text_out_of_a_set():
    with pytest.raises(FileFormatError, match="metadata a='rk45', expected one of euler, heun"):
        fields(a="rk45").text("a", one_of=["heun", "euler"])


@pytest.mark.parametrize(
    "value", [["a", "a"], [""], ["x" * 201], [1], "ab", None, ["\n"], [str(i) for i in range(4097)]]
)
def test_different_names(value):
    assert fields(a=["x", "y"]).names("a") == ("x", "y")
    with pytest.raises(FileFormatError, match="different names"):
        fields(a=value).names("a")


@pytest.mark.parametrize("value", [[1, 2], [1, 2, 3, 4], [0, 1, 1], [1, 1, 2.0], [True, 1, 1], None])
def test_whole_numbers(value):
    assert fields(a=[1, 2, 3]).integers("a", length=3, at_least=1, at_most=3) == (1, 2, 3)
    with pytest.raises(FileFormatError, match="3 whole numbers from 1 to 3"):
        fields(a=value).integers("a", length=3, at_least=1, at_most=3)


@pytest.mark.parametrize("value", [[1.0] * 4, ["1"], [float("nan")], [10**400], [True], 1.0])
def test_finite_numbers(value):
    assert fields(a=[1, 2.5]).numbers("a", max_length=3) == (1.0, 2.5)
    with pytest.raises(FileFormatError, match="at most 3 finite numbers"):
        fields(a=value).numbers("a", max_length=3)


@pytest.mark.parametrize(
    "value", [[], {"a": 1}, {"a": "x" * 201}, {"a": "\x1b[2J"}, {"\ud800": "a"}, {str(i): "" for i in range(33)}]
)
def test_short_texts(value):
    assert fields(a={"b": "c"}).texts("a") == {"b": "c"}
    with pytest.raises(FileFormatError, match="at most 32 short printable texts"):
        fields(a=value).texts("a")


def test_a_field_that_is_missing_and_one_too_many_are_named():
    with pytest.raises(FileFormatError, match="f: metadata lacks 'b'"):
        fields(a=1).take("b")
    with pytest.raises(FileFormatError, match="f: metadata has unknown fields 'exif', 'name'"):
        fields(name="scan 17", exif={}).done()


def test_a_long_value_is_shown_short():
    with pytest.raises(FileFormatError) as caught:
        fields(a="x" * 100_000).number("a")
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "text", ["", "[]", "1", "null", "{", '{"a": 1} x', "[" * 100_000, '{"a":' * 5000, b"\xff\xfe{", b"\x80"]
)
def test_what_is_no_json_object_is_refused(text):
    with pytest.raises(FileFormatError, match="^f carries metadata that is not"):
        parse_json(text, "f")


@pytest.mark.parametrize("depth", [100, 900, 980, 985, 990, 20_000])
def test_deep_nesting_is_refused_however_deep(data, depth):
    header, payload = safetensors_parts(data)
    ours = header["__metadata__"]["collafuse"]
    header["__metadata__"]["collafuse"] = ours[:-1] + ', "a": ' + "[" * depth + "]" * depth + "}"
    with pytest.raises(FileFormatError):
        read(safetensors_file(header, payload))
