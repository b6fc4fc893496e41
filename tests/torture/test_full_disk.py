"""Every command that writes, on a disk that is full for real: a small file system of its own, filled up but for a
little. In short: tests/core/test_atomic.py, under all of them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from collafuse.core.atomic import PARTIAL_PREFIX
from collafuse.core.errors import StorageError
from tests.nursery import Nursery

pytestmark = pytest.mark.torture
DISK_KIB = 8192
TURNS = 10
BALLAST = "ballast"


class Disk:
    """A nursery whose commands see a small file system at ``path``; ``seen`` is the same place for this process."""

    def __init__(self, nursery: Nursery, path: Path) -> None:
        self.nursery, self.path = nursery, path
        self.seen = nursery.root / path.relative_to("/")

    @property
    def room(self) -> int:
        """Bytes that are free."""
        found = os.statvfs(self.seen)
        return found.f_bavail * found.f_frsize

    def fill(self, leaving: int) -> None:
        """Leave so many bytes free."""
        self.empty()
        (self.seen / BALLAST).write_bytes(bytes(max(0, self.room - leaving)))

    def needed_by(self, words: Sequence[object], out: Path) -> int:
        """How many bytes are taken by what a command leaves there, which is removed again."""
        before = self.room
        self.nursery.run(*words)
        needed = before - self.room
        shutil.rmtree(self.seen / out.name)
        return needed

    def empty(self) -> None:
        (self.seen / BALLAST).unlink(missing_ok=True)

    def held(self, name: str) -> dict[str, bytes]:
        """What lies at a name, file by file."""
        top = self.seen / name
        files = [top] if top.is_file() else [p for p in sorted(top.rglob("*")) if p.is_file()]
        return {str(p.relative_to(self.seen)): p.read_bytes() for p in files}


@pytest.fixture(scope="module")
def disk(tiny_run, tmp_path_factory) -> Iterator[Disk]:
    path = tmp_path_factory.mktemp("disk")
    mount = f'mount -t tmpfs -o size={DISK_KIB}k tmpfs {path} && exec "$@"'
    inside = ("unshare", "-m", "sh", "-c", mount, "sh")
    if not shutil.which("unshare") or subprocess.run([*inside, "true"], capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    with Nursery(tiny_run, inside) as nursery:
        nursery.run("--version")  # by now it is mounted
        yield Disk(nursery, path)


WRITERS = {
    "release": ("release", "tiny.yaml", "--client", "north", "--spend-again", "-o", "{out}", "--overwrite"),
    "deliver": ("deliver", "run", "--client", "north", "-n", 64, "-o", "{out}", "--overwrite"),
    "export-client": ("export-client", "run", "--client", "north", "-o", "{out}", "--overwrite"),
    "a picture of data": ("data", "tiny.yaml", "-o", "{out}", "--overwrite"),
}
"""Commands that write one thing, which may be there already."""


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_leaves_the_old_output_as_it_was(disk, name, figure):
    out = disk.path / name.replace(" ", "-")
    words = [str(word).format(out=out) for word in WRITERS[name]]
    disk.nursery.run(*words)
    old = disk.held(out.name)
    size = sum(map(len, old.values()))
    for turn in range(TURNS):
        disk.fill(leaving=turn * size // TURNS // 2)
        said = disk.nursery.run(*words, code=StorageError.exit_code)
        assert "disk is full" in said and said.rstrip().count("\n") <= 3, said
        disk.empty()
        assert disk.held(out.name) == old
        assert not list(disk.seen.rglob(f"{PARTIAL_PREFIX}*"))
    disk.nursery.run(*words)
    figure(f"disk full, {name}: {TURNS}/{TURNS} exit code {StorageError.exit_code}, the old output intact")


def test_finishing_goes_on_once_there_is_room(disk, tiny_run, figure):
    out = disk.path / "pictures"
    words = ("finish", "north.onnx", "north.safetensors", "-o", out)
    needed = disk.needed_by(words, out)
    for turn in range(TURNS):
        disk.fill(leaving=turn * needed // TURNS)
        disk.nursery.run(*words, code=StorageError.exit_code)
        disk.empty()
        kept = {n: d for n, d in disk.held(out.name).items() if n.endswith(".png")}
        disk.nursery.run(*words)
        assert kept.items() <= disk.held(out.name).items()
        shutil.rmtree(disk.seen / out.name)
    figure(f"disk full, finish: {TURNS}/{TURNS} exit code {StorageError.exit_code}, whole pictures kept and gone on")


def test_a_training_goes_on_once_there_is_room(disk, tiny_run, figure):
    whole = (tiny_run / "run/clients/north/weights.safetensors").read_bytes()
    out = disk.path / "run"
    words = ("train-client", "tiny.yaml", "--client", "north", "-o", out, "--device", "cpu", "--resume")
    needed = disk.needed_by(words, out)
    for turn in range(TURNS):
        disk.fill(leaving=turn * needed // TURNS)
        disk.nursery.run(*words, code=StorageError.exit_code)
        assert not list(disk.seen.rglob(f"{PARTIAL_PREFIX}*"))
        disk.empty()
        disk.nursery.run(*words)
        assert (disk.seen / out.name / "clients/north/weights.safetensors").read_bytes() == whole
        shutil.rmtree(disk.seen / out.name)
    figure(f"disk full, training: {TURNS}/{TURNS} exit code {StorageError.exit_code}, resumed to the same weights")


def test_a_ledger_without_room_spends_nothing(disk, figure):
    for turn in range(TURNS):
        place = disk.path / f"site-{turn}"
        ledger = ("--set", f"clients.north.ledger={place}/ledger.sqlite")
        words = ("release", "tiny.yaml", "--client", "north", "-o", place / "a.safetensors", *ledger)
        disk.fill(leaving=4096 * (2 + 4 * turn))
        disk.nursery.run(*words, "--new-ledger", code=StorageError.exit_code)
        assert not list(place.glob("*.safetensors"))
        disk.empty()
        disk.nursery.run(*words, "--new-ledger")  # the very first release, still
        shutil.rmtree(disk.seen / place.name)
    figure(f"disk full, ledger: {TURNS}/{TURNS} exit code {StorageError.exit_code}, no image spent")
