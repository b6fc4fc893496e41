"""A finishing job: an intermediates file in, a folder of PNG files and a contact sheet out."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import collafuse
from collafuse.core.atomic import refuse_existing
from collafuse.core.errors import MismatchError
from collafuse.core.intermediate import Intermediate
from collafuse.core.pictures import Pixels, contact_sheet

from .finisher import DEFAULT_BATCH_SIZE, Finisher
from .pictures import to_image, write_png

SHEET = "sheet.png"
SHEET_IMAGES = 100
"""A contact sheet shows the first ones."""


@dataclass(frozen=True)
class Report:
    """What a job did. ``nfe`` counts network evaluations per image; ``seconds`` is spent denoising and writing."""

    images: int
    folder: str
    sheet: str
    nfe: int
    seconds: float
    milliseconds_per_image: float


def finish_to_folder(
    finisher: Finisher,
    intermediate: Intermediate,
    folder: Path,
    *,
    batch_size: int = DEFAULT_BATCH_SIZE,
    overwrite: bool = False,
    advance: Callable[[int], None] = lambda count: None,
) -> Report:
    """Write ``folder/000000.png`` and so on, and ``folder/sheet.png``; ``advance`` hears of each finished batch.

    Every picture carries its settings as PNG text. Raises OutputExistsError before any work when a file would be
    overwritten, MismatchError when bundle and intermediate do not fit or the images are neither grey nor RGB.
    """
    channels = finisher.bundle.info.image_shape[0]
    if channels not in (1, 3):
        raise MismatchError(
            f"the bundle makes images with {channels} channels, a PNG file here has 1 (grey) or 3 (RGB); "
            "use edge_client.Finisher.finish, which gives arrays."
        )
    paths = [folder / f"{index:06d}.png" for index in range(len(intermediate))]
    for path in [*paths, folder / SHEET]:
        refuse_existing(path, overwrite)
    started = time.monotonic()
    shown: list[Pixels] = []
    index = 0
    for images in finisher.batches(intermediate, batch_size):
        for image in images:
            text = picture_text(finisher, intermediate, index)
            write_png(paths[index], to_image(image[None]), text, overwrite=overwrite)
            index += 1
        if sum(map(len, shown)) < SHEET_IMAGES:
            shown.append(images)
        advance(len(images))
    sheet = contact_sheet(np.concatenate(shown)[:SHEET_IMAGES])
    write_png(folder / SHEET, to_image(sheet), picture_text(finisher, intermediate, None), overwrite=overwrite)
    seconds = time.monotonic() - started
    return Report(index, str(folder), str(folder / SHEET), finisher.nfe, seconds, 1000 * seconds / index)


def picture_text(finisher: Finisher, intermediate: Intermediate, index: int | None) -> dict[str, str]:
    """The settings that made a picture: both models, the cut, the samplers, and what was asked for."""
    info = finisher.bundle.info
    text = {
        "Software": f"collafuse {collafuse.__version__}",
        "collafuse:client": info.client,
        "collafuse:bundle": finisher.bundle.digest,
        "collafuse:server_model": intermediate.server_model,
        "collafuse:sigma": f"{intermediate.sigma:g}",
        "collafuse:server": f"{intermediate.sampler}, NFE {intermediate.nfe}, guidance {intermediate.guidance:g}",
        **{f"collafuse:{name}": value for name, value in finisher.settings.describe().items()},
    }
    if index is not None:
        text["collafuse:index"] = str(index)
        if intermediate.labels is not None:
            chosen = np.flatnonzero(intermediate.labels[index])
            text["collafuse:labels"] = ", ".join(intermediate.label_names[i] for i in chosen)
    return text
