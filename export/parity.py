"""Does the exported graph compute what torch computes? Step by step, and over the whole finishing trajectory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from collafuse.core.bundle import BundleInfo
from collafuse.core.errors import ExportError
from collafuse.core.knownanswer import known_answer_input
from collafuse.core.pictures import to_uint8
from collafuse.learning.autoguidance import AutoGuided
from collafuse.learning.denoiser import Denoiser

from .runtime import OnnxStep, finish

BATCHES = (1, 2, 5)
NUM_LEVELS = 6
TOLERANCE = 1e-4
"""Largest absolute difference allowed in fp32; measured differences are about 2e-6 (research/edge.md)."""
HALF_TOLERANCE = 1 / 255
"""The same for weights in half: half a grey level. Half keeps 11 bits of a weight, and trained clients differ by
1e-4 to 4e-4."""


@dataclass(frozen=True)
class Parity:
    """Largest absolute differences between torch and onnxruntime, images in [-1, 1].

    step: over one evaluation. trajectory: over the whole finishing. grey_levels: the same in 8-bit images.
    """

    step: float
    trajectory: float
    grey_levels: int


def levels_between(low: float, high: float, count: int = NUM_LEVELS) -> list[float]:
    """Noise levels spaced evenly in ln sigma, both ends included."""
    return [float(v) for v in np.geomspace(low, high, count)]


def check_parity(
    denoiser: Denoiser | AutoGuided, model_bytes: bytes, info: BundleInfo, tolerance: float = TOLERANCE
) -> Parity:
    """Compare torch and onnxruntime at several levels and batch sizes and over the trajectory.

    Raises ExportError, with the figures, when they differ by more than the tolerance, or finished images by more
    grey levels than the tolerance amounts to (and more than one).
    """
    model = OnnxStep(model_bytes)
    denoiser = denoiser.eval().cpu()
    step = 0.0
    for level in levels_between(info.sigma_min, info.sigma_max):
        for batch in BATCHES:
            x, sigma, conditions = known_answer_input(info.image_shape, info.space, (level,) * batch)
            expected = torch_values(denoiser, x, sigma, conditions)
            step = max(step, _difference(model(x, sigma, conditions), expected, f"sigma {level:.3g}, batch {batch}"))
    x, _, conditions = known_answer_input(info.image_shape, info.space, (info.sigma_max,) * max(BATCHES))
    here = finish(model, x, conditions, info)
    with torch.inference_mode():
        there = finish(denoiser, torch.from_numpy(x), torch.from_numpy(conditions), info).numpy()
    trajectory = _difference(here, there, "the finishing trajectory")
    grey_levels = int(np.abs(to_uint8(here).astype(int) - to_uint8(there).astype(int)).max())
    allowed = max(1, round(tolerance * 127.5))
    parity = Parity(step, trajectory, grey_levels)
    if step > tolerance or trajectory > tolerance or grey_levels > allowed:
        raise ExportError(
            f"the exported graph differs from torch by {step:.2g} in one step and {trajectory:.2g} over the trajectory "
            f"({grey_levels} grey levels); allowed are {tolerance:.2g} and {allowed}. No bundle was written; "
            "try another --opset or onnxruntime version."
        )
    return parity


@torch.inference_mode()
def torch_values(
    denoiser: Denoiser | AutoGuided, x: NDArray[np.float32], sigma: NDArray[np.float32], conditions: NDArray[np.float32]
) -> NDArray[np.float32]:
    """What torch computes, on the CPU."""
    return denoiser(*(torch.from_numpy(a) for a in (x, sigma, conditions))).numpy()


def _difference(here: NDArray[np.float32], there: NDArray[np.float32], where: str) -> float:
    if here.shape != there.shape or not np.isfinite(here).all():
        raise ExportError(f"at {where} the exported graph gives shape {here.shape} or values that are not finite.")
    if not np.isfinite(there).all():  # compared with such values, nothing is larger than the tolerance
        raise ExportError(f"at {where} torch itself gives values that are not finite; train the client again.")
    return float(np.abs(here - there).max())
