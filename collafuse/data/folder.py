"""Any folder of images, labelled by its sub-folders or by a table."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..config import DataSettings
from ..config.data import TableSettings
from ..core.errors import DataError
from .captions import beside
from .images import SUFFIXES
from .imageset import ImageSet, check_label_names
from .listening import Listener
from .listing import Listing, read_listing
from .table import Table, read_table


def read_folder(root: Path, settings: DataSettings, listener: Listener) -> ImageSet:
    """The images below ``root``. Raises DataError when there are none, or none that can be read."""
    if not root.is_dir():
        raise DataError(f"{root} is not a folder; set data.path to a folder of images, one sub-folder per label.")
    names = image_names(root)
    if not names:
        raise DataError(f"{root} holds no images ({', '.join(sorted(SUFFIXES))}); put one sub-folder per label there.")
    if settings.table is None:
        listing = _by_folder(root, names)
    else:
        listing = _by_table(root, names, settings.table, settings.caption_column)
    if settings.text is not None and settings.text.captions == "files":
        listing = replace(listing, captions=beside(root, listing.files))
    return read_listing(listing, settings, listener)


def image_names(root: Path) -> list[str]:
    """The images below a folder by their path there, with slashes; what is hidden is left alone."""
    found, folders = [], [""]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(f"{root}/{folder}") as entries:  # many times faster than Path.rglob
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(f"{folder}{entry.name}/")
                    elif _suffix(entry.name) in SUFFIXES and entry.is_file():
                        found.append(folder + entry.name)
        except OSError as error:
            raise DataError(f"cannot list {root}/{folder}: {error.strerror}; make it readable or move it.") from error
    return sorted(found)


def _suffix(name: str) -> str:
    stem, dot, suffix = name.rpartition(".")
    return f"{dot}{suffix}".lower() if stem else ""


def _by_folder(root: Path, files: Sequence[str]) -> Listing:
    """Labelled by the sub-folder they lie in; unlabelled when they lie in root itself."""
    own = [file.split("/", 1)[0] for file in files if "/" in file]
    if own and len(own) < len(files):
        loose = next(file for file in files if "/" not in file)
        raise DataError(
            f"{root} holds images beside labelled sub-folders, such as {loose}; "
            "move them into a sub-folder, or the sub-folders elsewhere."
        )
    names = tuple(sorted(set(own)))
    check_label_names(names, f"sub-folders of {root}")
    column = {name: i for i, name in enumerate(names)}
    labels = np.zeros((len(files), len(names)), dtype=np.uint8)
    labels[np.arange(len(own)), [column[name] for name in own]] = 1
    return Listing(root, tuple(files), labels, names)


def _by_table(root: Path, files: Sequence[str], settings: TableSettings, caption: str | None) -> Listing:
    """Labelled by the table's rows. Images without a row and rows without an image are left out and named."""
    path = root / settings.path
    table = read_table(path, settings, caption)
    found = _files_of(table, root, files, path)
    rows = [row for row, file in enumerate(found) if file is not None]
    known = {file for file in found if file is not None}
    missing = [name for name, file in zip(table.files, found, strict=True) if file is None]
    extra = [file for file in files if file not in known]
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
        captions=None if table.captions is None else table.captions[rows],
    )


def _files_of(table: Table, root: Path, files: Sequence[str], path: Path) -> list[str | None]:
    """The file of each row: by its path below the folder, else by its name, else by its name without suffix."""
    ways: list[dict[str, list[str]]] = [{}, {}, {}]
    for file in files:
        name = file.rpartition("/")[2]
        for way, known_as in zip(ways, (file, name, name.rpartition(".")[0]), strict=True):
            way.setdefault(known_as, []).append(file)
    found: list[str | None] = []
    for name in table.files:
        candidates = next((way[name] for way in ways if name in way), [])
        if len(candidates) > 1:
            raise DataError(
                f"{path}: {name!r} could be {candidates[0]} or {candidates[1]}; write its path below {root} there."
            )
        found.append(candidates[0] if candidates else None)
    return found
