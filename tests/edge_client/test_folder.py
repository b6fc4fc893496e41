"""edge_client.folder: an interrupted job goes on, and nobody else's files are touched."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from collafuse.core import intermediate as intermediates
from collafuse.core.conditioning import ConditionSpace
from collafuse.core.errors import MismatchError, OutputExistsError, StorageError
from collafuse.core.intermediate import Intermediate, IntermediateFile
from edge_client import Finisher, folder, job
from edge_client.folder import Job, JobFolder, picture_text, read_record
from edge_client.job import Report, finish_to_folder
from tests.bundles import SHAPE, halving_bundle, resealed, steered_bundle


@pytest.fixture
def finisher(tmp_path) -> Finisher:
    (tmp_path / "halving.onnx").write_bytes(halving_bundle())
    return Finisher.load(tmp_path / "halving.onnx", threads=1)


def batch(count: int = 5, **changes) -> Intermediate:
    x = np.random.default_rng(0).standard_normal((count, 1, 2, 2)).astype(np.float32)
    labels = np.eye(2, dtype=np.uint8)[np.arange(count) % 2]
    return dataclasses.replace(Intermediate(x, 0.5, labels, ("dog", "cat"), "server7", "euler", 16, 1.5), **changes)


def contents(place: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in place.iterdir()}


class Power(Exception):
    """It fails."""


def interrupted(finisher, source, place, after: int, **options) -> None:
    """A job that ends after so many pictures."""

    def advance(count):
        if len(list(place.glob("0*.png"))) >= after:
            raise Power

    with pytest.raises(Power):
        finish_to_folder(finisher, source, place, batch_size=1, advance=advance, **options)


def finish(finisher, place, source=None, **options) -> Report:
    return finish_to_folder(finisher, batch() if source is None else source, place, batch_size=2, **options)


# --- going on -----------------------------------------------------------------------------------------------


def test_an_interrupted_job_goes_on_and_comes_to_the_same(finisher, tmp_path):
    finish(finisher, tmp_path / "whole")
    interrupted(finisher, batch(), tmp_path / "parts", after=2)
    before = {name: (tmp_path / "parts" / name).stat().st_mtime_ns for name in ("000000.png", "000001.png")}
    heard: list[int] = []
    report = finish(finisher, tmp_path / "parts", advance=heard.append)
    assert (report.images, report.finished) == (5, 3)
    assert heard == [1, 1, 2, 1]  # of what was there while it is looked through: of many, that takes minutes
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    assert before == {name: (tmp_path / "parts" / name).stat().st_mtime_ns for name in before}


def test_looking_through_what_was_there_is_no_time_of_the_pictures_made(finisher, tmp_path, monkeypatch):
    interrupted(finisher, batch(), tmp_path / "out", after=4)
    now, is_done = [0.0], folder._is_done

    def slow(*arguments):
        now[0] += 60.0
        return is_done(*arguments)

    monkeypatch.setattr(folder, "_is_done", slow)
    monkeypatch.setattr(job.time, "monotonic", lambda: now[0])
    report = finish(finisher, tmp_path / "out")
    assert (report.finished, report.seconds, report.milliseconds_per_image, now) == (1, 0.0, 0.0, [300.0])


def test_a_finished_job_that_is_run_again_changes_nothing(finisher, tmp_path):
    finish(finisher, tmp_path / "out")
    before = contents(tmp_path / "out")
    report = finish(finisher, tmp_path / "out")
    assert (report.finished, report.milliseconds_per_image) == (0, 0.0)
    assert contents(tmp_path / "out") == before


def test_pictures_that_were_removed_are_made_again_wherever_they_are_missing(finisher, tmp_path):
    finish(finisher, tmp_path / "out")
    before = contents(tmp_path / "out")
    for name in ("000001.png", "000004.png", "sheet.png"):
        (tmp_path / "out" / name).unlink()
    assert finish(finisher, tmp_path / "out").finished == 2
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("left", [b"", bytes(500), "half"])
def test_a_picture_that_a_power_cut_damaged_is_made_again(finisher, tmp_path, left):
    interrupted(finisher, batch(), tmp_path / "out", after=3)
    damaged = tmp_path / "out" / "000001.png"
    damaged.write_bytes(damaged.read_bytes()[:60] if left == "half" else left)
    assert finish(finisher, tmp_path / "out").finished == 3
    finish(finisher, tmp_path / "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_job_that_was_killed_before_its_sheet_gets_it(finisher, tmp_path):
    """All pictures are there, and the sheet that lies there is that of an older job."""
    place = tmp_path / "out"
    finish(finisher, place, batch(9))
    other = Finisher.load(tmp_path / "halving.onnx", steps=2)

    def advance(count):
        if (picture_text(place / "000003.png") or {}).get("collafuse:steps") == "2":
            raise Power

    with pytest.raises(Power):
        finish_to_folder(other, batch(4), place, batch_size=1, overwrite=True, advance=advance)
    assert finish(other, place, batch(4)).finished == 0
    finish(other, tmp_path / "new", batch(4))
    assert contents(place) == contents(tmp_path / "new")


def test_an_update_in_the_midst_of_a_job_does_not_make_it_another(finisher, tmp_path, monkeypatch):
    interrupted(finisher, batch(), tmp_path / "out", after=2)
    monkeypatch.setattr(job.collafuse, "__version__", "99.0")
    assert finish(finisher, tmp_path / "out").finished == 3
    versions = [picture_text(tmp_path / "out" / folder.picture_name(i))["Software"] for i in range(5)]
    assert versions[0] == versions[1] != versions[2] == versions[4] == "collafuse 99.0"


def test_a_job_of_many_labels_goes_on(tmp_path):
    names = tuple(f"{letter * 90}" for letter in "abcd")
    (tmp_path / "a.onnx").write_bytes(steered_bundle(SHAPE, ConditionSpace(names)))
    finisher = Finisher.load(tmp_path / "a.onnx", threads=1).showing(names)
    unlabelled = batch(labels=None, label_names=())
    interrupted(finisher, unlabelled, tmp_path / "out", after=2)
    assert finish(finisher, tmp_path / "out", unlabelled).finished == 3


def test_a_file_in_blocks_and_the_same_in_memory_are_one_job(finisher, tmp_path):
    (tmp_path / "file").write_bytes(intermediates.to_bytes(batch()))
    interrupted(finisher, batch(), tmp_path / "out", after=2)
    with IntermediateFile(tmp_path / "file") as source:
        assert finish(finisher, tmp_path / "out", source).finished == 3


KILLED = """
import sys, time
from pathlib import Path
from collafuse.core.intermediate import IntermediateFile
from edge_client import Finisher
from edge_client.job import finish_to_folder

with IntermediateFile(Path(sys.argv[2])) as source:
    finisher, out = Finisher.load(sys.argv[1]), Path(sys.argv[3])
    finish_to_folder(finisher, source, out, batch_size=1, advance=lambda n: time.sleep(0.01))
"""


def test_a_job_that_is_killed_leaves_whole_pictures_and_goes_on(finisher, tmp_path):
    (tmp_path / "file").write_bytes(intermediates.to_bytes(batch(300)))
    command = [sys.executable, "-c", KILLED, *(str(tmp_path / name) for name in ("halving.onnx", "file", "out"))]
    with subprocess.Popen(command) as process:
        deadline = time.monotonic() + 60
        while not (tmp_path / "out" / "000007.png").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    there = len(list((tmp_path / "out").glob("0*.png")))
    assert 8 <= there < 300
    with IntermediateFile(tmp_path / "file") as source:
        assert finish(finisher, tmp_path / "out", source).finished == 300 - there
    assert all(picture_text(path) for path in (tmp_path / "out").glob("*.png"))


# --- what is not this job's ---------------------------------------------------------------------------------


@pytest.mark.parametrize("other", ["steps", "bundle", "intermediates", "count"])
def test_the_folder_of_another_job_is_refused(finisher, tmp_path, other):
    finish(finisher, tmp_path / "out")
    before = contents(tmp_path / "out")
    path = tmp_path / "halving.onnx"
    if other == "bundle":
        path.write_bytes(resealed(path.read_bytes(), client="south"))
    source = {"count": batch(4), "intermediates": batch(server_model="server8")}.get(other, batch())
    with pytest.raises(OutputExistsError, match="holds the pictures of another job .5 images, bundle .*, steps 3"):
        finish(Finisher.load(path, steps=2 if other == "steps" else None), tmp_path / "out", source)
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("mine", [b"my own words", "L", "RGBA", "P", "I;16"])
def test_a_file_of_ones_own_in_an_interrupted_job_is_refused(finisher, tmp_path, mine):
    interrupted(finisher, batch(), tmp_path / "out", after=2)
    path = tmp_path / "out" / "000003.png"
    if isinstance(mine, str):
        Image.new(mine, (2, 2)).save(path)
    else:
        path.write_bytes(mine)
    before = contents(tmp_path / "out")
    with pytest.raises(OutputExistsError, match=r"000003\.png is not a picture of the job that was interrupted here"):
        finish(finisher, tmp_path / "out")
    assert contents(tmp_path / "out") == before


def test_a_record_without_pictures_stands_in_nobodys_way(finisher, tmp_path):
    """Of a job that failed at its first batch, for example."""
    interrupted(finisher, batch(), tmp_path / "out", after=1)
    (tmp_path / "out" / "000000.png").unlink()
    with pytest.raises(OutputExistsError, match=r"job\.json exists already"):
        finish(Finisher.load(tmp_path / "halving.onnx", steps=2), tmp_path / "out")
    assert finish(finisher, tmp_path / "out").finished == 5


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", "[" * 70_000, '{"kind": "finishing job"}', '{"kind": "a job", "version": 1}', "\x00"],
)
def test_a_damaged_record_is_nobodys(finisher, tmp_path, text):
    finish(finisher, tmp_path / "out")
    (tmp_path / "out" / "job.json").write_text(text)
    assert read_record(tmp_path / "out") is None
    with pytest.raises(OutputExistsError, match=r"000000\.png exists already"):
        finish(finisher, tmp_path / "out")


WRONG = [{"images": "5"}, {"settings": []}, {"bundle": 1}, {"finished": 1}, {"images": 10**30}]


@pytest.mark.parametrize("change", WRONG)
def test_a_record_with_wrong_values_is_nobodys(finisher, tmp_path, change):
    finish(finisher, tmp_path / "out")
    path = tmp_path / "out" / "job.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert read_record(tmp_path / "out") is None


def test_a_folder_is_looked_through_once_however_many_pictures_a_job_has(finisher, tmp_path):
    """Every name of a large job asked for would be minutes, and all of them in a list a gigabyte."""
    place = tmp_path / "out"
    interrupted(finisher, batch(), place, after=1)
    record = json.loads((place / "job.json").read_text())
    (place / "job.json").write_text(json.dumps({**record, "images": folder.MAX_IMAGES}))
    (place / "000000.png").unlink()
    (place / f"{10**7}.png").touch()
    many = Job("b", "i", folder.MAX_IMAGES // 2, {})
    with pytest.raises(OutputExistsError, match=rf"holds the pictures of another job .{folder.MAX_IMAGES} images"):
        folder._refuse(place, many, read_record(place)[0])
    with pytest.raises(OutputExistsError, match=r"10000000\.png exists already"):
        folder._refuse(place, many, None)
    (place / f"{10**7}.png").unlink()
    with pytest.raises(OutputExistsError, match=r"job\.json exists already"):
        folder._refuse(place, many, read_record(place)[0])


# --- overwriting --------------------------------------------------------------------------------------------


def test_overwriting_leaves_the_new_job_alone_and_what_is_not_ours(finisher, tmp_path):
    place = tmp_path / "out"
    finish(finisher, place, batch(9))
    Image.new("L", (2, 2)).save(place / "000007.png")
    words = ("000100.png", "notes.txt", "photo.png", "0000006.png")
    for name in words:
        (place / name).write_bytes(b"mine")
    (place / "000020.png").write_bytes((place / "000006.png").read_bytes())  # a copy under another name
    finish(finisher, place, batch(4), overwrite=True)
    ours = {*(f"{i:06d}.png" for i in range(4)), "sheet.png", "job.json"}
    kept = {"000007.png", "000020.png", *words}
    assert set(contents(place)) == ours | kept
    assert all(contents(place)[name] == b"mine" for name in words)
    finish(finisher, tmp_path / "new", batch(4))
    assert {name: data for name, data in contents(place).items() if name in ours} == contents(tmp_path / "new")


def test_overwriting_that_is_interrupted_goes_on_and_ends_the_same(finisher, tmp_path):
    place = tmp_path / "out"
    finish(finisher, place, batch(9))

    def advance(count):
        if (
            read_record(place)[0].images == 4
            and (picture_text(place / "000001.png") or {}).get("collafuse:steps") == "2"
        ):
            raise Power

    other = Finisher.load(tmp_path / "halving.onnx", steps=2)
    with pytest.raises(Power):
        finish_to_folder(other, batch(4), place, batch_size=1, overwrite=True, advance=advance)
    assert (place / "000008.png").exists()  # nothing is removed before everything new is there
    assert finish(other, place, batch(4)).finished == 2
    finish(other, tmp_path / "new", batch(4))
    assert contents(place) == contents(tmp_path / "new")


def test_overwriting_a_finished_job_makes_it_again(finisher, tmp_path):
    finish(finisher, tmp_path / "out")
    assert finish(finisher, tmp_path / "out", overwrite=True).finished == 5


# --- when it goes wrong -------------------------------------------------------------------------------------


def test_a_disk_that_fills_up_stops_the_job_and_room_lets_it_go_on(finisher, tmp_path, monkeypatch):
    written: list[Path] = []

    def full(path, *arguments, **options):
        if len(written) == 3:
            raise StorageError(f"cannot write {path}: the disk is full")
        written.append(path)
        return write(path, *arguments, **options)

    write = job.write_png
    with monkeypatch.context() as patch:
        patch.setattr(job, "write_png", full)
        with pytest.raises(StorageError, match=r"000003\.png: the disk is full"):
            finish(finisher, tmp_path / "out")
    assert finish(finisher, tmp_path / "out").finished == 2


def test_a_job_that_fails_before_its_first_picture_leaves_no_folder(tiny_bundle, tiny_intermediate, tmp_path):
    huge = dataclasses.replace(tiny_intermediate, x=np.full_like(tiny_intermediate.x, 3e38))
    with pytest.raises(MismatchError, match="do not come out finite"):
        finish(Finisher.load(tiny_bundle), tmp_path / "out", huge)
    assert not (tmp_path / "out").exists()


def test_of_two_jobs_that_begin_in_one_folder_at_once_one_gets_it(tmp_path):
    jobs = [Job(bundle, "i", 2, {}) for bundle in ("one", "other")]
    first, second = (JobFolder.claim(tmp_path, job, lambda index: {}, overwrite=False) for job in jobs)
    first.begin()
    with pytest.raises(OutputExistsError, match=r"job\.json exists already"):
        second.begin()
    assert read_record(tmp_path) == (jobs[0], False)


# --- parts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("done", "most", "expected"),
    [
        ([0, 0, 0, 0, 0], 2, [(0, 2), (2, 2), (4, 1)]),
        ([1, 0, 0, 1, 0], 2, [(1, 2), (4, 1)]),
        ([0, 1, 0, 1, 1], 9, [(0, 1), (2, 1)]),
        ([1, 1], 3, []),
    ],
)
def test_what_is_missing_comes_in_stretches(tmp_path, done, most, expected):
    place = JobFolder(tmp_path, Job("b", "i", len(done), {}), bytearray(done), continued=True)
    assert list(place.pending(most)) == expected


@pytest.mark.parametrize("data", [b"", b"words", b"\x89PNG\r\n\x1a\n", b"\x89PNG\r\n\x1a\n" + bytes(100)])
def test_what_is_no_whole_picture_has_no_text(tmp_path, data):
    (tmp_path / "a.png").write_bytes(data)
    assert picture_text(tmp_path / "a.png") is None
    assert picture_text(tmp_path / "gone.png") is None


@pytest.mark.parametrize(("side", "shown"), [(32, 100), (256, 49), (1024, 1)])
def test_large_pictures_are_shown_in_smaller_number(tmp_path, side, shown):
    for index in range(min(shown, 100)):
        Image.new("L", (side, side)).save(tmp_path / folder.picture_name(index))
    source = batch(101, x=np.broadcast_to(np.float32(0), (101, 1, side, side)), labels=None, label_names=())
    sheet = job.contact_sheet_of(tmp_path, source)
    assert max(sheet.shape) <= job.SHEET_PIXELS and (sheet == 0).sum() >= shown * side * side
