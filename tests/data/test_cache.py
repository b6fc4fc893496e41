"""Decoding once: the same pixels from the cache, decoded again when anything changed, and never half an entry."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from collafuse.config import DataSettings
from collafuse.core import rows
from collafuse.core.errors import DataError, StorageError
from collafuse.data import cache as caches
from collafuse.data import decoding, listing
from collafuse.data.datasets import load
from collafuse.data.decoding import Decoded
from collafuse.data.images import Transform
from collafuse.data.imageset import ImageSet
from tests.data.hearing import Heard

TRANSFORM = Transform(1, 4)


def images(root: Path, count: int = 6) -> Path:
    (root / "x").mkdir(parents=True)
    for level in range(count):
        Image.new("L", (8, 6), level * 10).save(root / "x" / f"{level}.png")
    (root / "x" / "bad.png").write_bytes(b"no image")
    return root


def read(root: Path, cache: Path | None, heard: Heard | None = None, **changes: Any) -> ImageSet:
    values = {"dataset": "folder", "path": root, "image_size": 4, "channels": 1, "cache": cache} | changes
    return load(DataSettings(**values), listener=heard or Heard())


def entries(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir())


def chunk(count: int = 3) -> Decoded:
    pixels = np.arange(count * 16, dtype=np.uint8).reshape(count, 1, 4, 4)
    return Decoded(pixels, np.zeros((count, 32), dtype=np.uint8), (), count)


def test_what_comes_from_the_cache_is_what_was_decoded(tmp_path):
    root, cache = images(tmp_path / "in"), tmp_path / "cache"
    plain, first = read(root, None), read(root, cache)
    heard = Heard()
    second = read(root, cache, heard)
    assert heard.bars == {} and len(entries(cache)) == 1  # nothing was decoded
    for found in (first, second):
        assert np.array_equal(found.pixels, plain.pixels) and np.array_equal(found.digests, plain.digests)
        assert np.array_equal(found.labels, plain.labels) and np.array_equal(found.sources, plain.sources)
        assert found.problems == plain.problems and len(found.problems) == 1
    assert isinstance(second.pixels, np.memmap) and "bad.png" in heard.said[0]


def change_a_file(root: Path) -> dict[str, Any]:
    Image.new("L", (8, 6), 200).save(root / "x" / "0.png")
    return {}


def touch_a_file(root: Path) -> dict[str, Any]:
    os.utime(root / "x" / "0.png", ns=(1, 1))
    return {}


def remove_a_file(root: Path) -> dict[str, Any]:
    (root / "x" / "0.png").unlink()
    return {}


def rename_a_file(root: Path) -> dict[str, Any]:
    (root / "x" / "0.png").rename(root / "x" / "zero.png")
    return {}


@pytest.mark.parametrize(
    "change",
    [
        change_a_file,
        touch_a_file,
        remove_a_file,
        rename_a_file,
        lambda root: {"image_size": 5},
        lambda root: {"channels": 3},
        lambda root: {"fit": "pad"},
    ],
)
def test_any_change_of_files_or_transform_decodes_again(tmp_path, change):
    root, cache = images(tmp_path / "in"), tmp_path / "cache"
    read(root, cache)
    changes = change(root)
    heard = Heard()
    again, plain = read(root, cache, heard, **changes), read(root, None, **changes)
    assert heard.bars and len(entries(cache)) == 2
    assert np.array_equal(again.pixels, plain.pixels) and np.array_equal(again.sources, plain.sources)


@pytest.mark.parametrize(
    "damage", ["pixels cut", "pixels longer", "digests gone", "about empty", "about foreign", "a place too far"]
)
def test_a_damaged_entry_is_made_again(tmp_path, damage):
    root, cache = images(tmp_path / "in"), tmp_path / "cache"
    whole = read(root, cache).pixels.copy()
    (folder,) = cache.iterdir()
    if damage == "pixels cut":
        os.truncate(folder / caches.PIXELS, 10)
    elif damage == "pixels longer":
        (folder / caches.PIXELS).write_bytes(bytes(1000))
    elif damage == "digests gone":
        (folder / caches.DIGESTS).unlink()
    else:
        texts = {"about empty": "", "about foreign": '{"problems": 7}', "a place too far": '{"problems": [[7, "x"]]}'}
        (folder / caches.ABOUT).write_text(texts[damage])
    heard = Heard()
    assert np.array_equal(read(root, cache, heard).pixels, whole) and heard.bars
    assert entries(cache) == [folder.name]


def test_a_set_larger_than_memory_stays_in_the_cache_and_is_the_same(tmp_path, monkeypatch):
    root, cache = images(tmp_path / "in"), tmp_path / "cache"
    whole = read(root, cache)
    monkeypatch.setattr(rows, "IN_MEMORY_BYTES", whole.pixels.size - 1)
    large = read(root, cache)
    assert isinstance(large.pixels, rows.FileRows) and isinstance(large.take(np.arange(2)).pixels, rows.FileRows)
    order = np.array([5, 0, 0, 3])
    assert np.array_equal(large.take(order).pixels, whole.take(order).pixels)
    assert np.array_equal(large.take(order).x0(), whole.take(order).x0())


def test_a_set_larger_than_memory_is_refused_where_nothing_keeps_it(tmp_path, monkeypatch):
    root = images(tmp_path / "in")
    monkeypatch.setattr(listing, "MAX_IMAGE_BYTES", 100)
    with pytest.raises(DataError, match=r"7 images, .*not held in memory; set data\.cache to a folder"):
        read(root, None)
    assert len(read(root, tmp_path / "cache")) == 6


def test_where_nothing_can_be_read_nothing_is_kept(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"none of the 1 images .* the first: .*a\.png"):
        read(tmp_path / "in", tmp_path / "cache")
    assert entries(tmp_path / "cache") == []


def test_only_its_owner_can_read_an_entry(tmp_path):
    read(images(tmp_path / "in"), tmp_path / "cache")
    (folder,) = (tmp_path / "cache").iterdir()
    assert folder.stat().st_mode & 0o077 == 0


def test_without_a_cache_no_copy_of_an_image_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    read(images(tmp_path / "in"), None)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


# --- interruption, two at once, a full disk -----------------------------------------------------------------


def test_an_interrupted_decoding_leaves_nothing(tmp_path):
    def chunks() -> Iterator[Decoded]:
        yield chunk()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        caches.keep(tmp_path, "key", chunks())
    assert entries(tmp_path) == [] and caches.find(tmp_path, "key", 6, TRANSFORM) is None


KILLED = """
import sys, time
from pathlib import Path
from collafuse.data import cache
from tests.data.test_cache import chunk

def chunks():
    yield chunk()
    print("writing", flush=True)
    time.sleep(60)

cache.keep(Path(sys.argv[1]), "key", chunks())
"""


def test_a_killed_process_leaves_no_entry_and_its_remains_are_removed_a_day_later(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, cwd=Path.cwd())
    assert process.stdout is not None and process.stdout.readline() == b"writing\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert caches.find(tmp_path, "key", 3, TRANSFORM) is None
    caches.keep(tmp_path, "key", [chunk()])
    (left,) = tmp_path.glob(".partial-*")  # it could still be at work
    assert caches.find(tmp_path, "key", 3, TRANSFORM) is not None
    for path in (left, *left.iterdir()):
        os.utime(path, (time.time() - 90_000,) * 2)
    caches.keep(tmp_path, "other", [chunk()])
    assert entries(tmp_path) == ["key", "other"]


def test_of_two_that_start_together_both_get_the_same_whole_entry(tmp_path):
    together = threading.Barrier(4)

    def make() -> None:
        def chunks() -> Iterator[Decoded]:
            yield chunk()
            together.wait()
            yield chunk()

        caches.keep(tmp_path, "key", chunks())

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    entry = caches.find(tmp_path, "key", 6, TRANSFORM)
    assert entries(tmp_path) == ["key"] and np.array_equal(entry.pixels, np.concatenate([chunk().pixels] * 2))


def test_an_entry_that_is_named_while_another_looks_for_remains_is_no_failure(tmp_path, monkeypatch):
    root, cache = images(tmp_path / "in"), tmp_path / "cache"
    monkeypatch.setattr(Path, "glob", lambda folder, pattern: iter([folder / ".partial-named"]))
    assert len(read(root, cache).pixels) and len(entries(cache)) == 1


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("words")
    with pytest.raises(StorageError, match=r"file/cache: a part of the path is a file"):
        read(images(tmp_path / "in"), tmp_path / "file" / "cache")


# --- many files ---------------------------------------------------------------------------------------------


def test_processes_decode_what_threads_do_in_the_same_order(tmp_path, monkeypatch):
    root = images(tmp_path, 20)
    monkeypatch.setattr(decoding, "CHUNK", 3)
    by_threads = read(root, None)
    monkeypatch.setattr(decoding, "PROCESSES_FROM", 1)
    monkeypatch.setattr(decoding, "_cores", lambda: 2)
    heard = Heard()
    by_processes = read(root, None, heard)
    assert np.array_equal(by_processes.pixels, by_threads.pixels) and by_processes.problems == by_threads.problems
    assert heard.advanced == 21


UNGUARDED = """
import sys
from pathlib import Path
from collafuse.config import DataSettings
from collafuse.data import decoding, listing
from collafuse.data.datasets import load

print("once")
decoding.PROCESSES_FROM, decoding._cores = 1, lambda: 2
print(len(load(DataSettings(dataset="folder", path=Path(sys.argv[1]), image_size=4, channels=1))))
"""


def test_a_script_without_a_main_guard_is_not_run_again_by_the_processes(tmp_path):
    root = images(tmp_path / "in")
    (tmp_path / "script.py").write_text(UNGUARDED)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, tmp_path / "script.py", root], capture_output=True, text=True, check=False, env=environment
    )
    assert done.stdout == "once\n6\n" and not done.stderr
