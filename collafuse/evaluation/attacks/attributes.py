"""Attribute inference: what does a release tell of its image's label or attributes?

The attacker knows half of the images with their labels, noises these as often as it likes, trains on that, and reads
the other half's releases. It has two classifiers on the principal directions of its half, linear discriminants and
logistic regression, and keeps the one that does better within its own half.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.conditioning import one_label_each
from ...data.imageset import ImageSet
from .finding import ALARM_Z, SHOWN_Z
from .reconstruction import GaussianPrior

Floats = NDArray[np.floating]
DIRECTIONS = 64
NOISY_COPIES = 8
LEAST_OF_A_CLASS = 10
"""In each half; a class with fewer is left out."""
MOST_ATTRIBUTES = 40


@dataclass(frozen=True)
class Inference:
    """Balanced accuracy of reading one thing from releases, and the same attack on clean images; chance is 1 / classes.

    error: the accuracy's standard error; chance_error: the same if nothing could be read.
    """

    what: str
    classes: int
    count: int
    accuracy: float
    clean: float
    error: float
    chance_error: float

    @property
    def chance(self) -> float:
        """What guessing gets."""
        return 1 / self.classes

    @property
    def alarm(self) -> bool:
        """Whether the release tells something, beyond chance."""
        return self.accuracy > self.chance + ALARM_Z * self.chance_error

    def shown(self) -> str:
        """As in a table: 71.3% +- 6.0."""
        return f"{self.accuracy:.1%} ± {100 * SHOWN_Z * self.error:.1f}"


def questions(images: ImageSet) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """What can be asked about images, with the answer for each [N]: their label, or one attribute at a time."""
    labels = images.labels.astype(np.int64)
    if labels.shape[1] > 1 and one_label_each(images.labels):
        yield "label", labels.argmax(axis=1)
        return
    for column in range(min(labels.shape[1], MOST_ATTRIBUTES)):
        yield images.label_names[column], labels[:, column]


def infer(
    x0: Floats, z: Floats, answers: NDArray[np.int64], sigma: float, what: str, rng: np.random.Generator
) -> Inference | None:
    """Read ``answers`` [N] from releases z [N, ...] of x0; None where too few images show one of at least two things.

    Odd and even rows, shuffled, are the attacker's half and the attacked one.
    """
    order = rng.permutation(len(x0))
    known, attacked = order[::2], order[1::2]
    counts = [np.bincount(answers[half], minlength=answers.max() + 1) for half in (known, attacked)]
    classes = np.flatnonzero(np.minimum(*counts) >= LEAST_OF_A_CLASS)
    if len(classes) < 2:
        return None
    known, attacked = (half[np.isin(answers[half], classes)] for half in (known, attacked))
    flat, noisy = x0.reshape(len(x0), -1), z.reshape(len(z), -1)
    prior = GaussianPrior.fit(flat[known])
    along, of_known = _strongest(prior, len(known)), answers[known]
    mine, theirs, as_released = (
        (rows - prior.mean) @ along.T for rows in (flat[known], flat[attacked], noisy[attacked])
    )
    reading = _read(mine, of_known, as_released, sigma, rng)
    clean = _read(mine, of_known, theirs, 0.0, rng)
    truth = answers[attacked]
    accuracy, sizes = balanced_accuracy(truth, reading), np.bincount(truth)[classes]
    return Inference(
        what,
        len(classes),
        len(attacked),
        accuracy,
        balanced_accuracy(truth, clean),
        _standard_error(accuracy, sizes),
        _standard_error(1 / len(classes), sizes),
    )


def _standard_error(accuracy: float, sizes: NDArray[np.int64]) -> float:
    """Of a balanced accuracy over classes of these sizes [K]; never 0 (Agresti and Coull 1998)."""
    shares = (accuracy * sizes + 2) / (sizes + 4)
    return math.sqrt(float((shares * (1 - shares) / (sizes + 4)).sum())) / len(sizes)


def balanced_accuracy(truth: NDArray[np.int64], reading: NDArray[np.int64]) -> float:
    """The mean over classes of the share that is read right, so that a common class counts no more than a rare one."""
    return float(np.mean([(reading[truth == one] == one).mean() for one in np.unique(truth)]))


def _strongest(prior: GaussianPrior, count: int) -> Floats:
    """The principal directions [r, d] along which images differ most, fewer where few are known."""
    return prior.directions[np.argsort(prior.variances)[::-1][: min(DIRECTIONS, max(2, count // 4))]]


def _read(
    known: Floats, answers: NDArray[np.int64], attacked: Floats, sigma: float, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Train on known images [N, r] noised to sigma, with the classifier that does best on a quarter of them; read the
    attacked ones [M, r]. Both along orthonormal directions, in which white noise is as white as in pixels."""
    scale = np.sqrt(known.var(axis=0) + sigma**2) + 1e-6

    def noised(rows: NDArray[np.int64]) -> tuple[Floats, NDArray[np.int64]]:
        repeated = np.repeat(rows, NOISY_COPIES if sigma else 1)
        copies = known[repeated]
        return (copies + sigma * rng.standard_normal(copies.shape)) / scale, answers[repeated]

    rows = np.arange(len(known))
    trial = rows % 4 == 3
    learn, test = noised(rows[~trial]), noised(rows[trial])
    makers = _classifiers(len(np.unique(answers)))
    scores = [balanced_accuracy(test[1], maker.fit(*learn).predict(test[0])) for maker in makers]
    return makers[int(np.argmax(scores))].fit(*noised(rows)).predict(attacked / scale)


def _classifiers(classes: int) -> list[Any]:
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.linear_model import LogisticRegression

    uniform = np.full(classes, 1 / classes)
    return [
        LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto", priors=uniform),
        LogisticRegression(class_weight="balanced", max_iter=2_000),
    ]
