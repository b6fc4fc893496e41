"""Intermediates for a client: what reduced precision is calibrated on, and what its loss is measured on.

Every other image calibrates, the ones between measure, so that a precision is never judged by the images that
shaped it. Files come in blocks of one label, so both halves hold all labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collafuse.core import intermediate as intermediates
from collafuse.core.bundle import INPUTS, MAX_PSNR_DB, NO_LABEL, BundleInfo, Loss
from collafuse.core.conditioning import TextSpace, dealt_labels, unconditional
from collafuse.core.errors import MismatchError
from collafuse.core.intermediate import Intermediate
from collafuse.core.noise import SIGMA_SLACK
from collafuse.core.pairing import check_pair, check_stated, conditions_for
from collafuse.core.pictures import Pixels, to_uint8
from collafuse.core.samplers import History
from collafuse.core.texts import EncodedText

from .runtime import finish

BATCH_SIZE = 64
MIN_IMAGES = 16
MAX_IMAGES = 512
"""Of a longer file every second, third ... image is taken; more images change the figures no more."""

Model = Callable[[NDArray[Any], Any, NDArray[np.float32]], NDArray[np.float32]]
"""``model(x, sigma, conditions) -> x0_hat``, see runtime.OnnxStep."""
Inputs = dict[str, NDArray[np.float32]]
"""What one evaluation of a step graph takes, by the names of the graph's inputs."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Images [N, C, H, W] where the client takes over, their conditions [N, W], the server's last step if it came."""

    x: NDArray[np.float32]
    conditions: NDArray[np.float32]
    history: History | None

    def parts(self) -> Iterator[Batch]:
        """The same in parts of BATCH_SIZE."""
        for start in range(0, len(self.x), BATCH_SIZE):
            rows = slice(start, start + BATCH_SIZE)
            history = self.history and History(self.history.x0_hat[rows], self.history.sigma)
            yield Batch(self.x[rows], self.conditions[rows], history)

    def finished(self, model: Model, info: BundleInfo) -> NDArray[np.float32]:
        """Finished images, about [-1, 1], as the bundle's defaults say."""
        return np.concatenate([_finish(model, part, info) for part in self.parts()])


def _finish(model: Model, part: Batch, info: BundleInfo) -> NDArray[np.float32]:
    return finish(model, part.x, part.conditions, info, history=part.history)


def read(path: Path, info: BundleInfo) -> tuple[Batch, Batch]:
    """The images that calibrate and those that measure, from an intermediates file for this client.

    Raises FileFormatError for a damaged file, MismatchError for one that a device would not finish with the bundle,
    that stands below where its client takes over, or that holds fewer than MIN_IMAGES.
    """
    found = intermediates.read(path)
    check_pair(found, info)
    if found.sigma < info.sigma_max * (1 - SIGMA_SLACK):
        raise MismatchError(
            f"{path} stands at sigma {found.sigma:g}, the client takes over at {info.sigma_max:g}; what lies between "
            "would be left out. Let the server deliver to this client."
        )
    if len(found) < MIN_IMAGES:
        raise MismatchError(
            f"{path} holds {len(found)} images; to calibrate and measure, at least {MIN_IMAGES} are needed: let the "
            "server deliver more (collafuse deliver -n 256)."
        )
    found = _as_finished(found, info)
    check_stated(found.labelled, found.text is not None, info)
    conditions = conditions_for(found, info.space)
    stride = 2 * -(-len(found) // MAX_IMAGES)

    def every(first: int) -> Batch:
        rows = slice(first, None, stride)
        return Batch(found.x[rows].astype(np.float32), conditions[rows], found.history(rows))

    return every(0), every(stride // 2)


def _as_finished(found: Intermediate, info: BundleInfo) -> Intermediate:
    """What a device makes of these. What the site keeps from the server is chosen there, so here each image shows one
    of the labels in turn, or a text: without any, guidance would have nothing to lose on."""
    if info.labels_kept and info.label_names and not found.labelled:
        known = info.label_names
        found = replace(found, labels=dealt_labels(len(found), range(len(known)), len(known)), label_names=known)
    if info.text_kept and info.text is not None and found.text is None:
        found = replace(found, text=_some_text(info.text, len(found)))
    return found


def _some_text(space: TextSpace, count: int) -> EncodedText:
    """Rows of a text's size, each another, as in a known answer: no encoder is here, and no caption."""
    rows = np.sin(1.1 * np.arange(1, count + 1)[:, None] + 2.3 * np.arange(space.width))
    return EncodedText(space, (rows / np.sqrt(np.square(rows).mean(axis=1, keepdims=True))).astype(np.float16))


def calibration_inputs(model: Model, batch: Batch, info: BundleInfo) -> Iterator[Inputs]:
    """What a step graph is asked on its way through the client's levels.

    First every evaluation of the real finishing: the levels the solver visits, each as often as it visits it, on
    the very x that come up there. Then as many levels spread evenly in ln sigma over the whole range, for a
    device that asks for other steps, on the finished images noised again; there every second image carries no
    condition, for a device that asks for guidance, unless the client never learned of that.
    """
    visited: list[Inputs] = []

    def recorded(x: NDArray[np.float32], sigma: float, conditions: NDArray[np.float32]) -> NDArray[np.float32]:
        visited.append(_inputs(x, sigma, conditions))
        return model(x, sigma, conditions)

    noise = np.random.default_rng(0)
    for part in batch.parts():
        visited.clear()
        finished = _finish(recorded, part, info)
        yield from visited
        conditions = part.conditions.copy()
        if info.blank_trained:
            conditions[::2] = unconditional(conditions[::2])
        for sigma in np.geomspace(min(info.sigma_low, info.sigma_max / 2), info.sigma_max, len(visited)):
            yield _inputs(finished + sigma * noise.standard_normal(finished.shape), sigma, conditions)


def _inputs(x: NDArray[np.floating], sigma: float, conditions: NDArray[np.float32]) -> Inputs:
    levels = np.full(len(x), sigma, dtype=np.float32)
    return dict(zip(INPUTS, (x.astype(np.float32), levels, conditions), strict=True))


def loss_between(exact: Pixels, reduced: Pixels, groups: Mapping[str, NDArray[np.bool_]] | None = None) -> Loss:
    """How far pictures of a reduced precision lie from the exact ones, and the worst of these groups of them [N].

    Without groups all pictures are one, of no label.
    """
    apart = np.abs(exact.astype(int) - reduced.astype(int))
    squares = (apart.astype(float) ** 2).reshape(len(apart), -1).mean(axis=1)
    groups = {NO_LABEL: np.ones(len(apart), dtype=bool)} if groups is None else groups
    found = {name: _psnr_db(squares[rows]) for name, rows in groups.items() if rows.any()}
    worst = min(found, key=found.__getitem__)
    mean = round(float(apart.mean()), 4)
    return Loss(len(exact), mean, int(apart.max()), _psnr_db(squares), worst, found[worst])


def _psnr_db(squares: NDArray[np.float64]) -> float:
    """Of the mean of these squares of grey levels."""
    square = float(squares.mean())
    return MAX_PSNR_DB if square == 0 else round(min(MAX_PSNR_DB, float(10 * np.log10(255.0**2 / square))), 2)


def measure_loss(exact: Model, reduced: Model, batch: Batch, info: BundleInfo) -> Loss:
    """The loss of a reduced graph on these images, finished as the bundle's defaults say; the worst of a label's too,
    since what is bad for one label alone is little in the mean of many."""
    there, here = (to_uint8(batch.finished(model, info)) for model in (exact, reduced))
    return loss_between(there, here, _groups(batch, info))


def _groups(batch: Batch, info: BundleInfo) -> dict[str, NDArray[np.bool_]]:
    """Which images show each label, and which none; an image of several labels is in several groups."""
    shown = batch.conditions[:, info.space.label_columns] > 0
    return {**dict(zip(info.label_names, shown.T, strict=True)), NO_LABEL: ~shown.any(axis=1)}
