"""What a table of several runs says of where each cuts, and of where each is evaluated while it samples."""

from __future__ import annotations

from collections.abc import Mapping

from ..config import Config
from ..config.settings import SPLIT
from .arms import levels_of, sampling_schedule, takes_over_above


def cuts_of(config: Config) -> str:
    """Where each client cuts, and where it takes over if that is another level."""
    if config.method not in SPLIT:
        return f"none, since {config.method} has one model of the whole noise range"
    said = []
    for name in config.clients:
        (cut, _), later = levels_of(config, name), takes_over_above(config, name)
        said.append(f"{name} {cut:.3g}" + (f" (takes over at {later:.3g})" if later is not None else ""))
    return f"sigma {', '.join(said)}"


def other_levels(configs: Mapping[str, Config]) -> list[str]:
    """What is to be said of runs beside the main one, "", whose images are evaluated at other levels than its own."""
    walked = {name: [sampling_schedule(config, one) for one in configs[""].clients] for name, config in configs.items()}
    others = [name for name, schedules in walked.items() if schedules != walked[""]]
    if not others:
        return []
    return [
        f"{', '.join(others)}: sampled along other levels, or by another sampler, than this run, which can change "
        "figures by as much as a method does. To compare methods, give them one cut, handover and sampler."
    ]
