"""A bundle's denoiser on onnxruntime, and the proof that it computes what the bundle promises."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from collafuse.core.bundle import INPUTS, OUTPUT, Bundle, BundleInfo
from collafuse.core.errors import FileFormatError, MismatchError, first_line
from collafuse.core.knownanswer import known_answer_input, known_answer_values

from .providers import default_batch_size


def require_step(info: BundleInfo, source: str) -> None:
    """Raise MismatchError unless a bundle holds a single evaluation, which is what we finish with."""
    if info.graph != "step":
        raise MismatchError(
            f"{source} holds the whole finishing in one graph, which other runtimes run with one call; "
            "to finish here, use a bundle exported with --graph step."
        )


class OnnxDenoiser:
    """A bundle's denoiser: ``model(x, sigma, conditions) -> x0_hat`` on float32 NumPy arrays.

    sigma is a float or one level per image [N]. Raises FileFormatError when the graph fails on these inputs or
    gives another shape. ``provider`` and ``threads`` say what it runs on.
    """

    def __init__(self, session: onnxruntime.InferenceSession, provider: str, threads: int) -> None:
        self._session = session
        self.provider = provider
        self.threads = threads

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


def known_answer_error(denoiser: OnnxDenoiser, bundle: Bundle) -> float:
    """Largest absolute difference between this machine's answer and the bundle's; NaN counts as infinite."""
    answer, info = bundle.info.known_answer, bundle.info
    inputs = known_answer_input(info.image_shape, info.space, answer.sigmas)
    # As many at once as a job takes, so that the test needs no more memory than the work.
    batch = default_batch_size(denoiser.provider, info.image_shape)
    parts = [denoiser(*(part[i : i + batch] for part in inputs)) for i in range(0, len(answer.sigmas), batch)]
    values = known_answer_values(np.concatenate(parts), len(answer.values))
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
