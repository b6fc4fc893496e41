"""A set larger than memory: released, sent and trained on out of files, with the result of one in memory."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from collafuse.core import release as releases
from collafuse.core import rows, tensorfile
from collafuse.core.conditioning import ConditionSpace
from collafuse.core.errors import FileFormatError, StorageError
from collafuse.core.rows import FileRows, JoinedRows
from collafuse.data.imageset import ImageSet
from collafuse.learning import weights
from collafuse.nodes.ledger import Ledger
from collafuse.nodes.runfolder import NodeFolder
from collafuse.nodes.server_training import train_server
from collafuse.nodes.sites import read_releases, training_data
from tests.damage import bit_flips, truncations
from tests.nodes.sites import client, config, release_of, rows_of
from tests.tiny import CPU, Recorder, image_set


@pytest.fixture
def no_memory(monkeypatch):
    """Every set is too large for memory, and a block is a few images."""
    monkeypatch.setattr(rows, "IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(rows, "BLOCK_BYTES", 100)


def on_disk(images: ImageSet, folder: Path) -> ImageSet:
    """The same images, left in a file as the cache leaves them."""
    (folder / "pixels").write_bytes(images.pixels.tobytes())
    with (folder / "pixels").open("rb") as file:
        left = FileRows(file, images.pixels.dtype, images.pixels.shape, source="pixels")
    return ImageSet(left, images.labels, images.label_names, images.digests)


@pytest.mark.parametrize("labels", [("x", "y"), (), None])
def test_a_release_that_is_left_in_its_file_is_the_same_one(tmp_path, no_memory, labels):
    made = release_of(0.5, labels)
    (tmp_path / "a").write_bytes(releases.to_bytes(made))
    left = releases.read(tmp_path / "a")
    assert isinstance(left.z, FileRows) and np.array_equal(left.z, made.z)
    assert np.array_equal(left.ids, made.ids) and np.array_equal(left.labels, made.labels)
    assert (left.label_names, left.sigma_cut, left.simulated) == (made.label_names, made.sigma_cut, made.simulated)
    assert left.image_shape == made.image_shape and releases.to_bytes(left) == releases.to_bytes(made)


def test_a_damaged_release_is_not_left_in_its_file_but_refused(tmp_path, no_memory):
    made = release_of(0.5)
    data, path = releases.to_bytes(made), tmp_path / "a.release"
    made.z[3] = np.inf
    for spoiled in (*truncations(data, 30), *bit_flips(data, 100), releases.to_bytes(made)):
        path.write_bytes(spoiled)
        with pytest.raises(FileFormatError, match=r"a\.release"):
            releases.read(path)


@pytest.mark.parametrize("dtype", tensorfile.WRITTEN_TYPES)
def test_what_is_written_piece_by_piece_is_what_safetensors_writes(tmp_path, dtype):
    array = np.arange(12).reshape(3, 4).astype(dtype)
    tensors = {"b": array, "a": np.arange(5, dtype=np.float16), "é": array[:0], "c": np.ones((), dtype=np.float32)}
    (tmp_path / "b").write_bytes(array.tobytes())
    with (tmp_path / "b").open("rb") as file:
        left = {**tensors, "b": FileRows(file, array.dtype, array.shape, source="b")}
    data = b"".join(tensorfile.pieces("thing", 1, {"n": 1}, left))
    found = tensorfile.from_bytes(data, "thing", 1, source="a")
    with_metadata = {"collafuse": safetensors_metadata(data)}
    assert data == safetensors.numpy.save(tensors, metadata=with_metadata)
    assert all(np.array_equal(found.tensors[name], tensors[name]) for name in tensors)


def safetensors_metadata(data: bytes) -> str:
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length])["__metadata__"]["collafuse"]


def test_a_site_releases_from_a_file_into_a_file_and_leaves_nothing_else(tmp_path, no_memory):
    images = image_set(9)
    site = client(on_disk(images, tmp_path), config(cut={"sigma": 0.05}))
    made = site.release(tmp_path / "out" / "r", Ledger(tmp_path / "ledger"), simulated=False)
    assert isinstance(made.z, FileRows)
    del made
    assert os.listdir(tmp_path / "out") == ["r"]  # noqa: PTH208
    read = releases.read(tmp_path / "out" / "r", in_memory=True)
    assert np.array_equal(read.labels, images.labels[rows_of(read, images)])


@pytest.mark.parametrize("stop", ["the disk is full", "interrupted"])
def test_a_large_release_that_is_stopped_while_it_is_drawn_leaves_and_spends_nothing(
    tmp_path, no_memory, monkeypatch, stop
):
    images = image_set(4)
    ledger = Ledger(tmp_path / "ledger")

    def fail(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "full") if stop == "the disk is full" else KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(releases, "_spilled", fail)
        with pytest.raises(StorageError if stop == "the disk is full" else KeyboardInterrupt):
            client(images).release(tmp_path / "out" / "r", ledger, simulated=False)
    assert not list((tmp_path / "out").iterdir()) and not ledger.spent(images.digests).any()


def test_a_server_learns_the_same_from_files_bit_for_bit(tmp_path, monkeypatch):
    for name in ("a.safetensors", "a.2.safetensors"):
        (tmp_path / name).write_bytes(releases.to_bytes(release_of(0.5)))
    models = []
    for limit, kind in ((1 << 30, np.ndarray), (0, FileRows)):
        monkeypatch.setattr(rows, "IN_MEMORY_BYTES", limit)
        found = read_releases(tmp_path, accept_simulated=False)
        assert all(isinstance(release.z, kind) for release in found["a"])
        assert isinstance(training_data(found, ConditionSpace(("x", "y"))).images, JoinedRows) is (limit == 0)
        folder = NodeFolder(tmp_path / str(limit))
        train_server(config(), found, folder, CPU, Recorder())
        models.append(weights.load(folder.weights, "server"))
    assert models[0].id == models[1].id


def test_a_client_learns_the_same_from_a_file_bit_for_bit(tmp_path):
    images = image_set(9)
    models = [
        client(one).train(NodeFolder(tmp_path / name), CPU, Recorder())
        for name, one in (("memory", images), ("file", on_disk(images, tmp_path)))
    ]
    assert models[0].id == models[1].id
    sheets = [next((tmp_path / name / "samples").iterdir()).read_bytes() for name in ("memory", "file")]
    assert sheets[0] == sheets[1]


PEAK = """
import resource, sys
from pathlib import Path
import numpy as np
from collafuse.core import rows
from collafuse.data import cache
from collafuse.data.dealing import load_site
from collafuse.data.decoding import Decoded
from collafuse.data.images import Transform
from collafuse.nodes import client as clients
from collafuse.nodes.ledger import Ledger
from collafuse.nodes.runfolder import NodeFolder
from collafuse.nodes.server_training import train_server
from collafuse.nodes.sites import read_releases
from tests.nodes.sites import config
from tests.tiny import CPU, Recorder

rows.IN_MEMORY_BYTES, rows.BLOCK_BYTES, clients.BLOCK_VALUES = int(sys.argv[2]), 1 << 19, 1 << 18

def chunks(count):
    rng = np.random.default_rng(0)
    for _ in range(count // 100):
        digests = rng.integers(0, 256, (100, 32), dtype=np.uint8)
        yield Decoded(rng.integers(0, 256, (100, 3, 32, 32), dtype=np.uint8), digests, (), 100)

def whole_path(folder, count):
    root, names = folder / "images", [f"{i:05d}.png" for i in range(count)]
    root.mkdir(parents=True)
    for name in names:
        (root / name).touch()  # the cache knows them
    cache.keep(folder / "cache", cache.key_of(root, names, Transform(3, 32)), chunks(count))
    data = {"dataset": "folder", "path": root, "image_size": 32, "channels": 3, "cache": folder / "cache"}
    settings = config()
    settings = settings.model_copy(update={"data": settings.data.model_validate(data)})
    site = clients.Client(settings, "a", load_site(settings, "a"))
    site.release(folder / "in" / "a.safetensors", Ledger(folder / "ledger"), simulated=False)
    found = read_releases(folder / "in", accept_simulated=False)
    train_server(settings, found, NodeFolder(folder / "server"), CPU, Recorder())
    site.train(NodeFolder(folder / "a"), CPU, Recorder())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

peaks = [whole_path(Path(sys.argv[1]) / str(i), count) for i, count in enumerate((400, 400, 5000))]
print((peaks[2] - peaks[1]) / 1024)
"""


def peak_growth_mb(folder: Path, in_memory_bytes: int) -> float:
    """How much more memory a set of 15 MiB (29 MiB as a release) takes at its peak than one of 1 MiB, done twice."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    # What is freed goes back to the system, so that a peak shows what was held and not how malloc kept it.
    environment |= {"MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", PEAK, str(folder), str(in_memory_bytes)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


def test_memory_does_not_grow_with_the_set(tmp_path):
    assert peak_growth_mb(tmp_path, 1 << 20) < 12
