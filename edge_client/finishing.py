"""Finishing from a file or from a server, into a folder: the whole of what a device does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from collafuse.core.atomic import refuse_existing
from collafuse.core.conditioning import check_one_each, check_same_text, indices_of
from collafuse.core.intermediate import IntermediateFile, Source
from collafuse.core.texts import Prompts

from .finisher import Finisher
from .folder import SHEET
from .job import Report, finish_to_folder

if TYPE_CHECKING:
    from .remote import Remote

Progress = Callable[[str, int], Callable[[int], None]]
"""``progress(what, total)`` begins to show some work; what it returns hears of units that are done."""


@dataclass(frozen=True)
class Order:
    """What to ask a server for: so many images, the same again for the same seed."""

    remote: Remote
    count: int
    seed: int | None = None


def finish_from(
    finisher: Finisher,
    source: Path | Order,
    folder: Path,
    *,
    progress: Progress,
    labels: Sequence[str] | None = None,
    prompts: Prompts | None = None,
    batch_size: int | None = None,
    overwrite: bool = False,
) -> Report:
    """Finish what a file holds, or what a server makes, as :func:`finish_to_folder` does.

    labels: what all images show; prompts: what they show in turn. A server is asked for them, unless the site keeps its
    labels, its text, from it: then, as with a file, they are chosen here and do not leave the device. Run again after
    an interruption it goes on with what came and what was finished. Raises MismatchError for a label that the bundle
    does not know, for text of another encoder and where nothing is chosen and has to be, and UsageError for more
    prompts than an order has images, before anything is asked or read, and what :class:`IntermediateFile` and
    :func:`fetched` raise.
    """
    if labels is not None:
        indices_of(labels, finisher.bundle.info.label_names)
        if isinstance(source, Path) or finisher.bundle.info.labels_kept:
            finisher, labels = finisher.showing(labels), None
    if prompts is not None:
        check_same_text(prompts.text.space, finisher.bundle.info.text, "the file of prompts")
        if isinstance(source, Order):
            check_one_each(source.count, len(prompts))
        if isinstance(source, Path) or finisher.bundle.info.text_kept:
            finisher, prompts = finisher.reading(prompts), None
    info = finisher.bundle.info
    if isinstance(source, Order):
        # Labels that the site shares the server may deal out, so that only what comes can tell; text it does not.
        dealt = bool(info.label_names) and not info.labels_kept
        finisher.check_stated(labels is not None or dealt, prompts is not None)
    with _opened(finisher, source, labels, prompts, folder, progress, overwrite) as intermediates:
        advance = progress("finish", len(intermediates))
        return finish_to_folder(
            finisher, intermediates, folder, batch_size=batch_size, overwrite=overwrite, advance=advance
        )


@contextmanager
def _opened(
    finisher: Finisher,
    source: Path | Order,
    labels: Sequence[str] | None,
    prompts: Prompts | None,
    folder: Path,
    progress: Progress,
    overwrite: bool,
) -> Iterator[Source]:
    if isinstance(source, Path):
        with IntermediateFile(source) as file:
            yield file
        return
    from .fetching import fetched, is_interrupted  # here, because a file needs none of it
    from .wanted import Wanted, WantedText

    if not is_interrupted(folder):
        refuse_existing(folder / SHEET, overwrite)  # before anything is fetched
    info = finisher.bundle.info
    wanted = Wanted(
        info.client,
        source.count,
        None if labels is None else tuple(labels),
        source.seed,
        text=None if prompts is None else WantedText.of(prompts.text),
    )
    advance = progress("fetch", source.count)
    with fetched(
        source.remote,
        wanted,
        info.image_shape,
        folder,
        fits=finisher.check_fits,
        overwrite=overwrite,
        advance=advance,
    ) as delivered:
        yield delivered
