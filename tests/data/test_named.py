"""Published data sets: the real readers on small files in each set's true layout."""

from __future__ import annotations

import gzip
import hashlib
import os
import pickle  # noqa: TID251 -- to make a file that must not be read
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

from collafuse.config import Config, DataSettings, from_mapping
from collafuse.core.errors import DataError
from collafuse.data.datasets import fetch_missing, load
from collafuse.data.dealing import load_site, load_sites
from collafuse.data.images import pixel_digest
from collafuse.data.named import fetch
from collafuse.data.published import PUBLISHED
from tests.data.published import CELEBA_NAMES, LABELS, TEST, TRAIN, WRITERS

SHAPES = {"celeba": {"image_size": 12, "channels": 3}}


def settings(name: str, root: Path, **changes: Any) -> DataSettings:
    return DataSettings(**({"dataset": name, "path": root} | SHAPES.get(name, {}) | changes))


@pytest.fixture(params=WRITERS)
def written(request, tmp_path, monkeypatch) -> tuple[str, Path]:
    WRITERS[request.param](tmp_path, monkeypatch)
    return request.param, tmp_path


def test_the_training_images_are_read_with_their_labels_in_their_own_size(written):
    name, root = written
    found = load(settings(name, root))
    assert len(found) == TRAIN and found.label_names == LABELS[name] and found.test_part is None
    assert found.pixels.shape[1:] == settings(name, root).image_shape and found.pixels.std() > 20
    if name != "celeba":
        assert found.labels.argmax(axis=1).tolist() == [i % len(LABELS[name]) for i in range(TRAIN)]
        assert (found.labels.sum(axis=1) == 1).all()


def test_the_official_split_is_what_is_held_out(written):
    name, root = written
    values = settings(name, root, official_split=True).model_dump(exclude_none=True)
    site = load_site(from_mapping({"data": values, "clients": {"a": {"cut": {"sigma": 1.0}}}}), "a")
    assert (len(site.train), len(site.held_out)) == (TRAIN, TEST)
    assert np.array_equal(site.train.digests, load(settings(name, root)).digests)


def test_what_is_missing_is_named_with_its_source_and_its_terms(written, tmp_path):
    name, _ = written
    published = PUBLISHED[name]
    with pytest.raises(DataError) as refused:
        load(settings(name, tmp_path / "elsewhere"))
    for part in (published.title, published.files[0], "elsewhere", published.page, published.terms, "--download"):
        assert part in str(refused.value)


def test_every_expected_file_is_needed(written):
    name, root = written
    for expected in PUBLISHED[name].files:
        (root / expected).rename(root / "aside")
        with pytest.raises(DataError, match=f"needs {expected} in"):
            load(settings(name, root))
        (root / "aside").rename(root / expected)
    load(settings(name, root))


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_changed_files_are_refused(name, tmp_path, monkeypatch):
    WRITERS[name](tmp_path, monkeypatch)
    changed = tmp_path / PUBLISHED[name].files[1]
    changed.write_bytes(changed.read_bytes()[:-1])
    with pytest.raises(DataError, match="are not as published"):
        load(settings(name, tmp_path))


class Trap:
    def __reduce__(self):
        return os.mkdir, ("sprung",)


def test_a_batch_that_is_not_the_published_one_is_never_unpickled(tmp_path, monkeypatch):
    WRITERS["cifar10"](tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)
    for name in ("data_batch_1", "batches.meta"):
        path = tmp_path / "cifar-10-batches-py" / name
        good = path.read_bytes()
        path.write_bytes(pickle.dumps(Trap(), protocol=2))
        with pytest.raises(DataError, match="are not as published"):
            load(settings("cifar10", tmp_path))
        path.write_bytes(good)
    assert not (tmp_path / "sprung").exists()
    pickle.loads(pickle.dumps(Trap(), protocol=2))  # noqa: S301 -- the trap does work
    assert (tmp_path / "sprung").exists()


def test_tensors_saved_by_an_old_torchvision_are_not_looked_at(tmp_path, monkeypatch):
    WRITERS["mnist"](tmp_path, monkeypatch)
    (tmp_path / "MNIST" / "processed").mkdir()
    for name in ("training.pt", "test.pt"):
        (tmp_path / "MNIST" / "processed" / name).write_bytes(b"not to be read")
    assert len(load(settings("mnist", tmp_path))) == TRAIN


@pytest.mark.parametrize("damage", ["labels of other images", "a label out of range", "a header", "empty"])
def test_damaged_mnist_files_are_refused(tmp_path, monkeypatch, damage):
    WRITERS["mnist"](tmp_path, monkeypatch)
    path = tmp_path / "MNIST/raw/train-labels-idx1-ubyte"
    data = bytearray(path.read_bytes())
    if damage == "labels of other images":
        data = bytearray((tmp_path / "MNIST/raw/t10k-labels-idx1-ubyte").read_bytes())
    elif damage == "a label out of range":
        data[-1] = 10
    elif damage == "a header":
        data[2] = 0xFF
    else:
        data.clear()
    path.write_bytes(data)
    with pytest.raises(DataError, match="are not as published"):
        load(settings("mnist", tmp_path))


def test_another_size_and_colour_are_made_and_the_digest_is_that_of_the_original(tmp_path, monkeypatch):
    WRITERS["cifar10"](tmp_path, monkeypatch)
    native, small = load(settings("cifar10", tmp_path)), load(settings("cifar10", tmp_path, image_size=8, channels=1))
    assert small.pixels.shape == (TRAIN, 1, 8, 8) and np.array_equal(native.digests, small.digests)
    image = Image.fromarray(native.pixels[3].transpose(1, 2, 0))
    expected = np.asarray(image.convert("L").resize((8, 8), Image.Resampling.LANCZOS))
    assert np.array_equal(small.pixels[3, 0], expected)


def test_a_set_is_the_same_images_as_its_copy_in_files(tmp_path, monkeypatch):
    WRITERS["mnist"](tmp_path, monkeypatch)
    digits = load(settings("mnist", tmp_path))
    for row in range(3):
        assert digits.digests[row].tobytes() == pixel_digest(digits.pixels[row].transpose(1, 2, 0))


# --- CelebA -------------------------------------------------------------------------------------------------


def celeba(root: Path, clients: dict[str, Any], **data: Any) -> Config:
    values = {"dataset": "celeba", "path": str(root), **SHAPES["celeba"], **data}
    return from_mapping({"data": values, "client": {"cut": {"sigma": 1.0}}, "clients": clients})


def test_celeba_s_attributes_are_read_by_name(tmp_path, monkeypatch):
    WRITERS["celeba"](tmp_path, monkeypatch)
    found = load(settings("celeba", tmp_path))
    signs = np.random.default_rng(1).choice([-1, 1], (TRAIN + TEST, len(CELEBA_NAMES)))
    assert np.array_equal(found.labels, (signs[:TRAIN] > 0).astype(np.uint8))
    assert found.sources[:2].tolist() == ["000001.jpg", "000002.jpg"] and found.groups[:3].tolist() == ["1", "1", "2"]


def test_celeba_s_sites_hold_attributes_and_nobody_is_on_both_sides(tmp_path, monkeypatch):
    WRITERS["celeba"](tmp_path, monkeypatch)
    clients = {"glasses": {"labels": ["Eyeglasses", "Wearing_Hat"]}, "men": {"labels": "Male and not Eyeglasses"}}
    sites = load_sites(celeba(tmp_path, clients, held_out=0.4))
    assert sites["glasses"].train.labels.any(axis=1).all()
    for site in sites.values():
        assert not set(site.train.groups.tolist()) & set(site.held_out.groups.tolist())


def test_a_damaged_face_is_left_out_and_named(tmp_path, monkeypatch):
    WRITERS["celeba"](tmp_path, monkeypatch)
    (tmp_path / "celeba/img_align_celeba/000003.jpg").write_bytes(b"")
    found = load(settings("celeba", tmp_path))
    assert len(found) == TRAIN - 1 and "000003.jpg" in found.problems[0] and "000003.jpg" not in found.sources


# --- fetching -----------------------------------------------------------------------------------------------


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """A web server of this folder on this machine."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def test_a_set_is_fetched_only_when_asked_and_then_read(tmp_path, monkeypatch):
    source, target = tmp_path / "server", tmp_path / "data"
    WRITERS["mnist"](source, monkeypatch)
    resources = []
    for path in sorted((source / "MNIST/raw").iterdir()):
        packed = gzip.compress(path.read_bytes())
        (source / f"{path.name}.gz").write_bytes(packed)
        resources.append((f"{path.name}.gz", hashlib.md5(packed, usedforsecurity=False).hexdigest()))
    monkeypatch.setattr(datasets.MNIST, "resources", resources)
    with pytest.raises(DataError, match="--download"):
        load(settings("mnist", target))
    assert not target.exists()
    values = settings("mnist", target).model_dump(exclude_none=True)
    config = from_mapping({"data": values, "clients": {"a": {"cut": {"sigma": 1.0}}}})
    with serving(source) as address:
        monkeypatch.setattr(datasets.MNIST, "mirrors", [address])
        fetch_missing(config, None)
    fetch_missing(config, "a")  # the server is gone, but nothing is missing
    assert np.array_equal(load(settings("mnist", target)).digests, load(settings("mnist", source)).digests)


def test_a_set_that_cannot_be_fetched_is_named_with_where_it_comes_from(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.CIFAR10, "url", (tmp_path / "gone.tar.gz").as_uri())
    with pytest.raises(DataError, match=r"CIFAR-10 .* could not be downloaded .* get it by hand.*cs\.toronto\.edu"):
        fetch(tmp_path / "data", settings("cifar10", tmp_path / "data"))
