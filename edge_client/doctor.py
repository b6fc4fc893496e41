"""``collafuse doctor``: what works on this machine and what does not, each problem with its fix. Uses no network.

It imports nothing that may be missing: whatever is asked of onnxruntime is asked in a process of its own.
"""

from __future__ import annotations

import importlib.metadata
import platform
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from collafuse.core.errors import CollaFuseError, RuntimeMissingError, StorageError

from . import machine
from .cgroups import processor_quota
from .child import ChildError, run_child
from .cores import allowed_processors, check_threads, physical_cores
from .scratch import scratch_folder

if TYPE_CHECKING:
    from collafuse.core.bundle import Bundle

    from .trial import Trial

OK, WARNING, PROBLEM = "ok", "warning", "problem"
PACKAGES = {"numpy": "1.26", "onnxruntime": "1.23", "pillow": "11", "safetensors": "0.5", "typer": "0.26"}
"""What finishing needs, and the oldest versions that we rely on, as in pyproject.toml."""
OLDEST_PYTHON = (3, 10)
MEMORY_MB = 200.0
"""Available memory below which finishing may be killed: a process takes about 100 MB with a small bundle."""
DISK_MB = 50.0
ROOM = "free some space, or write elsewhere with -o (TMPDIR for temporary files)"
ASK_SECONDS = 120.0
ONE_DAY = 86_400.0

Say = Callable[[str], None]


def _nobody(text: str) -> None:
    """Hears what is said where nobody else does."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. A problem makes finishing fail, with this exit code; a warning does not."""

    name: str
    status: str
    found: str
    fix: str = ""
    exit_code: int = RuntimeMissingError.exit_code


def examine(bundle: Path | None = None, threads: int | None = None, say: Say = _nobody) -> Iterator[Check]:
    """Every check in turn, as it is done; those of a bundle where one is given. ``say`` hears what takes minutes."""
    yield _python()
    yield from _packages()
    yield _runtimes()
    yield _processor()
    yield _threads(threads)
    yield _memory()
    yield from _disk()
    yield _cache()
    yield _clock()
    try:
        with scratch_folder("trying a provider") as folder:
            yield from _providers(folder, bundle, check_threads(threads), say)
    except StorageError as error:
        yield _untried(str(error))


def _untried(why: str) -> Check:
    """Where not even a small file can be written, nothing can be tried, and pictures cannot be written either."""
    return Check("onnxruntime runs", PROBLEM, f"not tried: {why}", ROOM, StorageError.exit_code)


def exit_code(checks: list[Check]) -> int:
    """0 when finishing would work, otherwise the code of the first problem."""
    return next((check.exit_code for check in checks if check.status == PROBLEM), 0)


def _python() -> Check:
    found = f"{machine.python_version()} on {platform.system()} {platform.machine()}"
    if sys.version_info[:2] >= OLDEST_PYTHON:
        return Check("python", OK, found)
    return Check("python", PROBLEM, found, "install Python 3.10 or newer and collafuse in it")


def _packages() -> Iterator[Check]:
    for name, oldest in PACKAGES.items():
        try:
            version = _installed_version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Check(name, PROBLEM, "not installed", f"pip install '{name}>={oldest}'")
            continue
        if _numbers(version) < _numbers(oldest):
            newer = f"pip install '{name}>={oldest}'"
            if name == "onnxruntime" and (other := _special_runtime()):
                newer = f"get {other} {oldest} or newer where this one came from"
            yield Check(name, WARNING, version, f"{oldest} is the oldest that is tested: {newer}")
        else:
            yield Check(name, OK, version)


def _installed_version(name: str) -> str:
    if name != "onnxruntime":
        return importlib.metadata.version(name)
    runtimes = installed_runtimes()
    if not runtimes:
        raise importlib.metadata.PackageNotFoundError(name)
    return next(iter(runtimes.values()))


def _special_runtime() -> str:
    """The name of an onnxruntime for other hardware that is installed in the place of the ordinary one, or nothing.

    The ordinary one would overwrite its files, and those for Jetsons do not come from the package index.
    """
    runtimes = installed_runtimes()
    return "" if "onnxruntime" in runtimes else next(iter(runtimes), "")


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)[:2]]


def installed_runtimes() -> dict[str, str]:
    """Name and version of every installed distribution that brings an onnxruntime package."""
    found = {}
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"] or ""
        if name.lower().startswith("onnxruntime") and _brings_runtime(distribution):
            found[name] = distribution.version
    return found


def _brings_runtime(distribution: importlib.metadata.Distribution) -> bool:
    module = "onnxruntime/__init__.py"
    if distribution.files is None:  # of a system's own packages Python has no list
        return distribution.metadata["Name"] == "onnxruntime" and Path(str(distribution.locate_file(module))).exists()
    return any(str(file) == module for file in distribution.files)


def _runtimes() -> Check:
    """Two of them overwrite each other's files, and which providers work is then a matter of chance."""
    runtimes = installed_runtimes()
    found = ", ".join(f"{name} {version}" for name, version in runtimes.items()) or "none"
    if len(runtimes) < 2:
        return Check("one onnxruntime", OK, found)
    every = " ".join(runtimes)
    fix = f"they overwrite each other: pip uninstall -y {every}, then install the one you want"
    return Check("one onnxruntime", WARNING, found, fix)


def _processor() -> Check:
    features, architecture = machine.cpu_features(), platform.machine()
    found = f"{machine.cpu_model()}: {' '.join(features) or 'no features known'}"
    if architecture in ("x86_64", "AMD64") and features and "avx2" not in features:
        return Check("processor", WARNING, found, "without avx2 evaluations are several times slower; use fewer steps")
    if architecture == "aarch64" and features and "asimddp" not in features:
        return Check("processor", WARNING, found, "without the dot product (asimddp) use an fp32 bundle, not int8")
    return Check("processor", OK, found)


def _threads(threads: int | None) -> Check:
    cores, quota = physical_cores(Path("/"), allowed_processors()), processor_quota(Path("/"))
    found = f"{check_threads(threads)} of {cores} cores"
    if quota is None:
        return Check("threads", OK, found)
    found += f", limited to {quota:g} processors' time"
    if quota < 1:
        return Check("threads", WARNING, found, "give the container or service at least one processor")
    return Check("threads", OK, found)


def _memory() -> Check:
    memory = machine.memory_mb()
    if memory is None:
        return Check("memory", OK, "unknown")
    found = f"{memory[1]:.0f} of {memory[0]:.0f} MB available"
    if memory[1] >= MEMORY_MB:
        return Check("memory", OK, found)
    return Check("memory", WARNING, found, f"free some memory or add swap: {MEMORY_MB:.0f} MB are safe; --batch-size 1")


def _disk() -> Iterator[Check]:
    for name, place in (("disk here", Path.cwd), ("disk for temporary files", tempfile.gettempdir)):
        try:
            folder = place()
            free = shutil.disk_usage(folder).free / 1e6
        except OSError as error:  # no such folder; on a full disk there is none for temporary files
            yield Check(name, WARNING, str(error.strerror), ROOM)
            continue
        enough = free >= DISK_MB
        yield Check(name, OK if enough else WARNING, f"{free:.0f} MB free in {folder}", "" if enough else ROOM)


def _cache() -> Check:
    from . import caches

    without = (
        "or set XDG_CACHE_HOME; without it each start tries the bundle first, and measurements and engines are lost"
    )
    folder = caches.usable_folder()
    if folder is not None:
        free = shutil.disk_usage(folder).free / 1e6
        if free < DISK_MB:
            return Check("cache", WARNING, f"{free:.0f} MB free in {folder}", f"free some space, {without}")
        return Check("cache", OK, f"{folder} can be written")
    try:
        found = f"{caches.cache_folder()} cannot be used"
    except RuntimeError:
        found = "this user has no home folder to keep it in"
    return Check("cache", WARNING, found, f"make it writable for this user alone, {without}")


def _clock() -> Check:
    """A board without a battery starts in the past; certificates and file times are then wrong."""
    now, made = time.time(), Path(__file__).stat().st_mtime
    found = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(now))
    if now > made - ONE_DAY:
        return Check("clock", OK, found)
    return Check("clock", WARNING, f"{found}, before this program was installed", "timedatectl set-ntp true")


def _providers(folder: Path, bundle: Path | None, threads: int, say: Say = _nobody) -> Iterator[Check]:
    """Every provider that onnxruntime offers runs a tiny bundle, then the given one, in a process of its own."""
    try:
        answer = run_child("doctor", (str(folder / "tiny.onnx"),), ASK_SECONDS)
    except ChildError as error:
        fix = "pip install --force-reinstall numpy onnxruntime; on an old system, an older version of them"
        if other := _special_runtime():
            fix = f"install {other} again where it came from; if it was built for numpy 1, pip install 'numpy<2'"
        yield Check("onnxruntime runs", PROBLEM, f"importing it failed: {error}", fix)
        return
    if answer["unwritten"]:
        yield _untried(answer["unwritten"])
        return
    yield Check("onnxruntime runs", OK, f"{answer['version']} offers {', '.join(answer['offered'])}")
    if (gpu := machine.gpu()) and not {"cuda", "tensorrt"} & set(answer["candidates"]):
        yield Check("gpu", OK, f"{gpu}; this onnxruntime does not use it, and the CPU may well be enough")
    works = []
    for check in (_provider(folder / "tiny.onnx", name, threads, say) for name in answer["candidates"]):
        yield check
        works += [check] if check.status == OK else []
    if bundle is not None and works:
        yield from _bundle(bundle, [check.name.removeprefix("provider ") for check in works], threads, say)


def _try(path: Path, name: str, threads: int, say: Say) -> Trial:
    from .providers import PROVIDERS
    from .trial import try_isolated

    if PROVIDERS[name].builds_engines and machine.tensorrt_version():
        say(f"Trying {name} on {path.name}; where no engine of it is kept, one is built, which takes minutes.")
    return try_isolated(path, name, threads)


def _provider(path: Path, name: str, threads: int, say: Say = _nobody) -> Check:
    from .providers import CPU, PROVIDERS

    trial = _try(path, name, threads, say)
    if trial.milliseconds is not None:
        return Check(f"provider {name}", OK, "runs a small graph and gives its known answer")
    status = PROBLEM if name == CPU else WARNING
    return Check(f"provider {name}", status, f"offered, but fails: {trial.failure}", PROVIDERS[name].remedy)


def _bundle(path: Path, names: list[str], threads: int, say: Say = _nobody) -> Iterator[Check]:
    from collafuse.core import bundle as bundles
    from collafuse.core.noise import client_sigmas
    from collafuse.core.samplers import evaluations

    from . import proof
    from .denoiser import require_step

    try:
        bundle = bundles.read(path)
        require_step(bundle.info, path.name)
    except CollaFuseError as error:
        yield Check("bundle", PROBLEM, str(error), "get another from its site", error.exit_code)
        return
    info = bundle.info
    shape = "x".join(map(str, info.image_shape))
    yield Check("bundle", OK, f"{path.name}: {shape}, {info.precision}, {info.steps} steps of {info.sampler}")
    trusted = list(_trust(bundle, path))
    yield from trusted
    if exit_code(trusted):
        return  # what finish would not load is not run here either
    try:
        proof.require(bundle)  # as finish does first, under limits that a trial does not have
    except CollaFuseError as error:
        yield Check("bundle runs", PROBLEM, str(error), "get another from its site", error.exit_code)
        return
    trials = [_try(path, name, threads, say) for name in names]
    any_works = any(trial.milliseconds is not None for trial in trials)
    for name, trial in zip(names, trials, strict=True):
        if trial.milliseconds is None:
            fix = f"use another provider: --provider {next((n for n in names if n != name), 'cpu')}"
            yield Check(f"bundle on {name}", WARNING if any_works else PROBLEM, trial.failure, fix)
        else:
            sigmas = client_sigmas(info.sigma_max, info.steps, info.sigma_low)
            count = evaluations(info.sampler, sigmas, guided=info.guidance != 1.0)
            found = f"known answer met; {trial.milliseconds:.1f} ms an evaluation, about "
            yield Check(f"bundle on {name}", OK, f"{found}{trial.milliseconds * count:.0f} ms an image")


def _trust(bundle: Bundle, path: Path) -> Iterator[Check]:
    """Where keys are pinned, ``finish`` refuses what none of them has signed."""
    from . import trust

    if (keys := trust.keys_in_force(None)) is None:
        return
    try:
        yield Check("trust", OK, trust.require(bundle, path.name, keys, remember=False))
    except CollaFuseError as error:
        yield Check("trust", PROBLEM, str(error), "get a bundle that a pinned key has signed", error.exit_code)


def main(arguments: list[str]) -> None:
    """PATH: write the tiny bundle there and print what onnxruntime offers as JSON."""
    import json

    import numpy  # noqa: F401 - first, because onnxruntime keeps to itself why numpy failed
    import onnxruntime

    from .providers import candidates
    from .tinybundle import tiny_bundle

    unwritten = ""
    try:
        Path(arguments[0]).write_bytes(tiny_bundle())
    except OSError as error:
        unwritten = str(error.strerror)
    offered = onnxruntime.get_available_providers()
    found = {"version": onnxruntime.__version__, "offered": offered, "candidates": candidates(offered)}
    print(json.dumps({**found, "unwritten": unwritten}))  # noqa: T201
