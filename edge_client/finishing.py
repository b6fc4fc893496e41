"""Finishing from a file or from a server, into a folder: the whole of what a device does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from collafuse.core.atomic import refuse_existing
from collafuse.core.intermediate import IntermediateFile, Source

from .fetching import Wanted, fetched, is_interrupted
from .finisher import Finisher
from .folder import SHEET
from .job import Report, finish_to_folder

if TYPE_CHECKING:
    from .remote import Remote

Progress = Callable[[str, int], Callable[[int], None]]
"""``progress(what, total)`` begins to show some work; what it returns hears of units that are done."""


@dataclass(frozen=True)
class Order:
    """What to ask a server for: so many images that show these labels, the same again for the same seed."""

    remote: Remote
    count: int
    labels: tuple[str, ...] | None = None
    seed: int | None = None


def finish_from(
    finisher: Finisher,
    source: Path | Order,
    folder: Path,
    *,
    progress: Progress,
    batch_size: int | None = None,
    overwrite: bool = False,
) -> Report:
    """Finish what a file holds, or what a server makes, as :func:`finish_to_folder` does.

    Run again after an interruption it goes on with what came and what was finished. Raises also what
    :class:`IntermediateFile` and :func:`fetched` raise.
    """
    with _opened(finisher, source, folder, progress, overwrite) as intermediates:
        advance = progress("finish", len(intermediates))
        return finish_to_folder(
            finisher, intermediates, folder, batch_size=batch_size, overwrite=overwrite, advance=advance
        )


@contextmanager
def _opened(
    finisher: Finisher, source: Path | Order, folder: Path, progress: Progress, overwrite: bool
) -> Iterator[Source]:
    if isinstance(source, Path):
        with IntermediateFile(source) as file:
            yield file
        return
    if not is_interrupted(folder):
        refuse_existing(folder / SHEET, overwrite)  # before anything is fetched
    info = finisher.bundle.info
    wanted = Wanted(info.client, source.count, source.labels, source.seed)
    advance = progress("fetch", source.count)
    with fetched(source.remote, wanted, info.image_shape, folder, advance=advance) as delivered:
        yield delivered
