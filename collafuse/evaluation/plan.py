"""Where to cut: for a grid of cuts what the server could learn, what the images are worth, and what a device pays.

One server serves every cut above the one it was trained at: it is a denoiser of all levels from there on; one of
statistics serves every cut, and what it could learn depends on the budget that they carry noise for. For each cut and
client a short client is trained, the same number of steps for all, so that cuts can be compared with each other
(with ``evaluate``'s figures of the run's own clients they cannot). Each finished cut is kept and not made again.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import TypeVar

import torch

from edge_client import machine

from ..config import Config
from ..core.atomic import write_bytes
from ..core.errors import DataError, UsageError
from ..core.mechanism import Budget
from ..data.listening import UNHEARD, Listener
from ..learning.observer import Observer
from ..nodes.runfolder import RunFolder
from .budgets import EPSILONS, BudgetCut, BudgetFigures, Sent, simulated
from .cuts import cuts_for, none_can_be_tried, say_what_is_left_out
from .features import Extractor, choose, classifier_of
from .one_cut import CutFigures, OneCut
from .standing import without_idle
from .tables import FOLDER
from .trial import recut
from .whole_run import WholeRun

ENOUGH = 20
"""Held-out images, and training images for the floor, without which no distance is measured."""
Row = TypeVar("Row", CutFigures, BudgetFigures)


@dataclass(frozen=True)
class Plan:
    """cuts: of every client, where images are sent; budgets: of every cut and client, where statistics are sent; note:
    what the distances are measured in; untried: clients for which none of the cuts can be tried."""

    cuts: tuple[CutFigures, ...]
    budgets: tuple[BudgetFigures, ...]
    note: str
    untried: tuple[str, ...] = ()


@dataclass(frozen=True)
class Settings:
    """cuts: sigmas to try, None for a ladder from each site's own; epsilons: budgets of statistics to try, None for
    EPSILONS; train_steps: of each client, None for a quarter of what is configured; features, weights: as ``evaluate``
    has them."""

    cuts: tuple[float, ...] | None = None
    epsilons: tuple[float, ...] | None = None
    train_steps: int | None = None
    seed: int = 0
    features: str = "auto"
    weights: Path | None = None


def plan(
    folder: RunFolder,
    settings: Settings,
    device: torch.device,
    observer_of: Callable[[str], Observer],
    listener: Listener = UNHEARD,
) -> Plan:
    """The figures of every cut of every site, made where they are not kept from before.

    Raises DataError for a site with too few images, UsageError where none of the cuts can be tried and for budgets
    where no statistics are sent, ConfigError for an impossible budget, and what opening the run raises.
    """
    run = WholeRun.open(folder, device, listener)
    _check_enough(run)
    _check_budgets(run, settings.epsilons)
    planned = [(name, cut) for name in run.sites for cut in cuts_for(run, name, settings.cuts)]
    say_what_is_left_out(run, planned, settings.cuts, listener)
    if not planned:
        raise UsageError(none_can_be_tried(run, settings.cuts or ()))
    known = run.known()
    classifier = classifier_of(known, folder.path / FOLDER)
    extractor = choose(settings.features, settings.weights, known, classifier, device)
    note = f"Fréchet distances are in features of {extractor.name}."
    untried = tuple(name for name in run.sites if name not in dict(planned))

    def given(name: str, sigma: float) -> tuple[WholeRun, str, Config, Extractor, int, Observer]:
        changed = recut(run.config, name, sigma, settings.train_steps)
        return run, name, changed, extractor, settings.seed, observer_of(f"{name} {sigma:.3g}")

    def rows(kind: type[Row], made: Callable[[str, float], list[Row]]) -> tuple[Row, ...]:
        found = []
        bar = listener.bar("cuts", len(planned))
        for name, sigma in planned:
            path = folder.path / FOLDER / "plan" / f"{name}-{sigma:.4g}.json"
            found += _kept_or_made(
                path, key_of(run, name, sigma, settings, extractor.name), kind, partial(made, name, sigma)
            )
            bar.advance(1)
        return tuple(found)

    @cache
    def budgets() -> list[Sent]:
        return [simulated(run, epsilon, settings.seed) for epsilon in (None, *(settings.epsilons or EPSILONS))]

    if run.server_model is not None:
        return Plan(rows(CutFigures, lambda *cut: [OneCut(*given(*cut)).figures()]), (), note, untried)
    return Plan((), rows(BudgetFigures, lambda *cut: BudgetCut(*given(*cut)).figures(budgets())), note, untried)


def _check_budgets(run: WholeRun, epsilons: tuple[float, ...] | None) -> None:
    """Raise for budgets that are asked for where no statistics are sent, or that no release can have."""
    if epsilons and run.server_model is not None:
        raise UsageError(
            f"--epsilon {epsilons[0]:g}: a budget is of statistics, and this run's sites send images. Leave it out, or "
            "train with server.kind=statistics."
        )
    for name in run.sites:
        for epsilon in epsilons or EPSILONS:
            Budget(epsilon, run.config.client(name).statistics.delta)


def _check_enough(run: WholeRun) -> None:
    """Raise DataError for a site with too few images to measure a distance by; first, not after minutes of training."""
    for name, site in run.sites.items():
        for images, least, what in ((site.held_out, ENOUGH, "holds out"), (site.train, 2 * ENOUGH, "trains on")):
            if len(images) < least:
                raise DataError(
                    f"{name} {what} {len(images)} images; at least {least} are needed to compare with. Give it more "
                    "images, or change data.held_out, and train again."
                )


def key_of(run: WholeRun, name: str, sigma: float, settings: Settings, extractor: str) -> dict[str, object]:
    """What a kept row depends on, as it stands in its file."""
    config = recut(run.config, name, sigma, settings.train_steps)
    return {
        "server": run.server.model.id,
        "sampling": without_idle(config.server.model_dump(mode="json", exclude={"network", "training"})),
        "client": without_idle(config.client(name).model_dump(mode="json")),
        "budgets": None if run.server_model is not None else list(settings.epsilons or EPSILONS),
        "seed": settings.seed,
        "features": extractor,
        "images": run.images_digest,
        "machine": machine.identity(),  # whose milliseconds they are
    }


def _kept_or_made(path: Path, key: dict[str, object], kind: type[Row], made: Callable[[], list[Row]]) -> list[Row]:
    """The rows of an earlier call, if they are of the same things; anything else is made again, and kept."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["key"] == key:
            return [kind(**row) for row in values["figures"]]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    rows = made()
    kept = {"key": key, "figures": [asdict(row) for row in rows]}
    write_bytes(path, json.dumps(kept, indent=1).encode(), overwrite=True)
    return rows
