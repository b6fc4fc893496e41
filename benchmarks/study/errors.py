"""``python -m benchmarks.study.errors DATA --work DIR``: where a server that learned from releases falls behind.

The mean squared error of each server that is trained in a work folder, on images that nobody trained on, level by
level, as a multiple of that of the centralised model of its seed, which learned from the same images clean. What a
Fréchet distance says of a cell in half an hour, this says of its server in a minute, and at which levels.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from collafuse.data.imageset import ImageSet
from collafuse.evaluation.baselines.part import Part
from collafuse.learning.denoiser import Denoiser

from . import methods
from .cells import WHOLE, Cell, Study
from .sites import Images

DATA = "one-site"
TIMES = (1.06, 1.2, 1.5, 2.0, 3.0, 5.0, 10.0)
"""Levels that are looked at, over the cut."""
UNSEEN = 2_000
BATCH = 500


@torch.inference_mode()
def error(denoiser: Denoiser, images: ImageSet, sigma: float) -> float:
    """Mean squared error of a value at one level; the noise is the same for each denoiser."""
    rng, total = np.random.default_rng(0), 0.0
    for start in range(0, len(images), BATCH):
        part = images.take(np.arange(start, min(start + BATCH, len(images))))
        x0 = torch.from_numpy(part.x0())
        x = x0 + sigma * torch.from_numpy(rng.standard_normal(x0.shape).astype(np.float32))
        estimate = denoiser(x, sigma, torch.from_numpy(part.conditions()))
        total += float((estimate - x0).square().flatten(1).mean(dim=1).sum())
    return total / len(images)


def servers(study: Study, images: Images, data: Path, work: Path) -> Iterator[tuple[Cell, Denoiser]]:
    """Each cell of our method whose server is a network that is trained, one for each server."""
    seen = set()
    for cell in study.cells:
        if cell.data != DATA or cell.method != "collafuse" or cell.variant in methods.UNTRAINED:
            continue
        (server, *_) = _parts(cell, study, images, data, work)
        model = None if server.digest in seen else methods.trained(server, work)
        if model is not None:
            seen.add(server.digest)
            yield cell, model.denoiser


def _parts(cell: Cell, study: Study, images: Images, data: Path, work: Path) -> list[Part]:
    config = study.config_of(cell, data, work / "cache")
    return methods.parts_of(cell, config, images.sites(config, study.images_per_site(cell)), work)


def main() -> None:
    """Print a row for each server."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study.errors", description=__doc__)
    parser.add_argument("images", type=Path, help="CIFAR-10 as a folder of images, one sub-folder per class")
    parser.add_argument("--work", type=Path, required=True, help="a work folder of the study")
    arguments = parser.parse_args()
    study, work = Study.read(), arguments.work
    first = Cell(DATA, WHOLE, 1.0)
    config = study.config_of(first, arguments.images, work / "cache")
    images, count = Images.of(config), study.images_per_site(first)
    (site,) = images.sites(config, count + UNSEEN).values()
    unseen = site.train.take(np.arange(count, count + UNSEEN))
    print(f"Held-out error over that of the centralised model, {UNSEEN:,} images, by level over the cut:\n")
    print(f"| cut | variant | seed | {' | '.join(f'{times:g}' for times in TIMES)} |\n|{'---|' * (3 + len(TIMES))}")
    for cell, denoiser in servers(study, images, arguments.images, work):
        (part,) = _parts(replace(first, seed=cell.seed), study, images, arguments.images, work)
        whole = methods.trained(part, work)
        if whole is None:
            continue
        assert cell.cut is not None
        levels = [times * cell.cut for times in TIMES]
        ratios = [error(denoiser, unseen, sigma) / error(whole.denoiser, unseen, sigma) for sigma in levels]
        shown = " | ".join(f"{ratio:.3f}" for ratio in ratios)
        print(f"| {cell.cut:g} | {cell.variant or '-'} | {cell.seed} | {shown} |", flush=True)


if __name__ == "__main__":
    main()
