"""The known answer that goes into a bundle, and how far another machine's answer may lie from it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collafuse.core.bundle import BundleInfo
from collafuse.core.knownanswer import KnownAnswer, known_answer_input, known_answer_values
from collafuse.learning.weights import TrainedModel

from .parity import TOLERANCE, levels_between, torch_values
from .runtime import OnnxStep, OnnxWhole

NUM_LEVELS = 4
ROUNDING_TOLERANCE = 10 * TOLERANCE
"""Looser than parity: another machine's onnxruntime may order its sums differently."""
ROUNDING_GREY_LEVELS = 1.0
"""The same for pixels: one on the border between two grey levels may fall on either side."""
NUDGE = 1e-4
"""Relative size of the changes under which a reduced graph must keep its answer: ten times and more what two
machines' sums in fp32 differ by (torch and onnxruntime: 1e-6 to 1e-5)."""
NUM_NUDGES = 16


def exact_answer(model: TrainedModel) -> KnownAnswer:
    """Of an fp32 bundle: what torch computes."""
    sigmas = tuple(levels_between(model.sigma_low, model.sigma_high, NUM_LEVELS))
    inputs = known_answer_input(model.denoiser.image_shape, model.space, sigmas)
    values = known_answer_values(torch_values(model.denoiser, *inputs))
    return KnownAnswer(sigmas, tuple(float(v) for v in values), ROUNDING_TOLERANCE)


def step_answer(model: OnnxStep, info: BundleInfo) -> KnownAnswer:
    """Of a reduced step graph: what onnxruntime makes of the graph itself, at the levels of the exact answer."""
    sigmas = info.known_answer.sigmas
    x, levels, conditions = known_answer_input(info.image_shape, info.space, sigmas)
    return _measured(lambda x: model(x, levels, conditions), x, sigmas, ROUNDING_TOLERANCE)


def whole_answer(model: OnnxWhole, info: BundleInfo) -> KnownAnswer:
    """Of a whole graph: the pixels that onnxruntime makes, all images standing at sigma_max."""
    sigmas = (info.sigma_max,) * NUM_LEVELS
    x, _, conditions = known_answer_input(info.image_shape, info.space, sigmas)
    return _measured(lambda x: model(x, conditions).astype(np.float32), x, sigmas, ROUNDING_GREY_LEVELS)


def _measured(
    evaluate: Callable[[NDArray[Any]], NDArray[np.float32]], x: NDArray[Any], sigmas: tuple[float, ...], least: float
) -> KnownAnswer:
    """The answer to x, with the largest change that nudging each number of x brings about as its tolerance.

    Where values are rounded to 8 bits, a difference in the last digit of a sum can move one to its neighbour and
    the answer by far more than that digit; once they move, it hardly matters how small the difference was.
    """
    answer = evaluate(x)
    noise = np.random.default_rng(0)
    nudged = (x * (1 + NUDGE * noise.standard_normal(x.shape)) for _ in range(NUM_NUDGES))
    moved = max(float(np.abs(evaluate(one) - answer).max()) for one in nudged)
    return KnownAnswer(sigmas, tuple(float(v) for v in known_answer_values(answer)), max(least, moved))
