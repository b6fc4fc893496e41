"""The execution providers that a bundle may run on: names, options, and what to do where one is missing.

A provider is what onnxruntime calls its back ends. Which of them an onnxruntime offers is decided when it is built,
so being offered does not mean that it works: ``session`` finds that out by running the bundle.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from collafuse.core.bundle import BundleInfo
from collafuse.core.errors import RuntimeMissingError, UsageError

AUTO = "auto"
"""Not a provider: the fastest of those that work here; see ``choice``."""
CPU = "cpu"
RUNTIME_SUFFIX = "ExecutionProvider"
TENSORRT_BATCHES = (1, 16, 64)
"""The smallest, usual and largest batch that a TensorRT engine is built for. Beyond the largest a call fails:
onnxruntime builds no engine anew that was given its range."""
TENSORRT_WORKSPACE_BYTES = 256 << 20
"""A Jetson's GPU takes it from the memory that everything else needs too; the default is 1 GiB."""


@dataclass(frozen=True)
class Setting:
    """What a provider's options depend on. ``caches`` is a folder for this bundle and machine, or None."""

    info: BundleInfo
    threads: int
    caches: Path | None


@dataclass(frozen=True)
class Provider:
    """An execution provider by its name here and in onnxruntime.

    remedy: what to do where it is missing. helpers: providers that may take what this one cannot run, apart from the
    CPU, which onnxruntime always adds. environment: what its libraries read where there is no option, unless it is set
    already. own_threads: it brings threads, which the session's own would slow down. builds_engines: it compiles a
    bundle, which takes minutes, and keeps the result in a folder. largest_batch: the most images at once that it takes,
    None where memory alone is the limit.
    """

    name: str
    runtime_name: str
    remedy: str
    options: Callable[[Setting], dict[str, str]] = lambda setting: {}
    helpers: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    own_threads: bool = False
    builds_engines: bool = False
    largest_batch: int | None = None


def _cuda(setting: Setting) -> dict[str, str]:
    return {
        "cudnn_conv_algo_search": "HEURISTIC",  # the exhaustive default spends seconds at the first call
        "arena_extend_strategy": "kSameAsRequested",  # the default doubles its memory each time
        "use_tf32": "0",  # 10 bits of mantissa would be off by more than the known answer allows
    }


def _tensorrt(setting: Setting) -> dict[str, str]:
    options = {"trt_max_workspace_size": str(TENSORRT_WORKSPACE_BYTES)}
    for bound, count in zip(("min", "opt", "max"), TENSORRT_BATCHES, strict=True):
        # Levels of a known answer are a batch too, so the range must hold their number; it does (at most 16).
        image = "x".join(map(str, (count, *setting.info.image_shape)))
        shapes = f"x:{image},sigma:{count},labels:{count}x{setting.info.space.width}"
        options[f"trt_profile_{bound}_shapes"] = shapes
    if setting.caches is not None:
        options |= {  # "True" and not "1", at which onnxruntime's Python ends with an exception
            "trt_engine_cache_enable": "True",
            "trt_engine_cache_path": str(setting.caches),
            "trt_timing_cache_enable": "True",
            "trt_timing_cache_path": str(setting.caches),
        }
    return options


def _openvino(setting: Setting) -> dict[str, str]:
    return {"device_type": "CPU", "num_of_threads": str(setting.threads)}


def _coreml(setting: Setting) -> dict[str, str]:
    return {"ModelFormat": "MLProgram", "MLComputeUnits": "ALL"}


def _xnnpack(setting: Setting) -> dict[str, str]:
    return {"intra_op_num_threads": str(setting.threads)}


PROVIDERS = {
    provider.name: provider
    for provider in (
        Provider(CPU, "CPUExecutionProvider", "pip install onnxruntime"),
        Provider(
            "cuda",
            "CUDAExecutionProvider",
            "uninstall onnxruntime, install an onnxruntime-gpu built for this GPU and the CUDA and cuDNN that it names "
            "(where pip did, name their folders site-packages/nvidia/*/lib in LD_LIBRARY_PATH)",
            _cuda,
        ),
        Provider(
            "tensorrt",
            "TensorrtExecutionProvider",
            "uninstall onnxruntime, install an onnxruntime-gpu built with TensorRT for this GPU and TensorRT itself",
            _tensorrt,
            helpers=("cuda",),
            environment=(("NVIDIA_TF32_OVERRIDE", "0"),),  # as use_tf32 of CUDA, for which it has no option
            builds_engines=True,
            largest_batch=TENSORRT_BATCHES[-1],
        ),
        Provider(
            "openvino",
            "OpenVINOExecutionProvider",
            "uninstall onnxruntime, then pip install onnxruntime-openvino openvino (Intel and AMD x86)",
            _openvino,
        ),
        Provider("coreml", "CoreMLExecutionProvider", "use the onnxruntime for macOS, which has it", _coreml),
        Provider(
            "xnnpack",
            "XnnpackExecutionProvider",
            "build onnxruntime with --use_xnnpack; no package index carries it for Linux",
            _xnnpack,
            own_threads=True,
        ),
    )
}
"""By the names that commands use, the CPU first."""


MOST_AT_ONCE = 16
PIXELS_AT_ONCE = 32 * 32


def default_batch_size(provider: str, image_shape: tuple[int, int, int]) -> int:
    """Images per evaluation. On a CPU as many small ones as have the pixels of one of 32x32.

    There a batch only saves the overhead of a call, which larger images do not feel, and costs memory: with 3 million
    parameters, 16 images of 32x32 at once took 1.7 times as long each as one, and 50 MB more.
    """
    _, height, width = image_shape
    return MOST_AT_ONCE if provider != CPU else min(MOST_AT_ONCE, max(1, PIXELS_AT_ONCE // (height * width)))


def most_at_once(provider: str, wanted: int) -> int:
    """``wanted`` images per evaluation, or as many as the provider takes where that is fewer."""
    largest = named(provider).largest_batch
    return wanted if largest is None else min(wanted, largest)


def named(name: str) -> Provider:
    """The provider of this name: one of ours, or any of onnxruntime's by its full name, with default options.

    Raises UsageError for another name.
    """
    if name in PROVIDERS:
        return PROVIDERS[name]
    for provider in PROVIDERS.values():
        if provider.runtime_name == name:
            return provider
    if name.endswith(RUNTIME_SUFFIX) and name.isidentifier():
        return Provider(name, name, "install an onnxruntime that has it, and what it needs itself")
    raise UsageError(
        f"provider {name!r} is not known; use {AUTO}, {', '.join(PROVIDERS)}, or onnxruntime's own name for another."
    )


def candidates(offered: Collection[str]) -> list[str]:
    """Those of ours that this onnxruntime offers. Others, such as one that calls a cloud, are never tried."""
    return [name for name, provider in PROVIDERS.items() if provider.runtime_name in offered]


class ProviderError(RuntimeMissingError):
    """A provider cannot run a bundle. The message says what is installed, what was tried and the next step."""

    def __init__(self, provider: Provider, tried: str, offered: Collection[str], version: str) -> None:
        super().__init__(
            f"provider {provider.name} does not run here: {tried}. Installed is onnxruntime {version}, which offers "
            f"{', '.join(offered)}. To use {provider.name}: {provider.remedy}; or pass --provider cpu. "
            "collafuse doctor tries every provider."
        )
        self.tried = tried
