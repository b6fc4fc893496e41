"""Any folder of images: labels from sub-folders or from a table; what cannot be read is left out and named."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..config import DataSettings
from ..core.conditioning import Labels
from ..core.errors import DataError
from .images import SUFFIXES, read_image
from .imageset import ImageSet, check_label_names
from .listening import Listener
from .table import Table, read_table

MAX_IMAGE_BYTES = 8 << 30
"""The largest data set that is held in memory, in bytes of decoded pixels."""
SHOWN_PROBLEMS = 5
CHUNK = 1024
"""Files read ahead, and the step of the progress bar."""


@dataclass(frozen=True, eq=False)
class Listing:
    """Image files and what is known of them before any is opened. labels: uint8 [N, K]; the rest as in ImageSet."""

    root: Path
    files: tuple[Path, ...]
    labels: Labels
    label_names: tuple[str, ...]
    groups: NDArray[np.str_] | None = None
    test_part: NDArray[np.bool_] | None = None
    problems: tuple[str, ...] = ()


def read_folder(root: Path, settings: DataSettings, listener: Listener) -> ImageSet:
    """The images below ``root``. Raises DataError when there are none, or none that can be read."""
    files = _image_files(root)
    listing = _by_folder(root, files) if settings.table is None else _by_table(root, files, settings)
    return read_listing(listing, settings, listener)


def _image_files(root: Path) -> list[Path]:
    if not root.is_dir():
        raise DataError(f"{root} is not a folder; set data.path to a folder of images, one sub-folder per label.")
    files = sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not files:
        raise DataError(f"{root} holds no images ({', '.join(sorted(SUFFIXES))}); put one sub-folder per label there.")
    return files


def _by_folder(root: Path, files: Sequence[Path]) -> Listing:
    """Labelled by the sub-folder they lie in; unlabelled when they lie in root itself."""
    loose = [p for p in files if p.parent == root]
    if loose and len(loose) < len(files):
        raise DataError(
            f"{root} holds images beside labelled sub-folders, such as {loose[0].name}; "
            "move them into a sub-folder, or the sub-folders elsewhere."
        )
    own = [] if loose else [p.relative_to(root).parts[0] for p in files]
    names = tuple(sorted(set(own)))
    check_label_names(names, f"sub-folders of {root}")
    labels = np.zeros((len(files), len(names)), dtype=np.uint8)
    labels[np.arange(len(own)), [names.index(name) for name in own]] = 1
    return Listing(root, tuple(files), labels, names)


def _by_table(root: Path, files: Sequence[Path], settings: DataSettings) -> Listing:
    """Labelled by the table's rows. Images without a row and rows without an image are left out and named."""
    assert settings.table is not None
    path = root / settings.table.path
    table = read_table(path, settings.table)
    found = _files_of(table, root, files, path)
    rows = [row for row, file in enumerate(found) if file is not None]
    known = {file for file in found if file is not None}
    missing = [name for name, file in zip(table.files, found, strict=True) if file is None]
    extra = [str(file.relative_to(root)) for file in files if file not in known]
    if not rows:
        raise DataError(
            f"none of the {len(table.files)} rows of {path} names an image below {root}, such as {missing[0]!r} where "
            f"the folder holds {extra[0]!r}; set data.table.file to the column that names them."
        )
    problems = [f"{path}: no image is named {name!r}." for name in missing]
    problems += [f"{root / name} has no row in {path}." for name in extra]
    return Listing(
        root,
        tuple(file for file in found if file is not None),
        table.labels[rows],
        table.label_names,
        None if table.groups is None else table.groups[rows],
        problems=tuple(problems),
    )


def _files_of(table: Table, root: Path, files: Sequence[Path], path: Path) -> list[Path | None]:
    """The file of each row: by its path below the folder, else by its name, else by its name without suffix."""
    ways: list[dict[str, list[Path]]] = [{}, {}, {}]
    for file in files:
        for way, name in zip(ways, (file.relative_to(root).as_posix(), file.name, file.stem), strict=True):
            way.setdefault(name, []).append(file)
    found: list[Path | None] = []
    for name in table.files:
        candidates = next((way[name] for way in ways if name in way), [])
        if len(candidates) > 1:
            raise DataError(
                f"{path}: {name!r} could be {candidates[0]} or {candidates[1]}; write its path below {root} there."
            )
        found.append(candidates[0] if candidates else None)
    return found


def read_listing(listing: Listing, settings: DataSettings, listener: Listener) -> ImageSet:
    """The listed images, decoded in as many threads as there are cores; those that cannot be read are left out.

    Raises DataError when they would not fit in memory, or none can be read.
    """
    channels, side, _ = settings.image_shape
    count = len(listing.files)
    if count * channels * side * side > MAX_IMAGE_BYTES:
        raise DataError(
            f"{listing.root} holds {count} images, over {MAX_IMAGE_BYTES >> 30} GiB as {side}x{side}x{channels}; "
            "use a smaller image_size or fewer images."
        )
    pixels = np.empty((count, channels, side, side), dtype=np.uint8)
    digests = np.empty((count, 32), dtype=np.uint8)
    kept, problems = [], list(listing.problems)
    counter = listener.bar(f"reading {listing.root.name}", count)
    for row, found in enumerate(_in_threads(partial(_read_or_refuse, channels=channels, side=side), listing.files)):
        if (row + 1) % CHUNK == 0 or row + 1 == count:
            counter.advance(row % CHUNK + 1)
        if isinstance(found, str):
            problems.append(found)
            continue
        pixels[len(kept)], digest = found
        digests[len(kept)] = np.frombuffer(digest, dtype=np.uint8)
        kept.append(row)
    if problems:
        listener.say(_summary(problems, listing.root))
    if not kept:
        raise DataError(f"none of the {count} images in {listing.root} can be read; the first: {problems[0]}")
    names = [listing.files[row].relative_to(listing.root).as_posix() for row in kept]
    return ImageSet(
        pixels[: len(kept)],
        listing.labels[kept],
        listing.label_names,
        digests[: len(kept)],
        np.asarray(names, dtype=np.str_),
        None if listing.groups is None else listing.groups[kept],
        None if listing.test_part is None else listing.test_part[kept],
        tuple(problems),
    )


def _read_or_refuse(path: Path, channels: int, side: int) -> tuple[NDArray[np.uint8], bytes] | str:
    try:
        return read_image(path, channels, side)
    except DataError as error:
        return str(error)


def _summary(problems: Sequence[str], root: Path) -> str:
    lines = [f"warning: {len(problems)} left out of {root}:", *(f"  {p}" for p in problems[:SHOWN_PROBLEMS])]
    if len(problems) > SHOWN_PROBLEMS:
        lines.append(f"  ... and {len(problems) - SHOWN_PROBLEMS} more; collafuse data CONFIG --json lists them all.")
    return "\n".join(lines)


def _in_threads(
    read: partial[tuple[NDArray[np.uint8], bytes] | str], files: Sequence[Path]
) -> Iterator[tuple[NDArray[np.uint8], bytes] | str]:
    """What ``read`` makes of each file, in order; at most CHUNK are read ahead."""
    # Pillow releases the interpreter lock while decoding. What it remarks about metadata concerns nobody; filters
    # are the whole process's, so they are set here and not in the threads.
    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        warnings.simplefilter("ignore")
        for start in range(0, len(files), CHUNK):
            yield from pool.map(read, files[start : start + CHUNK])
