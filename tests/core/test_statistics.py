"""collafuse.core.statistics: what leaves a site that sends no image, and that nothing else does."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from collafuse.core import statistics as files
from collafuse.core import tensorfile
from collafuse.core.errors import FileFormatError
from collafuse.core.mechanism import Budget
from collafuse.core.statistics import Statement, Statistics
from tests.damage import bit_flips, safetensors_parts, truncations

NAMES = ("cat", "dog")
TINY = Statistics(
    about=Statement((1, 1, 2), 2, Budget(8.0, 1e-5), 0.5),
    counts=np.array([60.0, 71.5]),
    means=np.array([[0.5, -1.0], [2.0, 0.25]], dtype=np.float32),
    covariances=np.array([[1.0, 0.5, 2.0], [3.0, -0.5, -0.25]], dtype=np.float32),
    label_names=NAMES,
    simulated=True,
)


def read(data: bytes) -> Statistics:
    return files.from_bytes(data, "a.statistics")


def file(fields: dict | None = None, tensors: dict | None = None, without: tuple[str, ...] = ()) -> bytes:
    """A file with a valid digest whose contents were changed."""
    all_fields = {
        "image_shape": [1, 1, 2], "coefficients": 2, "label_names": list(NAMES), "epsilon": 8.0, "delta": 1e-5,
        "clip": 0.5, "simulated": True, **(fields or {}),
    }  # fmt: skip
    all_tensors = {name: getattr(TINY, name) for name in ("counts", "means", "covariances")} | (tensors or {})
    for name in without:
        all_fields.pop(name, None)
        all_tensors.pop(name, None)
    return tensorfile.to_bytes("statistics", 1, all_fields, all_tensors)


def test_there_and_back():
    found = read(files.to_bytes(TINY))
    assert (found.about, found.label_names, found.simulated) == (TINY.about, NAMES, True)
    for name in ("counts", "means", "covariances"):
        assert np.array_equal(getattr(found, name), getattr(TINY, name))


def test_without_a_budget_and_without_labels():
    exact = {"epsilon": None, "delta": None, "clip": None, "label_names": None}
    rows = {name: getattr(TINY, name)[:1] for name in ("counts", "means", "covariances")}
    found = read(file(exact, rows))
    assert found.about == Statement((1, 1, 2), 2) and found.label_names is None


def test_the_file_holds_the_allowed_fields_and_nothing_else():
    assert file() == files.to_bytes(TINY)
    header, payload = safetensors_parts(file())
    fields = json.loads(header.pop("__metadata__")["collafuse"])
    assert set(header) == {"counts", "means", "covariances"}
    assert set(fields) == {
        "kind", "version", "sha256", "image_shape", "coefficients", "label_names", "epsilon", "delta", "clip",
        "simulated",
    }  # fmt: skip
    assert sum(end - start for start, end in (t["data_offsets"] for t in header.values())) == len(payload)


WIDE = np.zeros((2, 6), np.float32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fields": {"image_shape": [1, 1]}}, "image_shape"),
        ({"fields": {"image_shape": [5, 1, 2]}}, "5 channels"),
        ({"fields": {"image_shape": [1, 1, 2000]}}, "image_shape"),
        ({"fields": {"coefficients": 3}}, "coefficients=3, expected a whole number from 1 to 2"),
        ({"fields": {"image_shape": [4, 99, 99], "coefficients": 257}}, "from 1 to 256"),
        ({"fields": {"coefficients": 1}}, r"for 2 labels and 1 coefficients expected \[2\], \[2, 1\], \[2, 1\]"),
        ({"fields": {"epsilon": 0}}, "epsilon=0"),
        ({"fields": {"epsilon": 1e6}}, "epsilon=1e.06, .* expected an epsilon above 0"),
        ({"fields": {"epsilon": None}}, "epsilon=None"),
        ({"fields": {"delta": None}}, "delta=None"),
        ({"fields": {"clip": None}}, "clip=None"),
        ({"fields": {"clip": 1.5}}, "clip=1.5"),
        ({"fields": {"clip": math.nan}}, "clip=nan"),
        ({"fields": {"label_names": None}}, "for 1 labels"),
        ({"fields": {"label_names": ["cat"]}}, "for 1 labels"),
        ({"fields": {"label_names": []}}, "for 0 labels"),
        ({"fields": {"label_names": ["cat", "cat"]}}, "different names"),
        ({"fields": {"simulated": 1}}, "simulated=1"),
        ({"fields": {"sigma_cut": 0.5}}, "unknown fields 'sigma_cut'"),
        ({"without": ("clip",)}, "lacks 'clip'"),
        ({"without": ("means",)}, "lacks the tensor 'means'"),
        ({"tensors": {"counts": np.array([60, 70])}}, "'counts' is int64"),
        ({"tensors": {"counts": np.array([60.0, 49.0])}}, "counts 49 images, expected at least 50"),
        ({"tensors": {"counts": np.array([60.0, math.nan])}}, "not finite"),
        ({"tensors": {"means": np.full((2, 2), math.inf, np.float32)}}, "not finite"),
        ({"tensors": {"means": TINY.means[:1]}}, "have the shapes"),
        ({"tensors": {"covariances": WIDE}}, "have the shapes"),
        ({"tensors": {"covariances": np.full((2, 3), math.nan, np.float32)}}, "not finite"),
        ({"tensors": {"images": WIDE}}, "unexpected tensors 'images'"),
    ],
)
def test_a_changed_file_is_refused_by_name(changes, message):
    with pytest.raises(FileFormatError, match=rf"^a\.statistics.*{message}"):
        read(file(**changes))


def test_a_release_of_images_is_no_statistics():
    with pytest.raises(FileFormatError, match="is a 'release' file, expected a statistics"):
        read(tensorfile.to_bytes("release", 1, {}, {"z": WIDE}))


def test_truncations_and_bit_flips_are_refused(tmp_path):
    path = tmp_path / "a.statistics"
    for spoiled in [*truncations(file(), 60), *bit_flips(file(), 200)]:
        path.write_bytes(spoiled)
        with pytest.raises(FileFormatError, match="a.statistics"):
            files.read(path)
