"""A finishing job: intermediates in, a folder of PNG files and a contact sheet out, however many there are."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

import collafuse
from collafuse.core.conditioning import dealt_row
from collafuse.core.errors import MismatchError
from collafuse.core.intermediate import Intermediate, Source
from collafuse.core.pictures import GAP, PAPER, Pixels, contact_sheet

from . import machine
from .finisher import Finisher
from .folder import BUNDLE_KEY, INDEX_KEY, SHEET, SOFTWARE_KEY, Job, JobFolder, picture_name
from .pictures import read_png, to_image, write_png

SHEET_IMAGES = 100
"""A contact sheet shows the first ones."""
SHEET_PIXELS = 2048
"""Large images are shown in smaller number, so that the sheet stays below this width."""


@dataclass(frozen=True)
class Report:
    """What a job did. ``images`` are in the folder, of which ``finished`` were made this time.

    ``nfe`` counts network evaluations per image; ``seconds`` is spent denoising and writing those.
    ``peak_memory_mb`` is the most that this process has held, None where the system does not say.
    """

    images: int
    finished: int
    folder: str
    sheet: str
    provider: str
    nfe: int
    seconds: float
    milliseconds_per_image: float
    peak_memory_mb: float | None


def finish_to_folder(
    finisher: Finisher,
    intermediate: Source,
    folder: Path,
    *,
    batch_size: int | None = None,
    overwrite: bool = False,
    advance: Callable[[int], None] = lambda count: None,
) -> Report:
    """Write ``folder/000000.png`` and so on, ``folder/sheet.png`` and ``folder/job.json``.

    No more than a batch and the sheet is held. Pictures that an interrupted job of the same bundle, intermediates and
    settings left are kept. Every picture carries its settings as PNG text. ``advance`` hears of images as they are
    done. Raises OutputExistsError before any work when a file of something else would be overwritten, MismatchError
    when bundle and intermediate do not fit or the images are neither grey nor RGB.
    """
    channels = finisher.bundle.info.image_shape[0]
    if channels not in (1, 3):
        raise MismatchError(
            f"the bundle makes images with {channels} channels, a PNG file here has 1 (grey) or 3 (RGB); "
            "use edge_client.Finisher.finish, which gives arrays."
        )
    batch_size = finisher.check(intermediate, batch_size)
    common = common_text(finisher, intermediate)
    job = Job(finisher.bundle.digest, intermediate.digest, len(intermediate), finisher.settings.describe())
    text_of = partial(_text_of, finisher, common, intermediate)
    place = JobFolder.claim(folder, job, text_of, overwrite=overwrite, found=advance)
    kept = sum(place.done)
    started = time.monotonic()
    for start, count in place.pending(batch_size):
        block, images = finisher.finish_block(intermediate, start, count)
        place.begin()
        for row, image in enumerate(images):
            text = common | index_text(finisher, block, row, start + row, len(intermediate))
            write_png(folder / picture_name(start + row), to_image(image[None]), text, overwrite=place.overwrites)
        advance(count)
    made = len(intermediate) - kept
    if made or not place.ended or not (folder / SHEET).exists():
        write_png(folder / SHEET, to_image(contact_sheet_of(folder, intermediate)), common, overwrite=True)
        place.end()
    seconds = time.monotonic() - started
    each = 1000 * seconds / made if made else 0.0
    return Report(
        images=len(intermediate),
        finished=made,
        folder=str(folder),
        sheet=str(folder / SHEET),
        provider=finisher.provider,
        nfe=finisher.nfe,
        seconds=seconds,
        milliseconds_per_image=each,
        peak_memory_mb=machine.peak_memory_mb(),
    )


def contact_sheet_of(folder: Path, intermediate: Source) -> Pixels:
    """The first pictures of a finished folder side by side, uint8 [1, h, w, 3]."""
    channels, height, width = intermediate.image_shape
    count = min(SHEET_IMAGES, max(1, SHEET_PIXELS // (max(height, width) + GAP)) ** 2, len(intermediate))
    shown = np.full((count, height, width, channels), PAPER, dtype=np.uint8)
    for index in range(count):
        picture = read_png(folder / picture_name(index))
        if picture is not None and picture.pixels.shape == shown.shape[1:]:
            shown[index] = picture.pixels
    return contact_sheet(shown)


def common_text(finisher: Finisher, intermediate: Source) -> dict[str, str]:
    """The settings that make every picture of a job: both models, the level between them and the samplers."""
    info = finisher.bundle.info
    by_itself = "" if intermediate.autoguidance == 1.0 else f", autoguidance {intermediate.autoguidance:g}"
    server = f"{intermediate.sampler}, NFE {intermediate.nfe}, guidance {intermediate.guidance:g}{by_itself}"
    return {
        SOFTWARE_KEY: f"collafuse {collafuse.__version__}",
        "collafuse:client": info.client,
        BUNDLE_KEY: finisher.bundle.digest,
        "collafuse:intermediates": intermediate.digest,
        "collafuse:server_model": intermediate.server_model,
        "collafuse:sigma": f"{intermediate.sigma:g}",
        "collafuse:server": server,
        **{f"collafuse:{name}": value for name, value in finisher.settings.describe().items()},
    }


def index_text(finisher: Finisher, block: Intermediate, row: int, index: int, total: int) -> dict[str, str]:
    """What is one picture's own: its place among so many of the job and what was asked for."""
    text = {INDEX_KEY: str(index)}
    if block.labels is not None:
        chosen = np.flatnonzero(block.labels[row])
        text["collafuse:labels"] = ", ".join(block.label_names[i] for i in chosen)
    if (prompts := finisher.settings.prompts) is not None:
        text["collafuse:prompt"] = prompts.prompts[dealt_row(index, total, len(prompts))]
    return text


def _text_of(finisher: Finisher, common: dict[str, str], intermediate: Source, index: int) -> dict[str, str]:
    block = intermediate.block(slice(index, index + 1))
    return common | index_text(finisher, block, 0, index, len(intermediate))
