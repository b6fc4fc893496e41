"""``python -m benchmarks.study.steps DATA --work DIR``: what evaluations and guidance do to a figure.

Every other figure of the study is made with one number of the client's evaluations and, but for variants, without
guidance of either kind. Models that are trained this shortly look better with fewer evaluations and with guidance,
whatever their method, so methods can be compared only where each is seen with several. The Fréchet distance of each
cell that is trained in a work folder, with fewer samples than the study's, so larger.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from collafuse.config import Config

from . import methods
from .__main__ import generate, reference_of
from .cells import WHOLE, Cell, Study
from .measure import Judge, pooled
from .sites import Images
from .table import name_of

DATA = "one-site"
METHODS = (WHOLE, "collafuse", "reference")
VARIANTS = (None, "handover-1")
KINDS = ("guidance", "autoguidance")
STEPS = (4, 8, 24)
"""Evaluations below where a client takes over; a whole model makes as many there."""
SAMPLES = 2_000


def finishing_in(config: Config, steps: int) -> Config:
    """A configuration whose clients finish in so many evaluations."""
    return _sampling(config, {}, {"steps": steps})


def guided_by(config: Config, weights: tuple[float, float], kind: str = "guidance") -> Config:
    """A configuration whose server and clients guide with these weights, by either kind of guidance."""
    of_server, of_clients = weights
    return _sampling(config, {kind: of_server}, {kind: of_clients})


def _sampling(config: Config, server: Mapping[str, float], clients: Mapping[str, float]) -> Config:
    """A configuration with these settings of the server's sampler and of its clients'."""

    def changed(node: Any, settings: Mapping[str, float]) -> Any:
        return node.model_copy(update={"sampler": node.sampler.model_copy(update=dict(settings))})

    others = {name: changed(client, clients) for name, client in config.clients.items()}
    return config.model_copy(update={"server": changed(config.server, server), "clients": others})


Way = Callable[[Config], Config]
"""How else to sample."""


def ways_of(arguments: argparse.Namespace) -> tuple[str, dict[str, Way]]:
    """What differs between the ways that a command asks for, and each by its column's name."""
    ways: dict[str, Way] = {}
    for kind in KINDS:
        if weights := getattr(arguments, kind):
            ways |= {f"{one[0]:g}, {one[1]:g}": partial(guided_by, weights=one, kind=kind) for one in weights}
            return f"{kind} of server and client", ways
    ways |= {str(steps): partial(finishing_in, steps=steps) for steps in arguments.steps}
    return "the client's evaluations", ways


def frechet(
    cell: Cell, study: Study, images: Images, judge: Judge, ways: Iterable[Way], data: Path, work: Path
) -> list[float] | None:
    """The cell's Fréchet distance for each way to sample; None where it is not trained."""
    config = study.config_of(cell, data, work / "cache")
    sites = images.sites(config, study.images_per_site(cell))
    parts = methods.parts_of(cell, config, sites, work)
    models = {part.node: methods.trained(part, work) for part in parts}
    if None in models.values():
        return None
    made = (generate(cell, way(config), sites, models, SAMPLES) for way in ways)
    return [judge.figures(pooled(one), reference_of(sites))["frechet"][0] for one in made]


def _weights(text: str) -> tuple[float, float]:
    server, client = text.split(",")
    return float(server), float(client)


def main() -> None:
    """Print a row for each cell that is trained."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study.steps", description=__doc__)
    parser.add_argument("images", type=Path, help="CIFAR-10 as a folder of images, one sub-folder per class")
    parser.add_argument("--work", type=Path, required=True, help="a work folder of the study")
    parser.add_argument("--cuts", type=float, nargs="+", help="those of these cuts alone")
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS, help="these numbers of evaluations")
    either = parser.add_mutually_exclusive_group()
    for kind in KINDS:
        said = f"in place of them, these weights of {kind}"
        either.add_argument(f"--{kind}", type=_weights, nargs="+", metavar="SERVER,CLIENT", help=said)
    parser.add_argument("--variants", nargs="+", default=VARIANTS, help="the cells of these variants")
    parser.add_argument("--seed", type=int, default=0, help="the cells of this seed")
    arguments = parser.parse_args()
    study, work = Study.read(), arguments.work
    cells = [
        cell
        for cell in study.cells
        if cell.data == DATA
        and cell.method in METHODS
        and cell.variant in arguments.variants
        and cell.seed == arguments.seed
    ]
    images = Images.of(study.config_of(cells[0], arguments.images, work / "cache"))
    judge = Judge(images.judge, images.reference, work)
    what, ways = ways_of(arguments)
    print(f"Fréchet distance by {what}, {SAMPLES:,} samples:\n")
    print(f"| method | cut | {' | '.join(ways)} |\n|{'---|' * (2 + len(ways))}", flush=True)
    for cell in sorted(cells, key=lambda cell: cell.cut or 0):
        if arguments.cuts and cell.cut not in arguments.cuts:
            continue
        found = frechet(cell, study, images, judge, ways.values(), arguments.images, work)
        if found is not None:
            print(f"| {' | '.join((*name_of(cell), *(f'{value:.1f}' for value in found)))} |", flush=True)


if __name__ == "__main__":
    main()
