"""collafuse.core.atomic: a file is whole or not there, also when the disk is full or the process dies."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from collafuse.core import atomic
from collafuse.core.atomic import PARTIAL_PREFIX, atomic_file, check_output, write_bytes
from collafuse.core.errors import OutputExistsError, StorageError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_and_nothing_else(tmp_path):
    write_bytes(tmp_path / "a.bin", b"whole")
    assert (tmp_path / "a.bin").read_bytes() == b"whole"
    assert names(tmp_path) == ["a.bin"]


def test_folders_on_the_way_are_made(tmp_path):
    write_bytes(tmp_path / "new" / "deeper" / "a.bin", b"whole")
    assert (tmp_path / "new" / "deeper" / "a.bin").read_bytes() == b"whole"


def test_nobody_sees_the_file_before_the_block_ends(tmp_path):
    with atomic_file(tmp_path / "a.bin") as file:
        file.write(b"half")
        file.flush()
        assert not (tmp_path / "a.bin").exists()


def test_a_file_may_be_read_by_whom_the_umask_allows(tmp_path):
    write_bytes(tmp_path / "ours.bin", b"")
    (tmp_path / "theirs.bin").touch()
    ours, theirs = (stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("ours.bin", "theirs.bin"))
    assert ours == theirs


@pytest.mark.parametrize("kind", ["file", "folder", "dangling link"])
def test_an_existing_output_is_refused_before_the_block_begins(tmp_path, kind):
    path = tmp_path / "a.bin"
    {"file": path.touch, "folder": path.mkdir, "dangling link": lambda: path.symlink_to("nowhere")}[kind]()
    with pytest.raises(OutputExistsError, match=r"a\.bin exists already; choose another output or pass --overwrite"):
        with atomic_file(path):
            pytest.fail("the block was entered")
    assert names(tmp_path) == ["a.bin"]


def test_overwriting_on_request(tmp_path):
    write_bytes(tmp_path / "a.bin", b"old")
    write_bytes(tmp_path / "a.bin", b"new", overwrite=True)
    assert (tmp_path / "a.bin").read_bytes() == b"new"


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, OSError])
def test_a_failure_in_the_block_leaves_the_old_file(tmp_path, failure):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(StorageError if failure is OSError else failure), atomic_file(path, overwrite=True) as file:
        file.write(b"half of the new o")
        raise failure
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


def test_a_failure_in_the_block_leaves_nothing_where_nothing_was(tmp_path):
    with pytest.raises(ZeroDivisionError), atomic_file(tmp_path / "a.bin") as file:
        file.write(b"half")
        _ = 1 / 0
    assert names(tmp_path) == []


def test_a_file_that_another_process_wrote_meanwhile_is_kept(tmp_path):
    path = tmp_path / "a.bin"
    with pytest.raises(OutputExistsError, match="was written by another process meanwhile"):
        with atomic_file(path) as file:
            file.write(b"ours")
            path.write_bytes(b"theirs")
    assert path.read_bytes() == b"theirs"
    assert names(tmp_path) == ["a.bin"]


def test_a_file_system_without_hard_links_will_do(tmp_path, monkeypatch):
    def link(*_):  # as on FAT, which no test can mount everywhere
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    write_bytes(tmp_path / "a.bin", b"whole")
    assert (tmp_path / "a.bin").read_bytes() == b"whole"
    assert names(tmp_path) == ["a.bin"]


WITHOUT_LINKS = """
import os, sys, time
from pathlib import Path
from collafuse.core.atomic import write_bytes
from collafuse.core.errors import OutputExistsError

path, name, others = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])

def link(*_):
    (path.parent / f"here-{name}").touch()
    while len(list(path.parent.glob("here-*"))) < others:  # all have looked before any gives the name
        time.sleep(0.001)
    raise PermissionError(1, "Operation not permitted")

rename, os.link = os.rename, link
os.rename = lambda *paths: (time.sleep(0.1), rename(*paths))  # long enough for the others to come between
try:
    write_bytes(path, name.encode())
    print("kept")
except OutputExistsError as error:
    assert "was written by another process meanwhile" in str(error)
    print("refused")
"""


def test_of_several_processes_without_hard_links_one_writes_the_file_and_the_others_say_so(tmp_path):
    path, names_of = tmp_path / "a.bin", "one two three".split()
    command = [sys.executable, "-c", WITHOUT_LINKS, str(path)]
    running = {n: subprocess.Popen([*command, n, "3"], stdout=subprocess.PIPE, text=True) for n in names_of}
    said = {name: process.communicate(timeout=60)[0].strip() for name, process in running.items()}
    assert sorted(said.values()) == ["kept", "refused", "refused"]
    assert said[path.read_text()] == "kept"
    assert names(tmp_path) == ["a.bin", "here-one", "here-three", "here-two"]


def test_overwriting_a_folder_is_a_storage_error(tmp_path):
    (tmp_path / "a.bin").mkdir()
    with pytest.raises(StorageError, match=r"a\.bin: a folder lies there; choose another name\. Nothing was"):
        write_bytes(tmp_path / "a.bin", b"new", overwrite=True)
    assert names(tmp_path) == ["a.bin"]


def test_a_file_in_place_of_a_folder_is_a_storage_error(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(StorageError, match="a part of the path is a file, not a folder; choose another folder"):
            write_bytes(folder / "a.bin", b"new")


@pytest.fixture
def not_root():
    """Root may write everywhere, so it steps down for the test."""
    if not hasattr(os, "geteuid"):
        pytest.skip("only POSIX has users in this sense")
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    yield
    os.seteuid(user)


def test_a_folder_without_permission_is_a_storage_error(tmp_path, not_root):
    locked = Path(tmp_path.anchor)  # the root of the file system
    with pytest.raises(StorageError, match="writing there is not allowed; choose another folder"):
        write_bytes(locked / "collafuse-test.bin", b"new")


# --- before the work ----------------------------------------------------------------------------------------


def test_an_output_that_could_be_written_leaves_nothing_behind(tmp_path):
    check_output(tmp_path / "new" / "folder" / "a.bin", overwrite=False)
    (tmp_path / "old.bin").write_bytes(b"old")
    check_output(tmp_path / "old.bin", overwrite=True)
    assert names(tmp_path) == ["old.bin"] and (tmp_path / "old.bin").read_bytes() == b"old"


def test_an_output_that_could_not_be_written_is_refused_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing")
    with pytest.raises(OutputExistsError, match="file exists already"):
        check_output(tmp_path / "file", overwrite=False)
    for path, said in (
        ("file/a.bin", "a part of the path is a file"),
        ("file/deeper/a.bin", "a part of the path is a file"),
        ("nowhere/a.bin", "cannot write"),
    ):
        with pytest.raises(StorageError, match=said):
            check_output(tmp_path / path, overwrite=True)
    with pytest.raises(StorageError, match="a folder lies there"):
        check_output(tmp_path / "folder", overwrite=True)
    monkeypatch.chdir(tmp_path)
    check_output(Path("here.bin"), overwrite=False)


def test_a_folder_without_permission_is_found_before_the_work(tmp_path, not_root):
    with pytest.raises(StorageError, match="writing there is not allowed"):
        check_output(Path(tmp_path.anchor) / "collafuse-test" / "a.bin", overwrite=False)


# --- the disk is full, for real -----------------------------------------------------------------------------

WRITE_TOO_MUCH = """
import resource, sys
from pathlib import Path
from collafuse.core.atomic import write_bytes
from collafuse.core.errors import StorageError

path, limit = Path(sys.argv[1]), int(sys.argv[2])
write_bytes(path, b"old")
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    write_bytes(path, bytes(1 << 20), overwrite=True)
except StorageError as error:
    assert path.read_bytes() == b"old"
    assert [p.name for p in path.parent.iterdir()] == [path.name], list(path.parent.iterdir())
    print(error)
    sys.exit(error.exit_code)
"""


def test_a_file_over_the_size_limit_leaves_the_old_one_and_no_rest(tmp_path):
    pytest.importorskip("resource", reason="only POSIX limits the size of files")
    command = [sys.executable, "-c", WRITE_TOO_MUCH, str(tmp_path / "a.bin"), "65536"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == StorageError.exit_code, done.stderr
    assert "the file is larger than the file system allows" in done.stdout


def test_a_full_disk_leaves_the_old_file_and_no_rest(tmp_path):
    """On a file system of 256 KiB, mounted for one process alone."""
    mount = f"mount -t tmpfs -o size=256k tmpfs {tmp_path}"
    if (
        not shutil.which("unshare")
        or subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True).returncode
    ):
        pytest.skip("mounting a small file system needs root")
    script = f'{mount} && "$0" -c "$1" {tmp_path}/a.bin 0'
    command = ["unshare", "-m", "sh", "-c", script, sys.executable, WRITE_TOO_MUCH]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == StorageError.exit_code, done.stderr
    assert "the disk is full; free some space and run the command again" in done.stdout


DIE_IN_THE_BLOCK = """
import os, signal, sys
from pathlib import Path
from collafuse.core.atomic import atomic_file

with atomic_file(Path(sys.argv[1]), overwrite=True) as file:
    file.write(b"half of the new o")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_leaves_the_old_file(tmp_path):
    write_bytes(tmp_path / "a.bin", b"old")
    command = [sys.executable, "-c", DIE_IN_THE_BLOCK, str(tmp_path / "a.bin")]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert (tmp_path / "a.bin").read_bytes() == b"old"
    assert [name.startswith(PARTIAL_PREFIX) for name in names(tmp_path)] == [True, False]


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (28, "the disk is full"),
        (30, "the file system is read-only; choose another folder"),
        (2, "the folder does not exist; create it first"),
        (5, "Input/output error; choose another place or repair this one"),
    ],
)
def test_the_sentence_for_an_error_of_the_system(number, sentence):
    error = atomic.storage_error(Path("out/a.bin"), OSError(number, os.strerror(number)))
    assert str(error).startswith(f"cannot write out/a.bin: {sentence}")
