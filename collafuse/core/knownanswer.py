"""The known answer of a bundle: what its graph has to make of an input that everybody can make anew.

It travels in the bundle's metadata. A device that gets another answer runs the graph wrongly and says so, before it
makes a picture.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .conditioning import ConditionSpace
from .errors import FileFormatError
from .metadata import Fields, shown
from .noise import SIGMA_MAX


@dataclass(frozen=True)
class KnownAnswer:
    """Expected output for :func:`known_answer_input`, at evenly spaced places of the flattened output.

    tolerance: the largest difference allowed, in the output's unit: of images in [-1, 1], or in grey levels where
    the graph is whole. There every image of the input stands at sigma_max.
    """

    sigmas: tuple[float, ...]
    values: tuple[float, ...]
    tolerance: float


def known_answer_input(
    image_shape: tuple[int, int, int], space: ConditionSpace, sigmas: tuple[float, ...]
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """x, sigma and conditions of the known-answer test: a wave pattern at each level, labelled in turn.

    The first image carries no condition, the following ones label 0, 1, ... and a wave for a text.
    """
    count = len(sigmas)
    positions = np.arange(count * int(np.prod(image_shape)), dtype=np.float64)
    pattern = (0.5 * np.cos(0.37 * positions) + 0.5 * np.sin(1.73 * positions)).reshape(count, *image_shape)
    levels = np.asarray(sigmas, dtype=np.float32)
    x = pattern * (0.5 + levels.reshape(-1, 1, 1, 1))
    conditions = space.conditions(count, None)
    for row in range(1, count if space.width > 1 else 1):
        conditions[row, -1] = 0.0
        if space.label_names:
            conditions[row, (row - 1) % len(space.label_names)] = 1.0
        conditions[row, space.text_columns] = np.sqrt(2) * np.sin(1.1 * row + 2.3 * np.arange(space.text_width))
    return x.astype(np.float32), levels, conditions


def known_answer_values(x0_hat: NDArray[np.float32], count: int = 128) -> NDArray[np.float32]:
    """The places of an output that a known answer keeps."""
    flat = x0_hat.reshape(-1)
    return flat[np.linspace(0, flat.size - 1, min(count, flat.size)).astype(np.int64)]


def read(fields: Fields, largest_tolerance: float, source: str) -> KnownAnswer:
    """Check a known answer in a bundle's metadata. Raises FileFormatError."""
    answer = KnownAnswer(
        sigmas=fields.numbers("sigmas", max_length=16),
        values=fields.numbers("values", max_length=4096),
        tolerance=fields.number("tolerance", above=0.0, at_most=largest_tolerance),
    )
    fields.done()
    if not answer.sigmas or not answer.values:
        raise FileFormatError(f"{source} carries an empty known-answer test; export the bundle again.")
    if not all(0.0 < sigma <= SIGMA_MAX for sigma in answer.sigmas):
        raise FileFormatError(
            f"{source} has a known-answer test at sigma {shown(answer.sigmas)}, expected levels in "
            f"(0, {SIGMA_MAX:g}]; export the bundle again."
        )
    return answer
