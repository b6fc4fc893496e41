"""collafuse.core.describe: what ``collafuse inspect`` shows."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

from collafuse.core import intermediate as intermediates
from collafuse.core import release as releases
from collafuse.core import tensorfile
from collafuse.core.describe import describe
from collafuse.core.errors import FileFormatError
from collafuse.core.noise import Cut, system_noise
from tests.bundles import halving_bundle


@pytest.fixture
def files(tmp_path, tiny_intermediate):
    """One file of each kind, by kind."""
    labels = np.array([[1, 0], [0, 1], [0, 1]], dtype=np.uint8)
    x0 = np.zeros((3, 1, 8, 8), dtype=np.float32)
    made = releases.make([x0], Cut(0.5), system_noise, labels=labels, label_names=("a", "b"), simulated=True)
    contents = {
        "release": releases.to_bytes(made),
        "intermediate": intermediates.to_bytes(tiny_intermediate),
        "bundle": halving_bundle(),
        "weights": tensorfile.to_bytes("weights", 1, {"role": "client"}, {"w": np.zeros((2, 3), np.float32)}),
    }
    for kind, data in contents.items():
        (tmp_path / kind).write_bytes(data)
    return tmp_path


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("release", {"images": 3, "image_shape": [1, 8, 8], "sigma": 0.5, "simulated": True, "bytes_per_image": 128}),
        ("release", {"labels": {"a": 1, "b": 2}, "dtype": "float16"}),
        ("intermediate", {"images": 5, "labels": {"0": 2, "1": 2, "2": 1, "3": 0}, "warm_start": False, "nfe": 4}),
        ("bundle", {"client": "north", "sigma_range": [0.002, 0.5], "parameters": 4, "operators": ["Mul"]}),
        ("weights", {"role": "client", "tensors": 1, "numbers": 6}),
    ],
)
def test_a_file_is_described_by_its_kind(files, kind, expected):
    values = describe(files / kind)
    assert {"kind": kind, **expected}.items() <= values.items()


def test_every_description_has_size_and_digest_and_is_plain_json(files):
    for path in files.iterdir():
        values, data = describe(path), path.read_bytes()
        assert (values["bytes"], values["file_sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
        assert json.loads(json.dumps(values)) == values


def test_a_damaged_file_is_refused_not_described(files):
    for path in files.iterdir():
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        with pytest.raises(FileFormatError):
            describe(path)


def test_a_foreign_file_is_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    for path in (tmp_path / "a.png", tmp_path, tmp_path / "gone"):
        with pytest.raises(FileFormatError):
            describe(path)
