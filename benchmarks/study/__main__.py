"""``python -m benchmarks.study DATA --work DIR``: run the study's cells that have no line of results yet.

Started several times with one work folder, as on a machine of several cores, each takes cells that no other has.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
import traceback
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from cli.console import Reporter, reporting, say
from collafuse.config import Config
from collafuse.core.errors import CollaFuseError
from collafuse.data.dealing import SiteData
from collafuse.data.imageset import ImageSet
from collafuse.evaluation.baselines import METHODS, halves
from collafuse.evaluation.baselines.asked import Asked
from collafuse.evaluation.generated import Generated
from collafuse.evaluation.pooling import pooled as pooled_images
from collafuse.learning.networks import num_parameters
from collafuse.nodes.sites import Site

from . import methods
from .cells import REAL, Cell, Study
from .measure import Judge, pooled
from .sites import Images
from .table import RESULTS, finished, to_markdown
from .turns import alone

SAMPLES = 10_000
SAMPLING_SEED = 7
CPU = torch.device("cpu")


def run_cell(
    cell: Cell, study: Study, images: Images, judge: Judge, folders: tuple[Path, Path], reporter: Reporter
) -> dict[str, Any]:
    """Train, generate and measure one cell; returns its line of results."""
    data, work = folders
    config = study.config_of(cell, data, work / "cache")
    sites = images.sites(config, study.images_per_site(cell))
    started, cpu = time.monotonic(), time.process_time()
    everyone: dict[str, Any] = {}
    with alone(work / "releases.lock"):
        parts = [] if cell.method == REAL else methods.parts_of(cell, config, sites, work)
        if cell.variant == "statistics":
            everyone[halves.SERVER] = methods.statistics_server(cell, config, sites, work)
    if cell.variant in methods.MIXTURES:
        (site,) = sites.values()
        everyone[halves.SERVER] = methods.mixture_server(site, methods.MIXTURES[cell.variant])
    models = methods.train(parts, work, reporter)
    everyone |= models
    trained, trained_cpu = time.monotonic() - started, time.process_time() - cpu
    made = images.unseen(config, counts_of(sites)) if cell.method == REAL else generate(cell, config, sites, everyone)
    return cell.to_json() | {
        "figures": judge.figures(pooled(made), reference_of(sites)),
        "figures_per_site": {n: judge.figures(made[n], sites[n].held_out) for n in made} if len(made) > 1 else {},
        "samples": SAMPLES,
        "reference_images": sum(len(site.held_out) for site in sites.values()),
        "training_images": {name: len(site.train) for name, site in sites.items()},
        "parts": {part.node: part.digest[:16] for part in parts},
        "parameters": {node: num_parameters(model.denoiser) for node, model in models.items()},
        "steps": {part.node: part.settings.steps for part in parts},
        "steps_kept": {node: model.steps for node, model in models.items()},
        "training_seconds_here": [round(trained), round(trained_cpu)],
        "judge": judge.digest,
        "judge_accuracy": judge.accuracy,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} thread",
        "torch": torch.__version__,
        "date": _now().date().isoformat(),
    }


def generate(
    cell: Cell, config: Config, sites: Mapping[str, SiteData], models: Mapping[str, Any], samples: int = SAMPLES
) -> dict[str, Generated]:
    """Every site's images, so many in all, from the same starting noise in every cell."""
    statistics = cell.variant in methods.UNTRAINED
    known = {
        name: Site(config.client(name).cut.resolve().sigma, site.train.label_names, True, statistics)
        for name, site in sites.items()
    }
    sample = METHODS[cell.method].sample if cell.method in METHODS else halves.sample
    return {
        name: sample(Asked(config, models, known, name, count, SAMPLING_SEED + index, CPU))
        for index, (name, count) in enumerate(counts_of(sites, samples).items())
    }


def counts_of(sites: Mapping[str, SiteData], samples: int = SAMPLES) -> dict[str, int]:
    """How many images are generated for each site: as many as its share of the held-out ones."""
    share = samples / sum(len(site.held_out) for site in sites.values())
    return {name: round(share * len(site.held_out)) for name, site in sites.items()}


def reference_of(sites: Mapping[str, SiteData]) -> ImageSet:
    """All sites' held-out images."""
    return pooled_images({name: site.held_out for name, site in sites.items()})


def main() -> None:
    """Run what is missing, in order."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study", description=__doc__)
    parser.add_argument("images", nargs="?", type=Path, help="CIFAR-10 as a folder of images, one sub-folder per class")
    parser.add_argument("--work", type=Path, help="where trainings, releases and the judge are kept")
    parser.add_argument("--list", action="store_true", help="say which cells there are and which are finished")
    parser.add_argument("--table", action="store_true", help="print the finished cells as Markdown")
    parser.add_argument("--cells", type=int, default=None, metavar="N", help="stop after so many")
    arguments = parser.parse_args()
    study, done = Study.read(), finished()
    if arguments.table:
        print(to_markdown(done, study))
        return
    if arguments.list:
        for cell in study.cells:
            print(f"{'done' if cell in done else '    '}  {cell.key}")
        return
    if arguments.images is None or arguments.work is None:
        parser.error("give the folder of images and --work DIR, or --list, or --table")
    run(study, [cell for cell in study.cells if cell not in done], arguments)


def run(study: Study, missing: list[Cell], arguments: argparse.Namespace) -> None:
    """Train and measure these cells; each line is written when its cell is finished."""
    work, taken = arguments.work, 0
    with alone(work / "judge.lock"):
        images = Images.of(study.config_of(study.cells[0], arguments.images, work / "cache"))
        judge = Judge(images.judge, images.reference, work)
    say(f"The judge reads {judge.accuracy:.1%} of held-out images. {len(missing)} cells to go.")
    for cell in missing:
        with alone(work / "cells" / f"{cell.key}.lock", wait=False) as mine:
            if mine and cell not in finished() and taken != arguments.cells:
                taken += 1
                run_and_keep(cell, study, images, judge, arguments)


def run_and_keep(cell: Cell, study: Study, images: Images, judge: Judge, arguments: argparse.Namespace) -> None:
    """Run a cell and write its line; one that fails is said, since the others are worth running."""
    say(f"{_now():%H:%M} {cell.key}")
    try:
        with reporting() as reporter:
            line = run_cell(cell, study, images, judge, (arguments.images, arguments.work), reporter)
    except (CollaFuseError, OSError, RuntimeError):
        traceback.print_exc()
        return
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    say(f"{_now():%H:%M} {cell.key}: Frechet {line['figures']['frechet'][0]:.2f}")


def _now() -> datetime:
    return datetime.now(timezone.utc)


if __name__ == "__main__":
    main()
