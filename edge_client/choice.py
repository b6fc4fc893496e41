"""``--provider auto``: the fastest provider that gives a bundle's known answer on this machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import onnxruntime

from collafuse.core.bundle import Bundle
from collafuse.core.errors import CollaFuseError, RuntimeMissingError

from . import caches, machine
from .cores import check_threads
from .denoiser import OnnxDenoiser
from .providers import CPU, PROVIDERS, candidates
from .session import Say, open_session

if TYPE_CHECKING:
    from .trial import Trial

WORTH_IT = 1.2
"""How many times as fast as the CPU another provider must be: it needs more memory and starts more slowly."""
KIND = "provider"

Try = Callable[[Path, str, int], "Trial"]


def open_fastest(path: Path, bundle: Bundle, threads: int | None, say: Say) -> OnnxDenoiser:
    """A bundle's denoiser on the provider that is fastest here.

    Where onnxruntime offers one candidate, that is it and nothing is measured. Otherwise each is tried in a process
    of its own, and the verdict is remembered for this bundle, onnxruntime and machine. Raises RuntimeMissingError
    when none works.
    """
    names = candidates(onnxruntime.get_available_providers())
    if len(names) == 1:
        return open_session(bundle, names[0], threads, say)
    threads = check_threads(threads)
    key = {
        "bundle": bundle.digest,
        "onnxruntime": onnxruntime.__version__,
        "machine": machine.identity(),
        "candidates": " ".join(names),
        "threads": str(threads),
    }
    if (name := remembered(key, names, say)) is not None:
        try:
            return open_session(bundle, name, threads, say)
        except CollaFuseError as error:
            say(f"provider {name} no longer works ({error}); trying all of them again.")
    from .trial import try_isolated

    return open_session(bundle, choose(path, names, threads, key, say, try_isolated), threads, say)


def remembered(key: dict[str, str], names: list[str], say: Say) -> str | None:
    """The provider that was chosen before, or None."""
    value = caches.read_entry(KIND, key) or {}
    name, why = value.get("provider"), value.get("why")
    if name not in names or not isinstance(name, str) or not isinstance(why, str) or not why.isprintable():
        return None
    again = f"To measure again, remove {caches.entry_path(KIND, key)}."
    say(f"Provider {name}, as measured before: {why[:500]}. {again}")
    return name


def choose(path: Path, names: list[str], threads: int, key: dict[str, str], say: Say, attempt: Try) -> str:
    """Try each provider, say what came of it, and return the fastest; it is remembered unless one lacked memory or room
    for files. Raises RuntimeMissingError."""
    from .trial import Trial  # here, because most devices have one provider and never try

    say(f"Trying the providers that onnxruntime offers: {', '.join(names)} (once for this bundle and machine).")
    trials = []
    for name in names:
        if PROVIDERS[name].builds_engines:
            if caches.usable_folder() is None:
                trials.append(Trial(name, None, "not tried: the cache folder, for what it builds, cannot be written"))
                continue
            if machine.tensorrt_version():
                say(f"{name} builds an engine at first; this takes minutes. --provider cpu does without.")
        trials.append(attempt(path, name, threads))
    working = {t.provider: t.milliseconds for t in trials if t.milliseconds is not None}
    why = "; ".join(map(str, trials))
    if not working:
        raise RuntimeMissingError(f"no provider runs the bundle: {why}. collafuse inspect checks the file.")
    best = min(working, key=lambda name: working[name] * (1.0 if name == CPU else WORTH_IT))
    say(f"Provider {best}: per image and evaluation, {why}.")
    if short := ", ".join(t.provider for t in trials if t.may_pass):
        say(f"What {short} lacked may be there next time, so all are measured again then, unless --provider names one.")
    else:
        caches.write_entry(KIND, key, {"provider": best, "why": why})
    return best
