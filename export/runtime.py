"""A graph in onnxruntime, as the exporter runs it: one evaluation, or the whole finishing of a batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from collafuse.core.bundle import INPUTS, OUTPUT, PIXELS, WHOLE_INPUTS, BundleInfo
from collafuse.core.conditioning import guided
from collafuse.core.errors import ExportError, first_line
from collafuse.core.noise import client_sigmas
from collafuse.core.pictures import Pixels
from collafuse.core.samplers import STEPS, History, run


def open_session(model: bytes) -> onnxruntime.InferenceSession:
    """A session on the CPU. Raises ExportError when onnxruntime refuses the graph."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors come as exceptions, no need to log them as well
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"], enable_fallback=0)
    except Exception as error:  # onnxruntime raises its own classes, which differ between versions
        raise ExportError(
            f"onnxruntime {onnxruntime.__version__} cannot load the exported graph: {first_line(error)}. "
            "No bundle was written; try another --opset or onnxruntime version."
        ) from error


class OnnxWhole:
    """A whole graph: ``model(x, conditions) -> pixels``, uint8 [N, H, W, C]."""

    def __init__(self, model: bytes) -> None:
        self._session = open_session(model)

    def __call__(self, x: NDArray[Any], conditions: NDArray[Any]) -> Pixels:
        values = dict(zip(WHOLE_INPUTS, (x.astype(np.float32), conditions), strict=True))
        return np.asarray(self._session.run([PIXELS], values)[0])


class OnnxStep:
    """A step graph: ``model(x, sigma, conditions) -> x0_hat`` on float32 arrays, sigma a float or [N]."""

    def __init__(self, model: bytes) -> None:
        self._session = open_session(model)

    def __call__(self, x: NDArray[Any], sigma: Any, conditions: NDArray[Any]) -> NDArray[np.float32]:
        levels = np.broadcast_to(np.asarray(sigma, dtype=np.float32), (len(x),)).copy()
        values = dict(zip(INPUTS, (x.astype(np.float32), levels, conditions), strict=True))
        return np.asarray(self._session.run([OUTPUT], values)[0])


def finish(
    model: Any,
    x: Any,
    conditions: Any,
    info: BundleInfo,
    *,
    history: History | None = None,
    blank: Any = None,
) -> Any:
    """x [N, C, H, W] at the level sigma_max, finished as the bundle's defaults say.

    Takes an :class:`OnnxStep` with NumPy arrays, a torch denoiser with tensors, or the symbols of a graph that is
    being written, which need the "no condition" rows as ``blank``.
    """
    sigmas = client_sigmas(info.sigma_max, info.steps, info.sigma_low)
    state = history if info.sampler == "dpmpp_2m" else None
    return run(STEPS[info.sampler], guided(model, conditions, info.guidance, blank), x, sigmas, state)[0]
