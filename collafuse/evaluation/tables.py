"""Tables of results: shown as Markdown, kept as JSON, put into a report.

A results file, ``RUN/evaluation/NAME.json``, is one JSON object whose entry ``tables`` is a list of these:

    {"tables": [{"title": ..., "columns": [...], "rows": [[...], ...], "notes": [...]}, ...], ...}

What else it holds is its command's own; of that a report shows sentences alone (``report.SAID``).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.atomic import write_bytes
from ..core.errors import FileFormatError

FOLDER = "evaluation"
"""Inside a run: what the commands that measure it have found."""

LONG = 10_000
"""Counts from here on are written with commas."""

Cell = str | int | float | None
"""A cell; None is shown as a dash."""


@dataclass(frozen=True)
class Table:
    """title: what is shown; columns: their names; rows: cells in the order of the columns; notes: sentences below.

    Raises FileFormatError for a row that is not as long as the columns.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise FileFormatError(
                    f"table {self.title!r}: a row has {len(row)} cells for {len(self.columns)} columns; write the "
                    "results again."
                )

    def to_markdown(self) -> str:
        """The table as Markdown, the title as a heading in bold, the notes below."""
        lines = [_line(self.columns), "|" + "---|" * len(self.columns)]
        lines += [_line([shown(cell) for cell in row]) for row in self.rows]
        return "\n\n".join([f"**{self.title}**", "\n".join(lines), *self.notes])

    def to_json(self) -> dict[str, Any]:
        """The table as plain values."""
        return {
            "title": self.title,
            "columns": list(self.columns),
            "rows": [[_plain(cell) for cell in row] for row in self.rows],
            "notes": list(self.notes),
        }

    @classmethod
    def from_json(cls, values: Any) -> Table:
        """A table from plain values. Raises FileFormatError for anything else."""
        if not isinstance(values, Mapping) or set(values) != {"title", "columns", "rows", "notes"}:
            raise FileFormatError("a table has exactly title, columns, rows and notes; write the results again.")
        title, columns, rows, notes = (values[key] for key in ("title", "columns", "rows", "notes"))
        good = isinstance(title, str) and _texts(columns) and _texts(notes) and isinstance(rows, list)
        if not good or not all(isinstance(row, list) and all(map(_is_cell, row)) for row in rows):
            raise FileFormatError(
                f"table {title!r}: title, columns and notes are texts and rows are lists of texts, numbers or null; "
                "write the results again."
            )
        return cls(title, tuple(columns), tuple(map(tuple, rows)), tuple(notes))


def write_results(path: Path, tables: Sequence[Table], **values: Any) -> None:
    """Write a results file in one act, over an older one: these tables, and whatever else the command found."""
    data = {"tables": [table.to_json() for table in tables], **values}
    write_bytes(path, (json.dumps(data, indent=1, allow_nan=False) + "\n").encode(), overwrite=True)


def read_results(path: Path) -> tuple[list[Table], dict[str, Any]]:
    """The tables of a results file and everything that it holds. Raises FileFormatError, naming the file."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict) or not isinstance(values.get("tables"), list):
            raise FileFormatError("it holds no list of tables; write the results again.")
        return [Table.from_json(one) for one in values["tables"]], values
    except (OSError, ValueError, FileFormatError) as error:
        raise FileFormatError(f"{path} is no file of results: {error}") from error


def shown(cell: Cell) -> str:
    """A cell as people read it: four significant digits, long counts in groups, a dash for nothing."""
    if isinstance(cell, float):
        return "-" if not math.isfinite(cell) else f"{cell:.4g}"
    if isinstance(cell, int):
        return f"{cell:,}" if abs(cell) >= LONG else str(cell)
    return "-" if cell is None else cell


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _plain(cell: Cell) -> Cell:
    # JSON has no infinity; what cannot be said is nothing.
    return None if isinstance(cell, float) and not math.isfinite(cell) else cell


def _texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _is_cell(value: Any) -> bool:
    return value is None or (isinstance(value, str | int | float) and not isinstance(value, bool))
