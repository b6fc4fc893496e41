"""``python -m benchmarks.mixtures IMAGES``: how far down in noise a mixture of Gaussians per label holds.

Nothing is trained. The study's 15,000 images to train on are CIFAR-10 at 16x16: 10,000, its one site's, are fitted to,
and 5,000 are noised and looked at. With ``--work``, a work folder of the study, its centralised model stands beside,
and with ``--finish`` it makes pictures of what each begins.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from collafuse.config import Config
from collafuse.core.moments import default_coefficients
from collafuse.core.statistics import MIN_IMAGES
from collafuse.data.imageset import ImageSet
from collafuse.learning import weights
from collafuse.learning.denoiser import Denoiser

from ..study import methods
from ..study.cells import Cell, Study
from ..study.measure import Judge
from ..study.sites import Images
from .finishing import Finishing
from .fit import LEVELS, SEED, best_shrinkage, mixture
from .model import MixtureDenoiser

CENTRALISED = Cell("one-site", "centralised")
FITTED, UNSEEN = 10_000, 5_000
BATCH = 500


@dataclass(frozen=True)
class Look:
    """What a denoiser makes of noisy images: mean squared error of a value, and nats an image where it knows them."""

    error: float
    nats: float


@torch.inference_mode()
def look(denoiser: MixtureDenoiser | Denoiser, images: ImageSet, sigma: float) -> Look:
    """One denoiser at one level; the noise is the same for each."""
    errors, nats = [], []
    for x0, x, conditions in noised(images, sigma):
        levels = torch.full((len(x),), sigma)
        errors.append((denoiser(x, levels, conditions) - x0).square().flatten(1).mean(dim=1))
        if isinstance(denoiser, MixtureDenoiser):
            nats.append(denoiser.log_parts(x, levels, conditions).logsumexp(dim=1))
    return Look(float(torch.cat(errors).mean()), float(torch.cat(nats).mean()) if nats else float("nan"))


def noised(images: ImageSet, sigma: float) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Batches of x0, x at a level, and conditions."""
    rng = np.random.default_rng(SEED)
    for start in range(0, len(images), BATCH):
        some = images.take(np.arange(start, min(start + BATCH, len(images))))
        x0 = torch.from_numpy(some.x0())
        yield (
            x0,
            x0 + sigma * torch.from_numpy(rng.standard_normal(x0.shape)).float(),
            torch.from_numpy(some.conditions()),
        )


def fitted(images: ImageSet, components: int, across_labels: bool) -> MixtureDenoiser:
    """A mixture with the shrinkage that suits it; says what it is."""
    coefficients = default_coefficients(images.image_shape)
    shrinkage = best_shrinkage(images, coefficients, components, across_labels=across_labels)
    made = mixture(images, coefficients, components, shrinkage, across_labels=across_labels)
    sizes = np.array([one.count for one in made.gaussians[:-1]])
    what = f"{len(sizes)} Gaussians of {sizes.min():.0f} to {sizes.max():.0f} images"
    few = f"{(sizes < MIN_IMAGES).sum()} of fewer than {MIN_IMAGES}"
    print(f"- {title(components, across_labels)}: {what}, {few}; shrinkage {shrinkage:g}.", flush=True)
    return made


def title(components: int, across_labels: bool) -> str:
    """The name of a column."""
    return f"{components} per label" + (", across labels" if across_labels else "")


def likelihoods(columns: dict[str, list[Look]], values: int) -> str:
    """Nats per value of the first column, and how many more an image has in each other."""
    first = next(iter(columns))
    rows = [[f"{one.nats / values:.4f}" for one in columns[first]]]
    rows += [
        [f"{one.nats - base.nats:+.2f}" for one, base in zip(c, columns[first], strict=True)] for c in _others(columns)
    ]
    return _table("log-likelihood: nats a value, then more nats an image", list(columns), rows)


def errors(columns: dict[str, list[Look]]) -> str:
    """Mean squared error of the first column, and that of each other as a multiple of it."""
    first = next(iter(columns))
    rows = [[f"{one.error:.5f}" for one in columns[first]]]
    rows += [
        [f"{one.error / base.error:.4f}" for one, base in zip(c, columns[first], strict=True)] for c in _others(columns)
    ]
    return _table("mean squared error, then as a multiple of the first", list(columns), rows)


def _others(columns: dict[str, list[Look]]) -> list[list[Look]]:
    return list(columns.values())[1:]


def _table(what: str, names: list[str], rows: list[list[str]]) -> str:
    head = [f"{what}", "", f"| sigma | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    return "\n".join([*head, *(f"| {at:g} | {' | '.join(row)} |" for at, *row in zip(LEVELS, *rows, strict=True))])


def main() -> None:
    """Print what was fitted and the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mixtures", description=__doc__)
    parser.add_argument("images", type=Path, help="CIFAR-10 as a folder of images, one sub-folder per class")
    parser.add_argument("--components", type=int, nargs="+", default=[4, 16], help="Gaussians per label beside one")
    parser.add_argument("--work", type=Path, help="a work folder of the study")
    parser.add_argument("--finish", type=int, default=0, metavar="N", help="with --work: finish so many pictures each")
    arguments = parser.parse_args()
    config = Study.read().config_of(CENTRALISED, arguments.images, (arguments.work or Path()) / "cache")
    images = Images.of(config)
    (site,) = images.sites(config, FITTED + UNSEEN).values()
    train, unseen = (site.train.take(rows) for rows in np.split(np.arange(FITTED + UNSEEN), [FITTED]))
    kinds = [(1, False), (1, True), *((most, False) for most in arguments.components)]
    made = {title(*kind): fitted(train, *kind) for kind in kinds}
    columns = {name: [look(one, unseen, sigma) for sigma in LEVELS] for name, one in made.items()}
    print(f"\n{likelihoods(columns, math.prod(unseen.image_shape))}\n")
    if arguments.work is None:
        print(errors(columns))
        return
    network = centralised(config, images, arguments.work)
    columns["network"] = [look(network, unseen, sigma) for sigma in LEVELS]
    print(errors(columns))
    if arguments.finish:
        judge = Judge(images.judge, images.reference, arguments.work)
        finishing = Finishing(network, config, judge, site.held_out, unseen.take(np.arange(arguments.finish)))
        print(f"\n{finishing.table(made)}")


def centralised(config: Config, images: Images, work: Path) -> Denoiser:
    """The study's centralised model; raises FileFormatError where it is not trained yet."""
    (part,) = methods.parts_of(CENTRALISED, config, images.sites(config, FITTED), work)
    return weights.load(methods.folder_of(part, work).weights, part.role).learned


if __name__ == "__main__":
    main()
