"""Data sets in the layout in which they are published, as lists of files with attributes: CUB-200-2011 and Animals with
Attributes 2."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..config import DataSettings
from ..core.conditioning import Labels
from ..core.errors import DataError
from .images import SUFFIXES
from .imageset import ImageSet, check_label_names
from .listening import Listener
from .listing import Listing, read_listing

CERTAINTIES = ("not visible", "guessing", "probably", "definitely")
"""What CUB's annotators could say, from 1 to 4."""
MAX_LIST_BYTES = 1 << 30
LINES_AT_ONCE = 50_000


def read_layout(root: Path, settings: DataSettings, listener: Listener) -> ImageSet:
    """A published set below ``root``. Raises DataError naming the file and line that is not as published."""
    return read_listing(LISTINGS[settings.dataset](root, settings), settings, listener)


def _cub(root: Path, settings: DataSettings) -> Listing:
    """11,788 birds: 200 species and 312 attributes with certainty; the species come first among the labels."""
    folder = root / "CUB_200_2011"
    files = _numbered(folder / "images.txt")
    species = [name.partition(".")[2] or name for name in _numbered(folder / "classes.txt")]
    attributes = _numbered(_first_of(folder.parent / "attributes.txt", folder / "attributes" / "attributes.txt"))
    labels = np.zeros((len(files), len(species) + len(attributes)), dtype=np.uint8)
    labels[np.arange(len(files)), _numbers(folder / "image_class_labels.txt", len(files), 1, len(species)) - 1] = 1
    sure = CERTAINTIES.index(settings.certainty) + 1
    path = folder / "attributes" / "image_attribute_labels.txt"
    for start, rows in _rows(path, 4):  # some lines carry more than they should
        image, attribute, present, certainty = rows.T
        known = (image >= 1) & (image <= len(files)) & (attribute >= 1) & (attribute <= len(attributes))
        _check_all(path, start, known)
        seen = (present == 1) & (certainty >= sure)
        labels[image[seen] - 1, len(species) + attribute[seen] - 1] = 1
    training = _numbers(folder / "train_test_split.txt", len(files), 0, 1) == 1
    names = (*species, *attributes)
    return _listing(folder / "images", files, labels, names, training, settings)


def _awa2(root: Path, settings: DataSettings) -> Listing:
    """37,322 photographs of 50 animals; each animal has 85 attributes. The official split is by animal: ten are kept
    for testing."""
    folder = root / "Animals_with_Attributes2"
    animals, predicates = _numbered(folder / "classes.txt"), _numbered(folder / "predicates.txt")
    matrix = _matrix(folder / "predicate-matrix-binary.txt", len(animals), len(predicates))
    kept_for_testing = set(_lines(folder / "testclasses.txt"))
    files, rows = [], []
    for row, animal in enumerate(animals):
        found = sorted(p.name for p in (folder / "JPEGImages" / animal).glob("*") if p.suffix.lower() in SUFFIXES)
        files += [f"{animal}/{name}" for name in found]
        rows += [row] * len(found)
    if not files:
        raise DataError(f"{folder / 'JPEGImages'} holds no images in folders such as {animals[0]}; unpack them there.")
    labels = np.concatenate([np.eye(len(animals), dtype=np.uint8), matrix], axis=1)[rows]
    training = np.asarray([animals[row] not in kept_for_testing for row in rows])
    return _listing(folder / "JPEGImages", files, labels, (*animals, *predicates), training, settings)


LISTINGS: dict[str, Callable[[Path, DataSettings], Listing]] = {"cub": _cub, "awa2": _awa2}


def _listing(
    root: Path,
    files: list[str],
    labels: Labels,
    names: tuple[str, ...],
    training: NDArray[np.bool_],
    settings: DataSettings,
) -> Listing:
    """The training images, or all with the others marked as held out."""
    check_label_names(names, f"labels of {settings.dataset}")
    outside = next((name for name in files if name.startswith("/") or ".." in name.split("/")), None)
    if outside is not None:
        raise DataError(f"{root}: {outside!r} leads out of the folder; get the set anew.")
    rows = np.arange(len(files)) if settings.official_split else np.flatnonzero(training)
    test_part = ~training[rows] if settings.official_split else None
    return Listing(root, tuple(files[row] for row in rows), labels[rows], names, test_part=test_part)


# --- lists of numbers and names -----------------------------------------------------------------------------


def _first_of(*paths: Path) -> Path:
    """The first that exists, else the first."""
    return next((path for path in paths if path.is_file()), paths[0])


def _lines(path: Path) -> Iterator[str]:
    """The lines that are not empty, one by one: CUB's list of attributes has millions."""
    try:
        if path.stat().st_size > MAX_LIST_BYTES:
            raise DataError(f"{path} has {path.stat().st_size} bytes, which no list of this set has; get it anew.")
        with path.open(encoding="utf-8") as file:
            yield from (stripped for line in file if (stripped := line.strip()))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}); get the set anew.") from error


def _check(path: Path, line: int, ok: bool) -> None:
    if not ok:
        raise DataError(f"{path}, line {line}, is not as published; get the set anew.")


def _numbered(path: Path) -> list[str]:
    """The names in lines of a number, counted from 1, and a name."""
    names = []
    for number, line in enumerate(_lines(path), start=1):
        parts = line.split(maxsplit=1)
        _check(path, number, len(parts) == 2 and parts[0] == str(number))
        names.append(parts[1])
    _check(path, 1, bool(names))
    return names


def _rows(path: Path, columns: int) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """The first whole numbers of each line, [n, columns], some thousand lines at a time, after the first's number."""
    lines, start = _lines(path), 1
    while chunk := list(islice(lines, LINES_AT_ONCE)):
        parts = [line.split(maxsplit=columns)[:columns] for line in chunk]
        texts = ["".join(part) for part in parts]
        whole = [text.isascii() and text.isdecimal() and len(text) < 19 for text in texts]  # so that each fits 64 bits
        _check_all(path, start, np.asarray(whole) & (np.fromiter(map(len, parts), dtype=np.int64) == columns))
        yield start, np.fromstring(" ".join(chain.from_iterable(parts)), dtype=np.int64, sep=" ").reshape(-1, columns)
        start += len(chunk)


def _check_all(path: Path, start: int, ok: NDArray[np.bool_]) -> None:
    if not ok.all():
        _check(path, start + int(np.argmin(ok)), False)


def _numbers(path: Path, count: int, lowest: int, highest: int) -> NDArray[np.int64]:
    """The values in lines of a number, counted from 1 to count, and a value from lowest to highest."""
    parts = []
    for start, rows in _rows(path, 2):
        numbers, values = rows.T
        in_order = numbers == np.arange(start, start + len(rows))
        _check_all(path, start, in_order & (values >= lowest) & (values <= highest))
        parts.append(values)
    found = np.concatenate([*parts, np.zeros(0, dtype=np.int64)])
    _check(path, min(len(found), count), len(found) == count)
    return found


def _matrix(path: Path, rows: int, columns: int) -> Labels:
    """Lines of zeros and ones."""
    lines = [line.split() for line in _lines(path)]
    for number, line in enumerate(lines, start=1):
        _check(path, number, len(line) == columns and set(line) <= {"0", "1"})
    _check(path, len(lines), len(lines) == rows)
    return np.asarray(lines, dtype=np.uint8)
