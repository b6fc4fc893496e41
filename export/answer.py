"""The known answer that goes into a bundle, and how far another machine's answer may lie from it."""

from __future__ import annotations

import numpy as np

from collafuse.core.bundle import BundleInfo, KnownAnswer, known_answer_input, known_answer_values
from collafuse.learning.weights import TrainedModel

from .parity import TOLERANCE, levels_between, torch_values
from .runtime import OnnxStep

NUM_LEVELS = 4
ROUNDING_TOLERANCE = 10 * TOLERANCE
"""Looser than parity: another machine's onnxruntime may order its sums differently."""
NUDGE = 1e-4
"""Relative size of the changes under which a reduced graph must keep its answer: ten times and more what two
machines' sums in fp32 differ by (torch and onnxruntime: 1e-6 to 1e-5)."""
NUM_NUDGES = 16


def exact_answer(model: TrainedModel) -> KnownAnswer:
    """Of an fp32 bundle: what torch computes."""
    sigmas = tuple(levels_between(model.sigma_low, model.sigma_high, NUM_LEVELS))
    inputs = known_answer_input(model.denoiser.image_shape, len(model.label_names), sigmas)
    values = known_answer_values(torch_values(model.denoiser, *inputs))
    return KnownAnswer(sigmas, tuple(float(v) for v in values), ROUNDING_TOLERANCE)


def measured_answer(model: OnnxStep, info: BundleInfo) -> KnownAnswer:
    """Of a reduced bundle: what onnxruntime makes of the reduced graph itself, at the levels of the exact answer.

    Where values are rounded to 8 bits, a difference in the last digit of a sum can move one to its neighbour and
    the answer by far more than that digit; once they move, it hardly matters how small the difference was. How far
    is measured: the tolerance is the largest change of the answer when each number of the input is nudged.
    """
    sigmas = info.known_answer.sigmas
    x, levels, conditions = known_answer_input(info.image_shape, len(info.label_names), sigmas)
    answer = model(x, levels, conditions)
    noise = np.random.default_rng(0)
    nudged = (x * (1 + NUDGE * noise.standard_normal(x.shape)) for _ in range(NUM_NUDGES))
    moved = max(float(np.abs(model(one, levels, conditions) - answer).max()) for one in nudged)
    tolerance = min(1.0, max(ROUNDING_TOLERANCE, moved))
    return KnownAnswer(sigmas, tuple(float(v) for v in known_answer_values(answer)), tolerance)
