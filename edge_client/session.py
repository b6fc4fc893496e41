"""An onnxruntime session over a checked bundle, and the proof that it computes what the bundle promises."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from collafuse.core.bundle import INPUTS, OUTPUT, Bundle, known_answer_input, known_answer_values
from collafuse.core.errors import FileFormatError, RuntimeMissingError, first_line

PROVIDERS = {"cpu": "CPUExecutionProvider"}
"""Execution providers by the names that commands use."""


class OnnxDenoiser:
    """A bundle's denoiser: ``model(x, sigma, conditions) -> x0_hat`` on float32 NumPy arrays.

    sigma is a float or one level per image [N]. Raises FileFormatError when the graph fails on these inputs or
    gives another shape.
    """

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session

    def __call__(self, x: NDArray[Any], sigma: Any, conditions: NDArray[Any]) -> NDArray[np.float32]:
        levels = np.broadcast_to(np.asarray(sigma, dtype=np.float32), (len(x),))
        values = (np.ascontiguousarray(x, dtype=np.float32), np.ascontiguousarray(levels), conditions)
        try:
            output: NDArray[np.float32] = self._session.run([OUTPUT], dict(zip(INPUTS, values, strict=True)))[0]
        except Exception as error:  # onnxruntime raises its own classes, which differ between versions
            raise FileFormatError(
                f"onnxruntime {onnxruntime.__version__} cannot run the bundle on {len(x)} images: "
                f"{first_line(error)}; try a smaller batch, or export the bundle again."
            ) from error
        if output.shape != x.shape:
            raise FileFormatError(
                f"the bundle's graph made {list(output.shape)} of images of shape {list(x.shape)}, expected the same "
                "shape; export the bundle again."
            )
        return output


def open_session(bundle: Bundle, provider: str = "cpu", threads: int | None = None) -> OnnxDenoiser:
    """Load a bundle's graph into onnxruntime and run its known-answer test.

    threads: intra-operator threads, by default the number of cores this process may use, at most 4. Raises
    RuntimeMissingError for a provider that is not there and FileFormatError when onnxruntime refuses the
    graph or the answer is wrong.
    """
    if provider not in PROVIDERS:
        raise RuntimeMissingError(f"provider {provider!r} is not known; use one of {', '.join(PROVIDERS)}.")
    try:
        # Without the fallback: it would try again in silence elsewhere, and prints to stdout.
        session = onnxruntime.InferenceSession(
            bundle.data, sess_options=_options(threads), providers=[PROVIDERS[provider]], enable_fallback=0
        )
    except Exception as error:  # onnxruntime raises its own classes, which differ between versions
        raise FileFormatError(
            f"onnxruntime {onnxruntime.__version__} cannot load the bundle: {first_line(error)}; export it again."
        ) from error
    denoiser = OnnxDenoiser(session)
    check_known_answer(denoiser, bundle)
    return denoiser


def _options(threads: int | None) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    options.intra_op_num_threads = threads or min(cores, 4)
    options.inter_op_num_threads = 1
    # Spinning threads burn a small board's power and slow a busy one down (research/edge.md, section 3).
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4  # errors come as exceptions, no need to log them as well
    return options


def known_answer_error(denoiser: OnnxDenoiser, bundle: Bundle) -> float:
    """Largest absolute difference between this machine's answer and the bundle's; NaN counts as infinite."""
    answer, info = bundle.info.known_answer, bundle.info
    x, sigma, conditions = known_answer_input(info.image_shape, len(info.label_names), answer.sigmas)
    values = known_answer_values(denoiser(x, sigma, conditions), len(answer.values))
    if len(values) != len(answer.values):
        raise FileFormatError(f"the known-answer test has {len(answer.values)} values, the graph gives {len(values)}.")
    error = float(np.abs(values - np.asarray(answer.values)).max())
    return error if np.isfinite(error) else float("inf")


def check_known_answer(denoiser: OnnxDenoiser, bundle: Bundle) -> None:
    """Raise FileFormatError when this machine does not compute what the bundle's maker computed."""
    error, tolerance = known_answer_error(denoiser, bundle), bundle.info.known_answer.tolerance
    if error > tolerance:
        raise FileFormatError(
            f"the bundle's known-answer test is off by {error:.2g} (allowed {tolerance:.2g}) on onnxruntime "
            f"{onnxruntime.__version__}; images would be wrong. Export the bundle again or use another onnxruntime."
        )
