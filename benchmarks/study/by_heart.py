"""``python -m benchmarks.study.by_heart DATA --work DIR``: what models know of others' images, and what of their own.

The mean squared error of each model that is trained in a work folder, by level, on images that its site held out and
on those that it learned from (a server: on those behind its releases). With few images and many passes a model knows
its own far better, and a Fréchet distance counts it as quality where images come out near those.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from collafuse.core.conditioning import translate_labels
from collafuse.core.noise import LOWEST_TRAINED_ABOVE_CUT
from collafuse.data.dealing import SiteData
from collafuse.evaluation.baselines.part import Part
from collafuse.learning.validation import parted
from collafuse.learning.weights import TrainedModel

from . import methods
from .cells import Cell, Study
from .errors import error
from .sites import Images

LEVELS = (0.2, 0.4, 0.8, 1.2, 2.0, 3.0, 5.0, 10.0)
HELD_OUT = 1_000
METHODS = ("local", "collafuse")


def trained_parts(
    study: Study, cells: list[Cell], images: Images, data: Path, work: Path
) -> Iterator[tuple[str, Part, TrainedModel]]:
    """Each part of these cells that is trained, once: of which cell it is, and what it has become."""
    seen = set()
    for cell in cells:
        config = study.config_of(cell, data, work / "cache")
        for part in methods.parts_of(cell, config, images.sites(config, study.images_per_site(cell)), work):
            model = None if part.digest in seen else methods.trained(part, work)
            if model is not None:
                seen.add(part.digest)
                yield cell.key, part, model


def row_of(part: Part, model: TrainedModel, site: SiteData) -> list[str]:
    """Error on held-out images and on its own, at the levels that a model learned."""
    low, cells = part.sigma_low * (LOWEST_TRAINED_ABOVE_CUT if part.role == "server" else 1), []
    held = site.held_out.take(np.arange(min(HELD_OUT, len(site.held_out))))
    names = model.label_names
    # A server's releases are in an order of their own: what it kept back counts among its images here.
    own = site.train if part.role == "server" else site.train.take(parted(part.data, part.settings)[0].numpy())
    both = [
        replace(images, labels=translate_labels(images.labels, images.label_names, names), label_names=names)
        for images in (held, own)
    ]
    for sigma in LEVELS:
        known = low <= sigma <= part.data.sigma_high
        cells.append(" / ".join(f"{error(model.denoiser, one, sigma):.4f}" for one in both) if known else "-")
    return cells


def main() -> None:
    """Print a row for each model and site."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study.by_heart", description=__doc__)
    parser.add_argument("images", type=Path, help="CIFAR-10 as a folder of images, one sub-folder per class")
    parser.add_argument("--work", type=Path, required=True, help="a work folder of the study")
    parser.add_argument("--data", default="skewed-250", help="the cells of this data")
    arguments = parser.parse_args()
    study = Study.read()
    cells = [c for c in study.cells if c.data == arguments.data and c.method in METHODS and c.variant != "statistics"]
    config = study.config_of(cells[0], arguments.images, arguments.work / "cache")
    images = Images.of(config)
    sites = images.sites(config, study.images_per_site(cells[0]))
    print(f"Error on up to {HELD_OUT:,} held-out images / on those it learned from, by level:\n")
    print(f"| cell | model | images of | {' | '.join(f'{s:g}' for s in LEVELS)} |\n|{'---|' * (3 + len(LEVELS))}")
    for key, part, model in trained_parts(study, cells, images, arguments.images, arguments.work):
        for name in sites if part.role == "server" else [part.node]:
            print(f"| {key} | {part.node} | {name} | {' | '.join(row_of(part, model, sites[name]))} |", flush=True)


if __name__ == "__main__":
    main()
