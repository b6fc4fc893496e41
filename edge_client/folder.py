"""The folder of a finishing job: whose pictures lie in it, and which of them are done.

``job.json`` is written before the first picture and says what the job is: the SHA-256 of bundle and intermediates, the
number of images and the settings. A picture belongs to the job when the settings inside it are the job's. So an
interrupted job goes on where it stopped, and nothing else is taken for a part of it or replaced unasked.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from collafuse.core.atomic import refuse_existing, storage_error, write_bytes
from collafuse.core.errors import FileFormatError, OutputExistsError, StorageError
from collafuse.core.metadata import Fields, parse_json

from .pictures import SIGNATURE, is_png, read_png

RECORD = "job.json"
SHEET = "sheet.png"
MAX_RECORD_BYTES = 64 << 10
SOFTWARE_KEY = "Software"
INDEX_KEY = "collafuse:index"
BUNDLE_KEY = "collafuse:bundle"
KIND = "finishing job"
VERSION = 1
MAX_IMAGES = 1 << 40


@dataclass(frozen=True)
class Job:
    """What a job is. Two with equal values make the same pictures.

    ``replacing`` (not a part of that): pictures of an older job are to be replaced.
    """

    bundle: str
    intermediates: str
    images: int
    settings: dict[str, str]
    replacing: bool = False

    def same_as(self, other: Job | None) -> bool:
        """Whether both make the same pictures."""
        return other is not None and replace(self, replacing=False) == replace(other, replacing=False)


def picture_name(index: int) -> str:
    """The file name of a picture."""
    return f"{index:06d}.png"


def picture_number(name: str) -> int | None:
    """The index of the picture of this file name; None for the name of something else."""
    found = re.fullmatch(r"([0-9]{6,})\.png", name)
    return int(found[1]) if found and picture_name(int(found[1])) == name else None


def read_record(folder: Path) -> tuple[Job, bool] | None:
    """The job of a folder and whether it is finished; None where there is none that can be read."""
    path = folder / RECORD
    with suppress(OSError, FileFormatError):
        if path.stat().st_size <= MAX_RECORD_BYTES:
            fields = Fields(parse_json(path.read_bytes(), str(path)), str(path))
            fields.text("kind", one_of=[KIND])
            fields.integer("version", at_least=VERSION, at_most=VERSION)
            job = Job(
                bundle=fields.text("bundle"),
                intermediates=fields.text("intermediates"),
                images=fields.integer("images", at_least=1, at_most=MAX_IMAGES),
                settings=fields.texts("settings", longest=MAX_RECORD_BYTES),
                replacing=fields.boolean("replacing"),
            )
            return job, fields.boolean("finished")
    return None


def write_record(folder: Path, job: Job, *, finished: bool, overwrite: bool = True) -> None:
    """Say on the disk what the job of this folder is. Raises StorageError, without ``overwrite`` OutputExistsError.

    At the start it waits for the disk: after a power cut, pictures without it would be nobody's.
    """
    values = {"kind": KIND, "version": VERSION, "finished": finished, **asdict(job)}
    text = json.dumps(values, indent=1, sort_keys=True) + "\n"
    write_bytes(folder / RECORD, text.encode(), overwrite=overwrite, durable=not finished)


def picture_text(path: Path) -> dict[str, str] | None:
    """The texts inside a whole PNG file; None for anything else."""
    picture = read_png(path)
    return None if picture is None else picture.text


class JobFolder:
    """One job's folder. ``done[index]`` says which pictures are there; made by :meth:`claim`, which writes nothing."""

    def __init__(self, path: Path, job: Job, done: bytearray, continued: bool, ended: bool = False) -> None:
        self.path = path
        self.job = job
        self.done = done
        self.ended = ended
        """Whether the job came to its end before: a killed one may have every picture, and an older job's sheet."""
        self.overwrites = job.replacing or continued
        """Whether a file in the place of a picture to be made is a damaged or an older one."""
        self._begun = False

    @classmethod
    def claim(
        cls,
        path: Path,
        job: Job,
        text_of: Callable[[int], Mapping[str, str]],
        *,
        overwrite: bool,
        found: Callable[[int], None] = lambda count: None,
    ) -> JobFolder:
        """The folder for this job, new or to be continued. ``text_of(index)``: what a picture will hold inside;
        ``found`` hears of those that are there, as each is read.

        Without ``overwrite`` every file that would be replaced must be of this job; with it, pictures of this job are
        kept if it was interrupted, and made again if it was finished. Raises OutputExistsError.
        """
        known, finished = read_record(path) or (None, False)
        mine = job.same_as(known)
        replacing = overwrite or (mine and known is not None and known.replacing and not finished)
        job = replace(job, replacing=replacing)
        done = bytearray(job.images)
        if mine and not (overwrite and finished):
            for index in range(job.images):
                if _is_done(path / picture_name(index), index, text_of, replacing):
                    done[index] = 1
                    found(1)
        elif not overwrite and path.is_dir():
            _refuse(path, job, known)
        return cls(path, job, done, continued=mine, ended=mine and finished)

    def pending(self, most: int) -> Iterator[tuple[int, int]]:
        """Pictures to be made: (first index, count) of stretches of at most so many."""
        start = 0
        while (start := self.done.find(0, start)) >= 0:
            end = self.done.find(1, start, start + most)
            count = (min(start + most, self.job.images) if end < 0 else end) - start
            yield start, count
            start += count

    def begin(self) -> None:
        """Say whose folder it is, before the first picture. Raises StorageError, and OutputExistsError where another
        process has said that meanwhile."""
        if not self._begun:
            write_record(self.path, self.job, finished=False, overwrite=self.overwrites)
            self._begun = True

    def end(self) -> None:
        """All pictures are there. Raises StorageError."""
        if self.job.replacing:
            self._remove_the_rest()
        write_record(self.path, replace(self.job, replacing=False), finished=True)

    def _remove_the_rest(self) -> None:
        """Remove what an older job left beyond the last picture: files that say themselves that they are that."""
        try:
            with os.scandir(self.path) as entries:
                for entry in entries:
                    number = picture_number(entry.name)
                    if number is not None and number >= self.job.images and entry.is_file(follow_symlinks=False):
                        text = picture_text(Path(entry.path)) or {}
                        if text.get(INDEX_KEY) == str(number) and BUNDLE_KEY in text:
                            os.unlink(entry.path)  # noqa: PTH108 - scandir gives the path as text
        except OSError as error:
            raise StorageError(
                f"cannot remove pictures of an older job from {self.path}: {error.strerror}; the new ones are written."
            ) from error


def _refuse(path: Path, job: Job, other: Job | None) -> None:
    """Raise OutputExistsError where a file of this job is there already.

    The folder is looked through, not every name that the job will need: there may be millions.
    """
    try:
        with os.scandir(path) as entries:
            numbers = (number for entry in entries if (number := picture_number(entry.name)) is not None)
            first = min(numbers, default=MAX_IMAGES)
    except OSError as error:
        raise storage_error(path, error) from error
    if other is not None and first < other.images:
        raise OutputExistsError(
            f"{path} holds the pictures of another job ({other.images} images, bundle {other.bundle[:12]}, "
            f"{', '.join(f'{k} {v}' for k, v in other.settings.items())}); choose another folder or pass --overwrite."
        )
    for name in (*([picture_name(first)] if first < job.images else []), SHEET, RECORD):
        refuse_existing(path / name, overwrite=False)


def _is_done(path: Path, index: int, text_of: Callable[[int], Mapping[str, str]], replacing: bool) -> bool:
    """Whether this picture of the job is there; False also for one that a power cut damaged."""
    if not os.path.lexists(path):
        return False
    found = picture_text(path)
    if found is not None and _settings_in(found) == _settings_in(text_of(index)):
        return True
    if replacing or (found is None and _is_damaged(path)):
        return False
    raise OutputExistsError(
        f"{path} is not a picture of the job that was interrupted here; move it, choose another folder or pass "
        "--overwrite."
    )


def _settings_in(text: Mapping[str, str]) -> dict[str, str]:
    """A picture's texts but for the version that made it: an update in the midst of a job makes it no other job."""
    return {key: value for key, value in text.items() if key != SOFTWARE_KEY}


def _is_damaged(path: Path) -> bool:
    """Whether a file could be what is left of a picture that was being written when the power failed. A whole one of a
    kind that we do not write, such as with transparency, is somebody's own."""
    try:
        with path.open("rb") as file:
            head = file.read(len(SIGNATURE))
    except OSError:
        return False
    return not is_png(path) if head == SIGNATURE else not head.strip(b"\0")
