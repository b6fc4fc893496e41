"""collafuse.core.intermediate: what travels from the server to a device."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collafuse.core import intermediate as intermediates
from collafuse.core import tensorfile
from collafuse.core.errors import FileFormatError
from collafuse.core.intermediate import Intermediate, IntermediateFile
from tests.damage import bit_flips, safetensors_parts, truncations

TINY = Intermediate(
    x=np.array([[[[0.5, -1.0]]], [[[2.0, 0.25]]]], dtype=np.float32),
    sigma=0.75,
    labels=np.array([[1, 0], [0, 1]], dtype=np.uint8),
    label_names=("cat", "dog"),
    server_model="0123456789abcdef",
    sampler="dpmpp_2m",
    nfe=16,
    guidance=1.5,
)
WARM = dataclasses.replace(TINY, previous_x0_hat=TINY.x * 0.5, previous_sigma=1.25)
UNLABELLED = dataclasses.replace(TINY, labels=None, label_names=())


def read(data: bytes) -> Intermediate:
    file = tensorfile.from_bytes(data, "intermediate", 1, source="an.intermediate")
    return intermediates.from_tensorfile(file, "an.intermediate")


def same(a: Intermediate, b: Intermediate) -> bool:
    pairs = [(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(Intermediate)]
    return all(np.array_equal(p, q) and getattr(p, "dtype", 0) == getattr(q, "dtype", 0) for p, q in pairs)


@pytest.mark.parametrize("one", [TINY, WARM, UNLABELLED], ids=["cold", "warm", "unlabelled"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_there_and_back(one, dtype):
    previous = None if one.previous_x0_hat is None else one.previous_x0_hat.astype(dtype)
    one = dataclasses.replace(one, x=one.x.astype(dtype), previous_x0_hat=previous)
    assert same(read(intermediates.to_bytes(one)), one)


@given(st.floats(0.0021, 80.0), st.integers(0, 100_000), st.floats(0, 100), st.integers(1, 5))
def test_numbers_travel_exactly(sigma, nfe, guidance, count):
    x = np.random.default_rng(count).standard_normal((count, 3, 4, 2)).astype(np.float32)
    one = dataclasses.replace(UNLABELLED, x=x, sigma=sigma, nfe=nfe, guidance=guidance)
    assert same(read(intermediates.to_bytes(one)), one)


def test_the_file_on_disk_is_the_bytes_over_http(tmp_path):
    (tmp_path / "a").write_bytes(intermediates.to_bytes(WARM))
    assert same(intermediates.read(tmp_path / "a"), WARM)


def test_the_file_holds_the_allowed_fields_and_nothing_else():
    header, _ = safetensors_parts(intermediates.to_bytes(WARM))
    outer = header.pop("__metadata__")
    assert set(header) == {"x", "labels", "previous_x0_hat"}
    assert set(json.loads(outer["collafuse"])) == {
        "kind", "version", "sha256",
        "sigma", "label_names", "server_model", "sampler", "nfe", "guidance", "previous_sigma",
    }  # fmt: skip


TINY_BYTES = (
    b"\xd0\x01\x00\x00\x00\x00\x00\x00"  # 464 bytes of header
    rb'{"__metadata__":{"collafuse":"{\"guidance\": 1.5, \"kind\": \"intermediate\", '
    rb"\"label_names\": [\"cat\", \"dog\"], \"nfe\": 16, \"previous_sigma\": null, \"sampler\": \"dpmpp_2m\", "
    rb"\"server_model\": \"0123456789abcdef\", "
    rb"\"sha256\": \"623b8e4756de61a6a1eb583907ed091223e96cb753c4b4fa2a7790c87fea192e\", "
    rb'\"sigma\": 0.75, \"version\": 1}"},'
    rb'"x":{"dtype":"F32","shape":[2,1,1,2],"data_offsets":[0,16]},'
    rb'"labels":{"dtype":"U8","shape":[2,2],"data_offsets":[16,20]}}     '
    b"\x00\x00\x00\x3f\x00\x00\x80\xbf\x00\x00\x00\x40\x00\x00\x80\x3e"  # x
    b"\x01\x00\x00\x01"  # labels
)


def test_the_bytes_of_version_1():
    """Files of version 1 lie in the world: a change here needs version 2."""
    assert intermediates.to_bytes(TINY) == TINY_BYTES
    assert same(read(TINY_BYTES), TINY)


def test_shape_and_length():
    assert (len(TINY), TINY.image_shape) == (2, (1, 1, 2))


def test_history_of_some_rows_is_float32():
    history = dataclasses.replace(WARM, previous_x0_hat=WARM.x.astype(np.float16)).history(slice(1, 2))
    assert (history.sigma, history.x0_hat.dtype) == (1.25, np.float32)
    assert (history.x0_hat == WARM.x[1:]).all()
    assert TINY.history(slice(0, 2)) is None


# --- what is refused ----------------------------------------------------------------------------------------


def file(fields: dict | None = None, tensors: dict | None = None, without: tuple[str, ...] = ()) -> bytes:
    """A warm intermediate with a valid digest whose contents were changed."""
    all_fields = {
        "sigma": 0.75, "label_names": ["cat", "dog"], "server_model": "0123456789abcdef",
        "sampler": "dpmpp_2m", "nfe": 16, "guidance": 1.5, "previous_sigma": 1.25, **(fields or {}),
    }  # fmt: skip
    all_tensors = {"x": WARM.x, "labels": WARM.labels, "previous_x0_hat": WARM.previous_x0_hat, **(tensors or {})}
    for name in without:
        all_fields.pop(name, None)
        all_tensors.pop(name, None)
    return tensorfile.to_bytes("intermediate", 1, all_fields, all_tensors)


def test_the_unchanged_file_is_accepted():
    assert file() == intermediates.to_bytes(WARM)


CHANGES = [
    ({"fields": {"sigma": 0.002}}, "sigma=0.002, expected a number in"),
    ({"fields": {"sigma": 80.5}}, "sigma=80.5"),
    ({"fields": {"sigma": math.nan}}, "sigma=nan"),
    ({"fields": {"sigma": True}}, "sigma=True"),
    ({"without": ("sigma",)}, "lacks 'sigma'"),
    ({"fields": {"sampler": "rk45"}}, "sampler='rk45', expected one of dpmpp_2m, euler, euler_ancestral, heun"),
    ({"fields": {"sampler": ["euler"]}}, "a short printable text"),
    ({"fields": {"nfe": -1}}, "nfe=-1"),
    ({"fields": {"nfe": 1.0}}, "nfe=1.0"),
    ({"fields": {"guidance": math.inf}}, "guidance=inf"),
    ({"fields": {"autoguidance": 0.5}}, "autoguidance=0.5.*1, "),
    ({"fields": {"autoguidance": "2"}}, "autoguidance='2'"),
    ({"fields": {"autoguidance": None}}, "autoguidance=None"),
    ({"fields": {"guidance": -(10**400)}}, "guidance=-1000"),
    ({"fields": {"server_model": "\x1b]0;"}}, "server_model"),
    ({"fields": {"server_model": None}}, "server_model=None"),
    ({"fields": {"client": "north"}}, "unknown fields 'client'"),
    ({"without": ("x",)}, "lacks the tensor 'x'"),
    ({"tensors": {"x": TINY.x.astype(np.float64)}}, "'x' is float64 .* expected float32 or float16"),
    ({"tensors": {"x": TINY.x.reshape(2, 2)}}, "with 4 axes"),
    ({"tensors": {"x": TINY.x * np.nan}}, "not finite"),
    ({"tensors": dict.fromkeys(("x", "previous_x0_hat"), np.full((2, 1, 1, 2), np.inf, np.float16))}, "not finite"),
    ({"tensors": {"x": np.zeros((0, 1, 1, 2), np.float32)}}, "at least one image"),
    ({"tensors": {"x": np.zeros((2, 1, 1025, 1), np.float32)}}, "sides from 1 to 1024"),
    ({"tensors": {"previous_x0_hat": TINY.x.astype(np.float16)}}, "'previous_x0_hat' is float16"),
    ({"tensors": {"previous_x0_hat": TINY.x[:1]}}, "previous_x0_hat has shape"),
    ({"tensors": {"previous_x0_hat": TINY.x * np.inf}}, "not finite"),
    ({"fields": {"previous_sigma": 0.75}}, "previous_sigma=0.75"),
    ({"fields": {"previous_sigma": 0.5}}, "previous_sigma=0.5"),
    ({"fields": {"previous_sigma": math.nextafter(0.75, 1.0)}}, "previous_sigma=0.75"),
    ({"fields": {"previous_sigma": None}}, "previous_sigma=None"),
    ({"without": ("previous_x0_hat",)}, "names previous_sigma but holds no previous_x0_hat"),
    ({"without": ("previous_sigma",)}, "lacks 'previous_sigma'"),
    ({"tensors": {"noise": TINY.x}}, "unexpected tensors 'noise'"),
    ({"tensors": {"labels": TINY.labels + 1}}, "with 0 and 1 only"),
    ({"tensors": {"labels": TINY.labels.T[:1]}}, "labels have shape"),
    ({"without": ("labels",)}, "names labels but holds none"),
]


@pytest.mark.parametrize(("changes", "message"), CHANGES)
def test_a_changed_file_is_refused_by_name(changes, message):
    with np.errstate(all="ignore"), pytest.raises(FileFormatError, match=rf"^an\.intermediate.*{message}"):
        read(file(**changes))


@pytest.mark.parametrize(("changes", "message"), CHANGES)
def test_a_file_in_blocks_is_refused_for_the_same_reasons(tmp_path, changes, message):
    path = tmp_path / "an.intermediate"
    path.write_bytes(file(**changes))
    with np.errstate(all="ignore"), pytest.raises(FileFormatError, match=rf"an\.intermediate.*{message}"):
        IntermediateFile(path)


def test_a_release_is_no_intermediate():
    with pytest.raises(FileFormatError, match="is a 'release' file, expected an intermediate"):
        read(tensorfile.to_bytes("release", 1, {}, {"x": TINY.x}))


def test_every_truncation_is_refused(tmp_path):
    path = tmp_path / "an.intermediate"
    for spoiled in truncations(file(), 100):
        path.write_bytes(spoiled)
        with pytest.raises(FileFormatError, match="an.intermediate"):
            intermediates.read(path)


def test_every_bit_flip_is_refused():
    for spoiled in bit_flips(file(), 300):
        with pytest.raises(FileFormatError, match="an.intermediate"):
            read(spoiled)


# --- in blocks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("one", [TINY, WARM, UNLABELLED], ids=["cold", "warm", "unlabelled"])
def test_a_file_in_blocks_says_and_gives_the_same(tmp_path, one):
    (tmp_path / "a").write_bytes(intermediates.to_bytes(one))
    with IntermediateFile(tmp_path / "a") as opened:
        assert same(opened.block(slice(0, 2)), one)
        assert same(opened.block(slice(1, 9)), one.block(slice(1, 9)))
        names = "sigma server_model sampler nfe guidance image_shape labelled used_labels digest".split()
        assert [getattr(opened, name) for name in names] == [getattr(one, name) for name in names]
        assert len(opened) == len(one)


def test_labels_are_counted_while_the_file_is_checked(tmp_path):
    labels = np.array([[1, 0], [1, 0]], dtype=np.uint8)
    (tmp_path / "a").write_bytes(intermediates.to_bytes(dataclasses.replace(TINY, labels=labels)))
    (tmp_path / "b").write_bytes(intermediates.to_bytes(UNLABELLED))
    with IntermediateFile(tmp_path / "a") as opened:
        assert (opened.label_counts, opened.used_labels) == ({"cat": 2, "dog": 0}, ("cat",))
    with IntermediateFile(tmp_path / "b") as opened:
        assert (opened.label_counts, opened.used_labels) == (None, ())


def test_the_digest_is_the_one_in_the_file():
    header, _ = safetensors_parts(TINY_BYTES)
    assert TINY.digest == json.loads(header["__metadata__"]["collafuse"])["sha256"]
