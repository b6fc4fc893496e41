"""collafuse.core.release: what leaves a site, and that nothing else does."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collafuse.core import release as releases
from collafuse.core import tensorfile
from collafuse.core.errors import FileFormatError
from collafuse.core.noise import Cut, system_noise
from collafuse.core.release import Release
from tests.damage import bit_flips, safetensors_parts, truncations

NAMES = ("cat", "dog")


def images(count: int = 4, shape: tuple[int, int, int] = (1, 16, 16)) -> np.ndarray:
    """Clean images whose bytes look like nothing else."""
    return np.random.default_rng(99).uniform(-1, 1, size=(count, *shape)).astype(np.float32)


def labels_of(count: int) -> np.ndarray:
    return (np.arange(2 * count).reshape(count, 2) % 3 == 0).astype(np.uint8)


def make(x0: np.ndarray, sigma: float = 0.7, noise=system_noise, labels: bool = True) -> Release:
    given = labels_of(len(x0)) if labels else None
    return releases.make([x0], Cut(sigma), noise, labels=given, label_names=NAMES, simulated=False)


def read(data: bytes) -> Release:
    return releases.from_tensorfile(tensorfile.from_bytes(data, "release", 1, source="a.release"), "a.release")


# --- what a release is --------------------------------------------------------------------------------------


def test_z_is_the_image_plus_that_much_noise():
    x0, noise = images(), np.random.default_rng(1).standard_normal((4, 1, 16, 16))
    made = make(x0, 0.7, lambda shape: noise)
    np.testing.assert_allclose(made.z, x0 + 0.7 * noise, rtol=2**-11)
    assert made.z.dtype == np.float16


def test_the_noise_has_the_level_of_the_cut():
    x0 = images(64)
    noise = make(x0, 2.0).z - x0
    assert noise.std() == pytest.approx(2.0, rel=6 / math.sqrt(2 * noise.size))


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return abs(float(np.corrcoef(a.ravel(), b.ravel())[0, 1]))


def test_two_releases_of_the_same_images_share_no_noise():
    x0 = images(16)
    first, second = (make(x0).z - x0 for _ in range(2))
    assert correlation(first, second) < 6 / math.sqrt(first.size)
    for one, other in zip(first, second, strict=True):
        assert correlation(one, other) < 6 / math.sqrt(one.size)


def test_equal_images_in_one_release_share_no_noise():
    x0 = np.repeat(images(1), 2, axis=0)
    noise = make(x0).z - x0
    assert correlation(noise[0], noise[1]) < 6 / math.sqrt(noise[0].size)


def test_ids_are_random_and_differ():
    x0 = images(50)
    ids = np.concatenate([make(x0).ids, make(x0).ids])
    assert ids.shape == (100, 16)
    assert len(np.unique(ids, axis=0)) == 100


def test_labels_that_are_not_shared_leave_no_name_behind():
    made = make(images(), labels=False)
    assert (made.labels, made.label_names) == (None, ())
    assert b"cat" not in releases.to_bytes(made)


# --- what is in the file ------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [True, False])
def test_the_file_holds_the_allowed_fields_and_nothing_else(labels):
    header, payload = safetensors_parts(releases.to_bytes(make(images(), labels=labels)))
    outer = header.pop("__metadata__")
    assert set(header) == ({"z", "ids", "labels"} if labels else {"z", "ids"})
    assert set(outer) == {"collafuse"}
    assert set(json.loads(outer["collafuse"])) == {
        "kind", "version", "sha256", "sigma_cut", "label_names", "simulated",
    }  # fmt: skip
    # The payload is those tensors end to end, so no byte is unaccounted for.
    spans = sorted(tensor["data_offsets"] for tensor in header.values())
    assert [start for start, _ in spans] == [0, *(end for _, end in spans[:-1])]
    assert spans[-1][1] == len(payload)


def test_no_clean_image_and_no_noise_is_in_the_file():
    x0, drawn = images(), []

    def noise(shape):
        drawn.append(system_noise(shape))
        return drawn[-1]

    data = releases.to_bytes(make(x0, noise=noise))
    grey = np.rint((x0 + 1) * 127.5).astype(np.uint8)
    for array in (x0, x0.astype(np.float16), x0.astype(np.float64), grey, *(drawn[0].astype(t) for t in "efd")):
        for row in array.reshape(-1, 16):
            assert row.tobytes()[:8] not in data


def test_the_release_keeps_nothing_of_what_it_was_made_from():
    assert {field.name for field in dataclasses.fields(Release)} == {
        "z", "sigma_cut", "ids", "labels", "label_names", "simulated", "text",
    }  # fmt: skip


@given(
    count=st.integers(1, 4),
    shape=st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9)),
    sigma=st.floats(0.003, 80.0),
    labels=st.booleans(),
)
def test_there_and_back(count, shape, sigma, labels):
    made = make(images(count, shape), sigma, labels=labels)
    found = read(releases.to_bytes(made))
    assert (found.sigma_cut, found.label_names, found.simulated) == (sigma, made.label_names, False)
    assert found.image_shape == shape
    assert (found.z == made.z).all()
    assert (found.ids == made.ids).all()
    assert (found.labels == made.labels) if not labels else (found.labels == made.labels).all()


def test_simulated_travels():
    made = dataclasses.replace(make(images()), simulated=True)
    assert read(releases.to_bytes(made)).simulated is True


TINY = Release(
    z=np.array([[[[0.5, -1.0]]], [[[2.0, 0.25]]]], dtype=np.float16),
    sigma_cut=0.75,
    ids=np.arange(32, dtype=np.uint8).reshape(2, 16),
    labels=np.array([[1, 0], [0, 1]], dtype=np.uint8),
    label_names=NAMES,
    simulated=True,
)

TINY_BYTES = (
    b"\xa0\x01\x00\x00\x00\x00\x00\x00"  # 416 bytes of header
    rb'{"__metadata__":{"collafuse":"{\"kind\": \"release\", \"label_names\": [\"cat\", \"dog\"], '
    rb"\"sha256\": \"fbc4c66a3b4cb3efbe003002a4323b0b984c741e00ae3705a622f6275b3fa545\", "
    rb'\"sigma_cut\": 0.75, \"simulated\": true, \"version\": 1}"},'
    rb'"z":{"dtype":"F16","shape":[2,1,1,2],"data_offsets":[0,8]},'
    rb'"ids":{"dtype":"U8","shape":[2,16],"data_offsets":[8,40]},'
    rb'"labels":{"dtype":"U8","shape":[2,2],"data_offsets":[40,44]}}     '
    b"\x00\x38\x00\xbc\x00\x40\x00\x34"  # z
    b"\x00\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f"  # ids
    b"\x10\x11\x12\x13\x14\x15\x16\x17\x18\x19\x1a\x1b\x1c\x1d\x1e\x1f"
    b"\x01\x00\x00\x01"  # labels
)


def test_the_bytes_of_version_1():
    """Files of version 1 lie in the world: a change here needs version 2."""
    assert releases.to_bytes(TINY) == TINY_BYTES
    assert (read(TINY_BYTES).z == TINY.z).all()


# --- what is refused ----------------------------------------------------------------------------------------


def file(fields: dict | None = None, tensors: dict | None = None, without: tuple[str, ...] = ()) -> bytes:
    """A release with a valid digest whose contents were changed."""
    all_fields = {"sigma_cut": 0.75, "label_names": list(NAMES), "simulated": True, **(fields or {})}
    all_tensors = {"z": TINY.z, "ids": TINY.ids, "labels": TINY.labels, **(tensors or {})}
    for name in without:
        all_fields.pop(name, None)
        all_tensors.pop(name, None)
    return tensorfile.to_bytes("release", 1, all_fields, all_tensors)


def test_the_unchanged_file_is_accepted():
    assert file() == releases.to_bytes(TINY)
    assert len(read(file()).z) == 2


NOT_FINITE = [math.nan, math.inf, -math.inf]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fields": {"sigma_cut": 0.002}}, "sigma_cut=0.002, expected a number in"),
        ({"fields": {"sigma_cut": 81}}, "sigma_cut=81"),
        ({"fields": {"sigma_cut": "0.75"}}, "sigma_cut='0.75'"),
        ({"fields": {"sigma_cut": 10**400}}, "sigma_cut=1000"),
        ({"fields": {"sigma_cut": math.nan}}, "sigma_cut=nan"),
        ({"without": ("sigma_cut",)}, "lacks 'sigma_cut'"),
        ({"fields": {"simulated": 1}}, "simulated=1, expected true or false"),
        ({"without": ("simulated",)}, "lacks 'simulated'"),
        ({"fields": {"site": "north"}}, "unknown fields 'site'"),
        ({"fields": {"seed": 1}}, "unknown fields 'seed'"),
        ({"without": ("z",)}, "lacks the tensor 'z'"),
        ({"tensors": {"z": TINY.z.astype(np.float32)}}, "'z' is float32 .* expected float16 with 4 axes"),
        ({"tensors": {"z": TINY.z[0]}}, "'z' is float16 with shape .* expected float16 with 4 axes"),
        *[({"tensors": {"z": np.full((2, 1, 1, 2), v, np.float16)}}, "not finite") for v in NOT_FINITE],
        ({"tensors": {"z": np.zeros((0, 1, 1, 2), np.float16)}}, "expected at least one image"),
        ({"tensors": {"z": np.zeros((2, 5, 1, 2), np.float16)}}, "1 to 4 channels"),
        ({"tensors": {"z": np.zeros((2, 0, 1, 2), np.float16)}}, "1 to 4 channels"),
        ({"tensors": {"z": np.zeros((2, 1, 1, 1025), np.float16)}}, "sides from 1 to 1024"),
        ({"tensors": {"x0": TINY.z}}, "unexpected tensors 'x0'"),
        ({"tensors": {"noise": TINY.z}}, "unexpected tensors 'noise'"),
        ({"without": ("ids",)}, "lacks the tensor 'ids'"),
        ({"tensors": {"ids": TINY.ids[:, :8]}}, "expected 2 different ids of 16 bytes"),
        ({"tensors": {"ids": TINY.ids[:1]}}, "expected 2 different ids of 16 bytes"),
        ({"tensors": {"ids": TINY.ids[[0, 0]]}}, "expected 2 different ids of 16 bytes"),
        ({"tensors": {"ids": TINY.ids.astype(np.int64)}}, "'ids' is int64"),
        ({"tensors": {"labels": TINY.labels * 2}}, "values up to 2, expected labels with 0 and 1 only"),
        ({"tensors": {"labels": TINY.labels[:1]}}, "labels have shape"),
        ({"tensors": {"labels": TINY.labels[:, :1]}}, "labels have shape"),
        ({"tensors": {"labels": TINY.labels.astype(np.float32)}}, "'labels' is float32"),
        ({"without": ("labels",)}, "names labels but holds none"),
        ({"fields": {"label_names": None}}, "label_names=None"),
        ({"without": ("label_names",)}, "lacks 'label_names'"),
        ({"fields": {"label_names": ["cat", "cat"]}}, "different names"),
        ({"fields": {"label_names": ["cat", "\x1b[31m"]}}, "different names"),
    ],
)
def test_a_changed_file_is_refused_by_name(changes, message):
    with pytest.raises(FileFormatError, match=rf"^a\.release.*{message}"):
        read(file(**changes))


def test_an_intermediate_is_no_release():
    with pytest.raises(FileFormatError, match="is a 'intermediate' file, expected a release"):
        read(tensorfile.to_bytes("intermediate", 1, {}, {"z": TINY.z}))


def test_every_truncation_is_refused(tmp_path):
    data, path = file(), tmp_path / "a.release"
    for spoiled in truncations(data, 100):
        path.write_bytes(spoiled)
        with pytest.raises(FileFormatError, match="a.release"):
            releases.read(path)


def test_every_bit_flip_is_refused():
    for spoiled in bit_flips(file(), 300):
        with pytest.raises(FileFormatError, match="a.release"):
            read(spoiled)
