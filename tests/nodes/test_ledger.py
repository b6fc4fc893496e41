"""A site's ledger: no image is released twice, whatever stops the machine and whoever else is at work."""

from __future__ import annotations

import errno
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from collafuse.core.errors import FileFormatError, OutputExistsError, RefusedError, StorageError
from collafuse.nodes import ledger as module
from collafuse.nodes.ledger import Ledger
from tests.damage import truncations

IMAGES = np.arange(5 * 32, dtype=np.uint8).reshape(5, 32)

COMMIT = """
import sys, time, os, signal
from pathlib import Path
import numpy as np
from collafuse.core.errors import RefusedError
from collafuse.nodes import ledger
folder, data = Path(sys.argv[1]), sys.argv[3].encode()
images = np.arange(5 * 32, dtype=np.uint8).reshape(5, 32)
def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)
{setup}
try:
    site = ledger.Ledger(folder / "ledger.sqlite")
    site.commit(images, 0.5, folder / sys.argv[2], lambda file: file.write(data), spend_again=False, overwrite=False)
    print("won")
except RefusedError:
    print("refused")
"""


def start(folder: Path, name: str, data: str, setup: str = "") -> subprocess.Popen[str]:
    """A process that releases the five images; ``setup`` runs just before."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", COMMIT.format(setup=setup), str(folder), name, data]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def killed(folder: Path, setup: str) -> bool:
    """Whether a process that releases the five images to ``a`` was killed on the way."""
    process = start(folder, "a", "first", setup)
    process.communicate(timeout=60)
    return process.returncode == -signal.SIGKILL


def commit(ledger: Ledger, path: Path, images: np.ndarray = IMAGES, data: bytes = b"first", **options: bool) -> None:
    allowed = {"spend_again": False, "overwrite": False} | options
    ledger.commit(images, 0.5, path, lambda file: file.write(data), **allowed)


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "books" / "ledger.sqlite")


def files(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.is_file() and not p.name.startswith("ledger"))


def test_a_commit_writes_the_file_and_spends_its_images(ledger, tmp_path):
    assert not ledger.spent(IMAGES).any()
    commit(ledger, tmp_path / "out" / "a", IMAGES[:3])
    assert files(tmp_path / "out") == ["a"] and (tmp_path / "out" / "a").read_bytes() == b"first"
    assert Ledger(ledger.path).spent(IMAGES).tolist() == [True, True, True, False, False]


def test_a_second_release_is_refused_and_nothing_is_written_or_spent(ledger, tmp_path):
    commit(ledger, tmp_path / "a", IMAGES[:3])
    before = files(tmp_path)
    with pytest.raises(RefusedError, match="1 of 3 images were released before.*first release's file.*--spend-again"):
        commit(ledger, tmp_path / "b", IMAGES[2:])
    assert files(tmp_path) == before
    assert not ledger.spent(IMAGES[3:]).any()


def test_a_second_release_can_be_forced_and_stays_on_record(ledger, tmp_path):
    commit(ledger, tmp_path / "a")
    commit(ledger, tmp_path / "b", data=b"second", spend_again=True)
    assert (tmp_path / "b").read_bytes() == b"second" and (tmp_path / "a").read_bytes() == b"first"
    with sqlite3.connect(ledger.path) as connection:
        spent = connection.execute("SELECT count(*), count(DISTINCT release) FROM spent").fetchone()
    connection.close()
    assert spent == (10, 2)


def test_an_existing_file_is_not_overwritten_and_nothing_is_spent(ledger, tmp_path):
    (tmp_path / "a").write_bytes(b"mine")
    with pytest.raises(OutputExistsError):
        commit(ledger, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"mine" and not ledger.spent(IMAGES).any()
    commit(ledger, tmp_path / "a", overwrite=True)
    assert (tmp_path / "a").read_bytes() == b"first"


# --- interruptions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "setup",
    [
        "os.link = die",  # the file lies whole under its temporary name
        "Path.unlink = lambda self, **_: die()",  # it has both names
        "ledger.sync_folder = lambda at: (at / 'a').exists() and die()",  # it has its name, the ledger does not know
        "ledger.Ledger._mark = die",
    ],
)
def test_a_release_that_was_killed_after_it_was_recorded_is_completed_with_the_same_bytes(tmp_path, setup):
    assert killed(tmp_path, setup)
    ledger = Ledger(tmp_path / "ledger.sqlite")
    assert ledger.spent(IMAGES).all()
    ledger.recover(tmp_path / "a")
    assert files(tmp_path) == ["a"] and (tmp_path / "a").read_bytes() == b"first"
    assert not ledger.recover(tmp_path / "a")  # and once only
    with pytest.raises(RefusedError):
        commit(ledger, tmp_path / "b")


@pytest.mark.parametrize(
    "setup", ["os.fsync = die", "ledger._spent = die", "ledger.datetime = type('Clock', (), {'now': die})"]
)
def test_a_release_that_was_killed_before_it_was_recorded_spends_nothing(tmp_path, setup):
    assert killed(tmp_path, setup)
    ledger = Ledger(tmp_path / "ledger.sqlite")
    assert not ledger.spent(IMAGES).any() and not ledger.recover(tmp_path / "a")
    assert not (tmp_path / "a").exists()
    commit(ledger, tmp_path / "a", data=b"anew")
    # What the killed process had written is gone: it was another noisy copy of the same images.
    assert files(tmp_path) == ["a"] and (tmp_path / "a").read_bytes() == b"anew"


def test_what_is_waiting_for_its_name_is_not_taken_for_a_leftover_and_replaces_nothing(tmp_path):
    killed(tmp_path, "os.link = die")
    ledger = Ledger(tmp_path / "ledger.sqlite")
    commit(ledger, tmp_path / "a", np.roll(IMAGES, 1, axis=1), b"others", spend_again=True, overwrite=True)
    with pytest.raises(OutputExistsError, match="recorded as released.*lies finished in.*run the same command again"):
        ledger.recover(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"others"
    (tmp_path / "a").rename(tmp_path / "b")
    assert ledger.recover(tmp_path / "a") and (tmp_path / "a").read_bytes() == b"first"


def test_a_refusal_names_the_release_that_waits_for_its_name(tmp_path):
    killed(tmp_path, "os.link = die")
    with pytest.raises(RefusedError, match=rf"interrupted after it was recorded.*-o {tmp_path}/a to complete"):
        commit(Ledger(tmp_path / "ledger.sqlite"), tmp_path / "b")


def test_a_name_that_cannot_be_given_leaves_a_finished_release_and_says_that_it_is_spent(ledger, tmp_path, monkeypatch):
    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(module, "give_name", full)
    with pytest.raises(
        StorageError, match="no space left.*recorded as released in .*ledger.sqlite.*finished in"
    ) as info:
        commit(ledger, tmp_path / "a")
    waiting = next(tmp_path.glob(".release-*.partial"))
    assert str(waiting) in str(info.value) and waiting.read_bytes() == b"first" and ledger.spent(IMAGES).all()
    monkeypatch.undo()
    assert ledger.recover(tmp_path / "a") and files(tmp_path) == ["a"]


@pytest.mark.skipif(sys.platform != "linux", reason="needs a device that is always full, as Linux has")
def test_a_full_disk_spends_nothing_and_is_named(ledger, tmp_path, monkeypatch):
    opened = Path.open
    full = lambda path, mode="r", **rest: opened(Path("/dev/full") if ".partial" in path.name else path, "wb")  # noqa: E731
    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(StorageError, match=rf"cannot write {tmp_path}/a: the disk is full"):
        commit(ledger, tmp_path / "a")
    monkeypatch.undo()
    assert files(tmp_path) == [] and not ledger.spent(IMAGES).any()


def test_ctrl_c_before_it_was_recorded_leaves_nothing_behind(ledger, tmp_path, monkeypatch):
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_spent", interrupt)
    with pytest.raises(KeyboardInterrupt):
        commit(ledger, tmp_path / "a")
    monkeypatch.undo()
    assert files(tmp_path) == [] and not ledger.spent(IMAGES).any()


def test_ctrl_c_just_after_it_was_recorded_loses_nothing(ledger, tmp_path, monkeypatch):
    class Interrupted(sqlite3.Connection):
        def execute(self, sql, *values):
            done = super().execute(sql, *values)
            if sql == "COMMIT":
                raise KeyboardInterrupt
            return done

    connect = sqlite3.connect
    with monkeypatch.context() as patch:
        patch.setattr(module.sqlite3, "connect", lambda path, **rest: connect(path, factory=Interrupted, **rest))
        with pytest.raises(KeyboardInterrupt):
            commit(ledger, tmp_path / "a")
    assert ledger.spent(IMAGES).all()
    assert ledger.recover(tmp_path / "a") and (tmp_path / "a").read_bytes() == b"first"


def test_a_release_waiting_for_its_name_belongs_to_its_own_path(tmp_path):
    killed(tmp_path, "os.link = die")
    ledger = Ledger(tmp_path / "ledger.sqlite")
    assert not ledger.recover(tmp_path / "b") and not (tmp_path / "a").exists()
    assert ledger.recover(tmp_path / "a")


def test_a_relative_path_is_recovered_from_wherever_the_next_call_stands(tmp_path, monkeypatch):
    killed(tmp_path, "os.link = die")
    monkeypatch.chdir(tmp_path)
    assert Ledger(Path("ledger.sqlite")).recover(Path("a")) and Path("a").read_bytes() == b"first"


# --- others at work -----------------------------------------------------------------------------------------


def test_of_several_processes_at_once_only_one_releases(tmp_path):
    wait = "while not (folder / 'go').exists(): time.sleep(0.001)"
    running = [start(tmp_path, f"out-{i}", f"bytes of {i}", wait) for i in range(4)]
    time.sleep(1.0)
    (tmp_path / "go").touch()
    answers = [process.communicate(timeout=60)[0].strip() for process in running]
    assert sorted(answers) == ["refused", "refused", "refused", "won"]
    winner = answers.index("won")
    assert files(tmp_path) == ["go", f"out-{winner}"]
    assert (tmp_path / f"out-{winner}").read_text() == f"bytes of {winner}"


def test_a_ledger_that_is_locked_is_waited_for_and_then_named(ledger, tmp_path, monkeypatch):
    connect = sqlite3.connect
    monkeypatch.setattr(module.sqlite3, "connect", lambda path, **options: connect(path, **(options | {"timeout": 0})))
    ledger.spent(IMAGES)
    other = connect(ledger.path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StorageError, match="busy or unreachable.*try again"):
        commit(ledger, tmp_path / "a")
    other.close()
    assert files(tmp_path) == []


# --- damage -------------------------------------------------------------------------------------------------


def test_a_damaged_ledger_is_refused_and_nothing_is_released(ledger, tmp_path):
    commit(ledger, tmp_path / "a")
    whole = ledger.path.read_bytes()
    # A few bytes short of the last page SQLite still reads everything, so a whole page is missing here.
    foreign = [b"words " * 1000, whole[:100] + bytes(len(whole) - 100), b"\0" * len(whole)]
    for spoiled in (*[t for t in truncations(whole[:-4096], 5) if t], *foreign):
        ledger.path.write_bytes(spoiled)
        with pytest.raises(FileFormatError, match="cannot be used.*nothing is released"):
            commit(ledger, tmp_path / "b", spend_again=True)
        assert files(tmp_path) == ["a"] and ledger.path.read_bytes() == spoiled


@pytest.mark.parametrize("kind", ["a folder", "below a file"])
def test_a_ledger_that_cannot_be_written_is_named(tmp_path, kind):
    (tmp_path / "file").write_text("words")
    (tmp_path / "folder").mkdir()
    ledger = Ledger(tmp_path / ("folder" if kind == "a folder" else "file/ledger.sqlite"))
    with pytest.raises(StorageError, match="folder|file"):
        commit(ledger, tmp_path / "a")
    assert files(tmp_path) == ["file"]


@pytest.mark.parametrize("found", ["nothing", "an empty file"])
def test_where_no_ledger_lies_none_is_begun_in_silence(ledger, tmp_path, found):
    if found == "an empty file":
        ledger.path.parent.mkdir()
        ledger.path.write_bytes(b"")
    with pytest.raises(RefusedError, match="--new-ledger"):
        ledger.require()
    commit(ledger, tmp_path / "a")
    ledger.require()
