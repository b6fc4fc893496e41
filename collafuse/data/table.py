"""A table of what images show, from CSV or Parquet: columns of yes and no, columns of words, a group."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config.data import TableSettings
from ..core.conditioning import Labels, indices_of
from ..core.errors import DataError, MismatchError, RuntimeMissingError, first_line
from ..core.metadata import shown
from .captions import Captions, captions_of, check_some, first_of
from .imageset import check_label_names

YES = frozenset({"1", "1.0", "true", "yes"})
NO = frozenset({"0", "0.0", "-1", "-1.0", "false", "no"})
"""-1 is no where no 0 stands beside it, as in CelebA."""
MOST_WORDS = 100
"""A column of more different words than this is taken as labels only when it is asked for by name."""
MAX_TABLE_BYTES = 1 << 30


@dataclass(frozen=True, eq=False)
class Table:
    """What a table says. files: the image of each row; labels: uint8 [N, K]; groups, captions: [N] or None."""

    files: tuple[str, ...]
    labels: Labels
    label_names: tuple[str, ...]
    groups: NDArray[np.str_] | None
    captions: Captions | None = None


Columns = dict[str, list[str]]


def read_table(path: Path, settings: TableSettings, caption: str | None = None) -> Table:
    """The table in a file; ``caption`` is the column with captions, which then makes no labels.

    Raises DataError with the column, the row and what was expected.
    """
    columns = _read_columns(path, caption)
    names = list(columns)
    file = names[0] if settings.file is None else settings.file
    special = [name for name in (file, settings.group, caption) if name is not None]
    chosen = settings.columns or tuple(name for name in names if name not in special)
    try:
        indices_of([*special, *chosen], names)
    except MismatchError as error:
        raise DataError(f"{path}: {str(error).replace('label', 'column', 1)}") from error
    twice = [name for name, count in Counter(columns[file]).items() if count > 1]
    if twice:
        raise DataError(f"{path}: {shown(twice[0])} stands in column {file!r} twice; keep one row per image.")
    parts = [labels_of(columns[name], name, path, asked=settings.columns is not None) for name in chosen]
    label_names = tuple(label for part in parts for label in part)
    twice = [name for name, count in Counter(label_names).items() if count > 1]
    if twice:
        raise DataError(f"{path}: two columns both make a label {twice[0]!r}; rename it in one of them.")
    check_label_names(label_names, f"columns of {path}")
    rows = len(columns[file])
    labels = np.zeros((rows, len(label_names)), dtype=np.uint8)
    for column, values in enumerate(values for part in parts for values in part.values()):
        labels[:, column] = values
    groups = None if settings.group is None else np.asarray(columns[settings.group], dtype=np.str_)
    if groups is not None and (groups == "").any():
        raise DataError(
            f"{path}: column {settings.group!r} is empty in row {int(np.flatnonzero(groups == '')[0]) + 1}, so nobody "
            "knows what that image belongs to; fill it in or remove the row."
        )
    captions = None
    if caption is not None:
        captions = check_some(captions_of(columns[caption]), f"{path}: column {caption!r} is empty in every row")
    return Table(tuple(columns[file]), labels, label_names, groups, captions)


def labels_of(values: Sequence[str], column: str, path: Path, *, asked: bool) -> dict[str, NDArray[np.bool_]]:
    """The labels that one column makes, each with its rows: itself for yes and no, one per word for words."""
    lowered = [value.lower() for value in values]
    found = dict.fromkeys(lowered)
    if "" in found:
        raise DataError(
            f"{path}: column {column!r} is empty in row {lowered.index('') + 1}; write 0 or 1 or a word there, or "
            "leave the column out with data.table.columns."
        )
    if not found.keys() - YES - NO:
        if found.keys() & {"-1", "-1.0"} and found.keys() & {"0", "0.0"}:
            raise DataError(f"{path}: column {column!r} holds both -1 and 0; write 0 for no and 1 for yes.")
        return {column: np.asarray([value in YES for value in lowered])}
    number = next((value for value in sorted(found, key=(YES | NO).__contains__) if _is_number(value)), None)
    if number is not None:
        raise DataError(
            f"{path}: column {column!r} holds {shown(number)}, which is neither yes or no nor a word; make classes of "
            "it, or name the columns to use without it."
        )
    words = sorted(set(values))
    if len(words) > MOST_WORDS and not asked:
        raise DataError(
            f"{path}: column {column!r} holds {len(words)} different words, such as {shown(words[0])}; name the "
            "columns that you mean in data.table.columns."
        )
    array = np.asarray(values, dtype=np.str_)
    return {word: array == word for word in words}


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _read_columns(path: Path, caption: str | None) -> Columns:
    try:
        size = path.stat().st_size
        if size > MAX_TABLE_BYTES:
            raise DataError(f"{path} has {size} bytes; at most {MAX_TABLE_BYTES >> 30} GiB are read.")
        columns = _read_parquet(path, caption) if path.suffix.lower() == ".parquet" else _read_csv(path)
    except OSError as error:
        raise DataError(
            f"cannot read the table {path}: {error.strerror or first_line(error)}; data.table.path is taken relative "
            "to the folder of images."
        ) from error
    if not columns or not next(iter(columns.values())):
        raise DataError(f"{path} holds no rows; expected a line of column names and a row for each image.")
    return columns


def _read_csv(path: Path) -> Columns:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
            names = [name.strip() for name in next(reader, [])]
            rows = [row for row in reader if row]
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as a table ({error}); save it as CSV in UTF-8.") from error
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"{path} has two columns named {shown(twice[0])}; rename one.")
    for number, row in enumerate(rows, start=1):
        if len(row) != len(names):
            raise DataError(
                f"{path}: row {number} has {len(row)} cells, its first line names {len(names)} columns; put what "
                'holds a separator into quotes, such as "a man, smiling".'
            )
    return {name: [row[i].strip() for row in rows] for i, name in enumerate(names)}


def _read_parquet(path: Path, caption: str | None) -> Columns:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise RuntimeMissingError(
            f"reading {path} needs pyarrow; pip install 'collafuse[tables]', or save the table as CSV."
        ) from error
    try:
        values = parquet.read_table(path).to_pydict()
    except pyarrow.ArrowException as error:
        raise DataError(f"{path} cannot be read as Parquet ({first_line(error)}); write it anew.") from error
    columns = {str(name).strip(): column for name, column in values.items()}
    if caption in columns:
        columns[caption] = [first_of(value) for value in columns[caption]]
    return {name: [as_text(value) for value in column] for name, column in columns.items()}


def as_text(value: Any) -> str:
    """A cell as it would stand in a CSV file."""
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()
