"""Which cuts of a site are tried: those that its server can tell of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..config.nodes import CutSettings
from ..core.errors import ConfigError
from ..core.noise import SIGMA_MAX
from ..data.listening import Listener
from .whole_run import WholeRun

LADDER = (0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0)
"""Cuts that are tried where none are named, beside a site's own."""
CUTS_PER_SITE = 5


def cuts_for(run: WholeRun, name: str, cuts: Sequence[float] | None) -> list[float]:
    """The cuts that a run can tell of for a site, by default a few: from its own on, below which a server of images has
    learned nothing of it; of statistics, which stand at no cut, from the lowest of LADDER on."""
    own, lowest = run.server.site(name).sigma_cut, lowest_of(run, name)
    if cuts is not None:
        return sorted(s for s in set(cuts) if _can_tell(run, name, s) and not untaught(run, name, s))
    others = [sigma for sigma in LADDER if sigma >= lowest and not own / 1.1 <= sigma <= own * 1.1]
    others = [sigma for sigma in others if not untaught(run, name, sigma)]
    kept = np.unique(np.linspace(0, len(others) - 1, CUTS_PER_SITE - 1).round().astype(int)) if others else ()
    return sorted([own, *(others[i] for i in kept)])


def lowest_of(run: WholeRun, name: str) -> float:
    """The lowest cut that a run can tell of for a site."""
    own = run.server.site(name).sigma_cut
    return own if run.server_model is not None else min(own, LADDER[0])


def _can_tell(run: WholeRun, name: str, sigma: float) -> bool:
    """Whether a cut lies where a run can tell anything of it."""
    return lowest_of(run, name) * 0.999 <= sigma < SIGMA_MAX


def untaught(run: WholeRun, name: str, sigma: float) -> str:
    """Why the server would be asked where releases at a cut teach nothing, empty where it would not, or can tell of no
    such cut: with a handover near 1, the same steps are the denser the higher the cut."""
    if run.server_model is None or not _can_tell(run, name, sigma):  # the first takes no steps
        return ""
    try:
        run.config.check_levels(name, run.config.client(name).model_copy(update={"cut": CutSettings(sigma=sigma)}))
    except ConfigError as error:
        return str(error)
    return ""


def none_can_be_tried(run: WholeRun, cuts: Sequence[float]) -> str:
    """Why none of these cuts is tried at any site."""
    for sigma in cuts:
        for name in run.sites:
            if why := untaught(run, name, sigma):
                return f"no cut of {list(cuts)} can be tried. At sigma {sigma:g}, {why}"
    lowest = min(lowest_of(run, name) for name in run.sites)
    lower = "the server has learned nothing below; train a run with lower cuts for that, or n"
    return (
        f"no cut of {list(cuts)} lies from {lowest:g} to {SIGMA_MAX:g}, of which this run can tell: "
        f"{lower if run.server_model is not None else 'n'}ame others."
    )


def say_what_is_left_out(
    run: WholeRun, planned: Sequence[tuple[str, float]], cuts: Sequence[float] | None, listener: Listener
) -> None:
    """Name the cuts that were asked for and are not tried, client by client."""
    for name in run.sites:
        tried = [sigma for of, sigma in planned if of == name]
        left = [sigma for sigma in sorted(set(cuts or ())) if sigma not in tried]
        dense = {sigma: why for sigma in left if (why := untaught(run, name, sigma))}
        for sigma, why in dense.items():
            listener.say(f"{name} is not tried at sigma {sigma:g}: {why}")
        if out := [f"{sigma:g}" for sigma in left if sigma not in dense]:
            own = run.server.site(name).sigma_cut
            why = (
                f"it released at {own:g}, and the server" if run.server_model is not None else "a server of statistics"
            )
            listener.say(
                f"{name} is not tried at sigma {', '.join(out)}: {why} can tell of levels from "
                f"{lowest_of(run, name):g} to {SIGMA_MAX:g}."
            )
