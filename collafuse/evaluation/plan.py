"""Where to cut: for a grid of cuts what the server could learn, what the images are worth, and what a device pays.

One server serves every cut above the one it was trained at: it is a denoiser of all levels from there on. For each cut
and client a short client is trained, the same number of steps for all, so that cuts can be compared with each other
(with ``evaluate``'s figures of the run's own clients they cannot). Each finished cut is kept and not made again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from edge_client import machine

from ..core.atomic import write_bytes
from ..core.errors import DataError, UsageError
from ..core.noise import SIGMA_MAX
from ..data.listening import UNHEARD, Listener
from ..learning.checkpoint import digest_of_tensors
from ..learning.observer import Observer
from ..nodes.runfolder import RunFolder
from .features import choose, classifier_of
from .one_cut import CutFigures, OneCut, recut
from .tables import FOLDER
from .whole_run import WholeRun

LADDER = (0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0)
"""Cuts that are tried where none are named, from a site's own on."""
CUTS_PER_SITE = 5
ENOUGH = 20
"""Held-out images, and training images for the floor, without which no distance is measured."""


@dataclass(frozen=True)
class Plan:
    """rows: of every cut and client; note: what the distances are measured in."""

    rows: tuple[CutFigures, ...]
    note: str


@dataclass(frozen=True)
class Settings:
    """cuts: sigmas to try, None for a ladder from each site's own; train_steps: of each client, None for a quarter of
    what is configured; features, weights: as ``evaluate`` has them."""

    cuts: tuple[float, ...] | None = None
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

    Raises DataError for a site with too few images, UsageError for a cut below every site's own and for a server of
    statistics, and what opening the run raises.
    """
    run = WholeRun.open(folder, device, listener)
    if run.server_model is None:
        raise UsageError(
            f"the server of {folder.path} adds up statistics: no image was released to it and it learned no level, so "
            "there is no cut to move. plan is for a run with server.kind=images."
        )
    _check_enough(run)
    planned = [(name, cut) for name in run.sites for cut in cuts_for(run, name, settings.cuts)]
    say_what_is_left_out(run, planned, settings.cuts, listener)
    if not planned:
        raise UsageError(
            f"no cut of {list(settings.cuts or ())} lies at or above a site's own; the server has learned nothing "
            "below. Name higher ones, or train a run with lower cuts."
        )
    known = run.known()
    classifier = classifier_of(known, folder.path / FOLDER)
    extractor = choose(settings.features, settings.weights, known, classifier, device)
    found = []
    bar = listener.bar("cuts", len(planned))
    for name, sigma in planned:
        path = folder.path / FOLDER / "plan" / f"{name}-{sigma:.4g}.json"
        key = key_of(run, name, sigma, settings, extractor.name)
        row = _kept(path, key)
        if row is None:
            changed = recut(run.config, name, sigma, settings.train_steps)
            observer = observer_of(f"{name} {sigma:.3g}")
            row = OneCut(run, name, changed, extractor, settings.seed, observer).figures()
            write_bytes(path, json.dumps({"key": key, "figures": asdict(row)}, indent=1).encode(), overwrite=True)
        found.append(row)
        bar.advance(1)
    return Plan(tuple(found), f"Fréchet distances are in features of {extractor.name}.")


def _check_enough(run: WholeRun) -> None:
    """Raise DataError for a site with too few images to measure a distance by; first, not after minutes of training."""
    for name, site in run.sites.items():
        for images, least, what in ((site.held_out, ENOUGH, "holds out"), (site.train, 2 * ENOUGH, "trains on")):
            if len(images) < least:
                raise DataError(
                    f"{name} {what} {len(images)} images; at least {least} are needed to compare with. Give it more "
                    "images, or change data.held_out, and train again."
                )


def say_what_is_left_out(
    run: WholeRun, planned: Sequence[tuple[str, float]], cuts: Sequence[float] | None, listener: Listener
) -> None:
    """Name the cuts that were asked for and are not tried, client by client."""
    for name in run.sites:
        tried = [sigma for of, sigma in planned if of == name]
        if out := [f"{sigma:g}" for sigma in sorted(set(cuts or ())) if sigma not in tried]:
            listener.say(
                f"{name} is not tried at sigma {', '.join(out)}: it released at {run.server.site(name).sigma_cut:g}, "
                f"and the server can tell of levels from there to {SIGMA_MAX:g}."
            )


def cuts_for(run: WholeRun, name: str, cuts: Sequence[float] | None) -> list[float]:
    """The cuts that a run can tell of for a site: from its own, below which the server learned nothing of it."""
    own = run.server.site(name).sigma_cut
    if cuts is None:
        above = [sigma for sigma in LADDER if sigma > own * 1.1]
        kept = np.unique(np.linspace(0, len(above) - 1, CUTS_PER_SITE - 1).round().astype(int)) if above else ()
        return [own, *(above[i] for i in kept)]
    return sorted({sigma for sigma in cuts if own * 0.999 <= sigma < SIGMA_MAX})


def key_of(run: WholeRun, name: str, sigma: float, settings: Settings, extractor: str) -> dict[str, object]:
    """What a kept row depends on, as it stands in its file."""
    config = recut(run.config, name, sigma, settings.train_steps).client(name)
    images = digest_of_tensors(*(torch.from_numpy(part.digests) for part in run.sites[name].parts))
    return {
        "server": run.server.model.id,
        "client": json.loads(config.model_dump_json()),
        "seed": settings.seed,
        "features": extractor,
        "images": images,
        "machine": machine.identity(),  # whose milliseconds they are
    }


def _kept(path: Path, key: dict[str, object]) -> CutFigures | None:
    """The row of an earlier call, if it is of the same things; anything else is made again."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return CutFigures(**values["figures"]) if values["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
