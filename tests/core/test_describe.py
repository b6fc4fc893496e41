"""collafuse.core.describe: what ``collafuse inspect`` shows."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

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
        ("bundle", {"graph": "step", "precision": "fp32", "loss_against_fp32": None}),
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


def test_what_a_file_says_of_itself_takes_the_place_of_nothing_that_was_looked_at(tmp_path):
    said = {"role": "client", "bytes": 5, "file_sha256": "f" * 64, "digest": "mine", "tensors": 0}
    data = tensorfile.to_bytes("weights", 1, said, {"w": np.zeros((2, 3), np.float32)})
    (tmp_path / "weights").write_bytes(data)
    values = describe(tmp_path / "weights")
    assert (values["bytes"], values["file_sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    assert (values["digest"], values["tensors"]) == ("matches the SHA-256 in the file", 1)


FOREIGN = {
    "a picture": b"\x89PNG\r\n\x1a\n",
    "a text": b"name: digits\n",
    "nothing": b"",
    "another's tensors": safetensors.numpy.save({"a": np.zeros(3)}),
    "the beginning of ours": tensorfile.to_bytes("weights", 1, {}, {"w": np.zeros(3)})[:100],
}


@pytest.mark.parametrize("what", FOREIGN)
def test_a_file_of_another_kind_is_not_said_to_be_a_damaged_bundle(tmp_path, what):
    (tmp_path / "it").write_bytes(FOREIGN[what])
    with pytest.raises(FileFormatError, match="it is no file of ours, or damaged; expected a release"):
        describe(tmp_path / "it")


def test_a_file_that_may_not_be_read_is_refused_with_the_reason(tmp_path, monkeypatch):
    def refused(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    (tmp_path / "it").touch()
    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(FileFormatError, match="Permission denied"):
        describe(tmp_path / "it")


def test_a_kind_of_a_newer_version_is_named(tmp_path):
    (tmp_path / "it").write_bytes(tensorfile.to_bytes("sketch", 1, {}, {"w": np.zeros(3)}))
    with pytest.raises(FileFormatError, match="it is of kind 'sketch'"):
        describe(tmp_path / "it")


def test_a_noise_level_is_shown_in_three_coordinates(files):
    for kind, sigma in (("release", 0.5), ("intermediate", 1.0), ("bundle", 0.5)):
        values = describe(files / kind)
        assert values["log_snr"] == pytest.approx(-2 * np.log(sigma))
        t_cosine, t_linear = {0.5: (0.29, 0.14), 1.0: (0.5, 0.255)}[sigma]
        assert values["t_cosine"] == pytest.approx(t_cosine, abs=0.01)
        assert values["t_linear"] == pytest.approx(t_linear, abs=0.01)
        assert values["digest"] == "matches the SHA-256 in the file"


def test_equal_ids_and_impossible_labels_of_a_release_are_found_in_blocks(files):
    made = releases.read(files / "release")
    for change in ({"ids": made.ids[[0, 0, 1]]}, {"labels": made.labels + 1}):
        (files / "release").write_bytes(releases.to_bytes(dataclasses.replace(made, **change)))
        with pytest.raises(FileFormatError, match="different ids|with 0 and 1 only"):
            describe(files / "release")


PEAK = """
import sys
from pathlib import Path
from collafuse.core.describe import describe

assert describe(Path(sys.argv[1]))["images"] == 32768
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells a process's peak")
def test_a_large_file_is_described_in_little_memory(tmp_path, tiny_intermediate):
    x = np.zeros((32768, 1, 32, 32), dtype=np.float32)  # 128 MiB
    large = dataclasses.replace(tiny_intermediate, x=x, labels=None, label_names=())
    (tmp_path / "large").write_bytes(intermediates.to_bytes(large))
    done = subprocess.run([sys.executable, "-c", PEAK, tmp_path / "large"], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 80 << 10  # KiB, the interpreter and numpy included
