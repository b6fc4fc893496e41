"""What evaluate, audit and plan do with what they found: keep it in a file and show it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .console import emit

if TYPE_CHECKING:
    from collafuse.evaluation.tables import Table


def keep_and_show(
    path: Path,
    tables: Sequence[Table],
    values: Mapping[str, Any],
    *,
    said: Sequence[str] = (),
    draw: Callable[[], object] = lambda: None,
    as_json: bool,
) -> None:
    """Write tables and values to a file, after ``draw`` has written a picture, and show them on stdout: as JSON, or the
    tables after what is ``said``. Shown in any case, since it took minutes: a full disk does not take it away."""
    from collafuse.evaluation.tables import write_results

    try:
        draw()
        write_results(path, tables, **values)
    finally:
        if as_json:
            emit({"file": str(path), "tables": [table.to_json() for table in tables], **values})
        else:
            print("\n\n".join([*said, *(table.to_markdown() for table in tables)]))
