"""collafuse inspect"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options
from .console import emit, say_if_large, show


def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A release, intermediates, bundle or weights file.")],
    as_json: options.Json = False,
) -> None:
    """Check a file and print what it holds. Nothing in it is run."""
    from collafuse.core.describe import describe

    say_if_large(file, "Checking")
    values = describe(file)
    if as_json:
        emit(values)
    else:
        show(values)
