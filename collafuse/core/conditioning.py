"""Conditions: a multi-hot vector plus one flag for "no label", and classifier-free guidance.

A condition is a float32 row of K + 1 numbers: K attributes in the order of ``label_names`` (a class is a
one-hot), then the flag. "No label" (flag 1, all attributes 0) is not the same as "none of the attributes"
(flag 0, all attributes 0). Labels at rest are uint8 [N, K] without the flag; two sides match them by name.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import MismatchError

MAX_GUIDANCE = 100.0
"""The largest guidance weight that a file, a configuration or a command may ask for."""

Labels = NDArray[np.uint8]
"""Multi-hot labels [N, K], each 0 or 1."""
Conditions = NDArray[np.float32]
"""Conditions [N, K + 1]: labels and the "no label" flag."""


def conditions_from_labels(labels: Labels | None, count: int, num_labels: int) -> Conditions:
    """Conditions [count, K + 1] from labels [count, K]; None means "no label" for every image."""
    conditions = np.zeros((count, num_labels + 1), dtype=np.float32)
    if labels is None:
        conditions[:, -1] = 1.0
    else:
        conditions[:, :-1] = labels
    return conditions


def unconditional(conditions: Any) -> Any:
    """The "no label" condition for each row, on a torch tensor or a NumPy array."""
    blank = conditions * 0.0
    blank[:, -1] = 1.0
    return blank


def dealt_labels(count: int, columns: Sequence[int], num_labels: int) -> Labels:
    """Multi-hot labels [count, num_labels]: each image shows one of the columns, in blocks, as evenly as it goes:
    0 0 0 1 1 1 2 2."""
    labels = np.zeros((count, num_labels), dtype=np.uint8)
    labels[np.arange(count), np.asarray(columns)[np.arange(count) * len(columns) // count]] = 1
    return labels


def same_labels(count: int, names: Sequence[str], known: Sequence[str]) -> Labels:
    """Multi-hot labels [count, len(known)] of images that all show these. Raises MismatchError, see indices_of."""
    labels = np.zeros((count, len(known)), dtype=np.uint8)
    labels[:, indices_of(names, known)] = 1
    return labels


def one_label_each(labels: Labels) -> bool:
    """Whether each image of [N, K] shows exactly one label."""
    return labels.shape[1] > 0 and bool((labels.sum(axis=1) == 1).all())


def indices_of(names: Sequence[str], known: Sequence[str]) -> list[int]:
    """Position of each name in ``known``. Raises MismatchError for an unknown one, naming the closest."""
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise MismatchError(f"label {name!r} is not known; known are {', '.join(known) or 'none'}.{hint}")
    return [list(known).index(name) for name in names]


def translate_labels(labels: Labels, names: Sequence[str], known: Sequence[str]) -> Labels:
    """Labels [N, K] given by ``names`` in the order of ``known`` [N, len(known)].

    Raises MismatchError when an image carries a label that is not in ``known``.
    """
    used = [i for i in range(len(names)) if labels[:, i].any()]
    targets = indices_of([names[i] for i in used], known)
    translated = np.zeros((len(labels), len(known)), dtype=np.uint8)
    translated[:, targets] = labels[:, used]
    return translated


def guided(
    model: Callable[[Any, Any, Any], Any], conditions: Any, guidance: float, blank: Any = None
) -> Callable[[Any, Any], Any]:
    """``denoise(x, sigma)`` for these conditions with classifier-free guidance (Ho and Salimans 2022).

    ``model(x, sigma, conditions) -> x0_hat``. With weight w the estimate is
    ``x0_hat(none) + w * (x0_hat(conditions) - x0_hat(none))``; w = 1 is plain conditioning, one evaluation.
    ``blank`` is the "no label" condition of each row where :func:`unconditional` cannot make it.
    """
    if guidance == 1.0:
        return lambda x, sigma: model(x, sigma, conditions)
    blank = unconditional(conditions) if blank is None else blank

    def denoise(x: Any, sigma: Any) -> Any:
        without = model(x, sigma, blank)
        return without + guidance * (model(x, sigma, conditions) - without)

    return denoise
