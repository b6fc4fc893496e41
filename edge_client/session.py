"""Opening an onnxruntime session over a checked bundle, on the CPU or on a provider that has to prove itself."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime

from collafuse.core.bundle import Bundle
from collafuse.core.errors import FileFormatError, first_line

from . import caches, machine, placement
from .cores import check_threads, may_spin
from .denoiser import OnnxDenoiser, check_known_answer, known_answer_error
from .providers import CPU, PROVIDERS, Provider, ProviderError, Setting, named
from .scratch import scratch_folder

Say = Callable[[str], None]

UNREADABLE = ("could not deserialize engine", "could not create timing cache")
"""How onnxruntime begins to say that what TensorRT kept is damaged."""


def open_session(
    bundle: Bundle, provider: str = CPU, threads: int | None = None, say: Say = lambda text: None
) -> OnnxDenoiser:
    """Load a bundle's graph into onnxruntime on one provider and run its known-answer test there.

    threads: per evaluation, by default :func:`cores.default_threads`. ``say`` hears what takes long. Raises
    UsageError for an unknown provider or an impossible number of threads, RuntimeMissingError for a provider that does
    not really run the graph, and FileFormatError when onnxruntime refuses the graph or the answer is wrong.
    """
    chosen, threads = named(provider), check_threads(threads)
    if chosen.name != CPU:
        return _open_elsewhere(bundle, chosen, threads, say)
    options = _options(threads)
    # They keep memory for calls of other sizes; one size is all that is ever called here, and as fast without.
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    denoiser = OnnxDenoiser(_load(bundle, options, [chosen.runtime_name]), CPU, threads)
    check_known_answer(denoiser, bundle)
    return denoiser


def _options(threads: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    spinning = threads > 1 and may_spin(threads)
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    # Within a call only: a board that waits for work should not burn its power (research/edge.md, section 3).
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 4  # errors come as exceptions, no need to log them as well
    return options


def _load(bundle: Bundle, options: onnxruntime.SessionOptions, providers: list[Any]) -> onnxruntime.InferenceSession:
    try:
        # Without the fallback: it would try again in silence elsewhere, and prints to stdout.
        return onnxruntime.InferenceSession(bundle.data, sess_options=options, providers=providers, enable_fallback=0)
    except Exception as error:  # onnxruntime raises its own classes, which differ between versions
        raise FileFormatError(
            f"onnxruntime {onnxruntime.__version__} cannot load the bundle: {first_line(error)}; export it again."
        ) from error


def _open_elsewhere(bundle: Bundle, provider: Provider, threads: int, say: Say) -> OnnxDenoiser:
    """As :func:`open_session`, for a provider that may be there in name only."""
    folder = caches.engine_folder(provider.name, bundle.digest) if provider.builds_engines else None
    setting = Setting(bundle.info, threads, folder)
    if provider.builds_engines and machine.tensorrt_version():
        say(_announcement(folder))
    try:
        return _proven(bundle, provider, setting, say)
    except ProviderError as error:
        # They are written without a second name: a power cut or a full disk leaves a part, which would fail each time.
        damaged = any(words in error.tried for words in UNREADABLE)
        if folder is None or not damaged or not caches.emptied(folder):
            raise
        say(f"What was kept in {folder} cannot be read and is removed; building it again, which takes minutes.")
    return _proven(bundle, provider, setting, say)


def _proven(bundle: Bundle, provider: Provider, setting: Setting, say: Say) -> OnnxDenoiser:
    """The denoiser once it has shown where it ran and given the known answer. Raises RuntimeMissingError."""
    offered = onnxruntime.get_available_providers()

    def refused(tried: str) -> ProviderError:
        return ProviderError(provider, tried, offered, onnxruntime.__version__)

    if provider.runtime_name not in offered:
        raise refused("this onnxruntime was built without it")
    started = time.monotonic()
    complaints = placement.Complaints()
    try:
        with complaints:
            denoiser, error, placed = _run_once(bundle, provider, setting)
    except FileFormatError as failed:
        raise refused(complaints.reason() or _what_failed(failed)) from failed
    shortfall = placement.shortfall(placed, provider.runtime_name)
    if shortfall is not None:
        raise refused(complaints.reason() or shortfall)
    if error > (allowed := bundle.info.known_answer.tolerance):
        raise refused(f"its known answer is off by {error:.2g}, allowed is {allowed:.2g}")
    seconds, share = time.monotonic() - started, placement.share(placed, provider.runtime_name)
    say(f"{provider.name} runs {share} and gives the known answer ({seconds:.1f} s).")
    return denoiser


def _what_failed(error: FileFormatError) -> str:
    """What onnxruntime said, without the advice for a bundle that fails everywhere: this one has run on the CPU."""
    cause = error.__cause__
    return first_line(cause if isinstance(cause, Exception) else error).rstrip(".")


def _run_once(bundle: Bundle, provider: Provider, setting: Setting) -> tuple[OnnxDenoiser, float, placement.Placement]:
    """The denoiser, the error of its known answer, and where the operators ran while it was computed."""
    options = _options(1 if provider.own_threads else setting.threads)
    wanted = [provider, *(PROVIDERS[name] for name in provider.helpers)]
    for name, value in provider.environment:
        os.environ.setdefault(name, value)
    with scratch_folder("checking a provider") as profiles:
        options.enable_profiling = True
        options.profile_file_prefix = str(profiles / "run")
        session = _load(bundle, options, [(p.runtime_name, p.options(setting)) for p in wanted])
        denoiser = OnnxDenoiser(session, provider.name, setting.threads)
        error = known_answer_error(denoiser, bundle)
        return denoiser, error, placement.read_profile(Path(session.end_profiling()))


def _announcement(folder: Path | None) -> str:
    if folder is None:
        return "Building a TensorRT engine; this takes minutes, each time: the cache folder cannot be written."
    if any(folder.glob("*.engine")):
        return f"Loading the TensorRT engine in {folder}."
    return f"Building a TensorRT engine, once for this bundle and machine; this takes minutes. It stays in {folder}."
