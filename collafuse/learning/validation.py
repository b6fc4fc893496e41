"""Images kept back from a training, to see what it learns of others than its own, and to keep the step that knew most.

With few images a long training learns them by heart: its loss goes on falling while it knows less and less of any
other. The loss on images that it never learns from says so, and the averaged weights of the step where that was least
are the ones to keep (Prechelt 1998, "Early stopping - but when?"). Here the training goes on to its last step all the
same, so that a late recovery counts and the whole curve is there to be looked at.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ..config import TrainingSettings
from ..core.errors import ConfigError
from .denoiser import Denoiser
from .examples import TrainingData
from .observer import Observer
from .seeds import keyed_seed

MOST_IMAGES = 1024
"""More are not kept back, however large the share: the loss of so many is known to a few per cent."""
DRAWS = 512
"""Noised copies that are looked at, at least: of few images several each, at different levels."""
AT_ONCE = 64
"""Copies that pass through the network together; the noise is drawn for so many, however a step is dealt out."""
SAVED = "best."
"""Before the names of the kept weights in a checkpoint."""
STEP, LOSS = f"{SAVED}step", f"{SAVED}loss"


def parted(data: TrainingData, settings: TrainingSettings) -> tuple[Tensor, Tensor]:
    """Rows to learn from, and rows kept back: each in order, and the same for the same seed. Images of one group stay
    together, so that nothing is known of those kept back from their like.

    Raises ConfigError where the share is less than one group or leaves none to learn from.
    """
    count = len(data)
    if not settings.validation:
        return torch.arange(count), torch.arange(0)
    wanted = min(round(settings.validation * count), MOST_IMAGES)
    group = torch.arange(count) if data.groups is None else data.groups
    sizes = group.bincount()
    generator = torch.Generator().manual_seed(keyed_seed(settings.seed, "validation"))
    order = torch.randperm(len(sizes), generator=generator)
    taken = order[sizes[order].cumsum(0) <= wanted]
    back = torch.isin(group, taken)
    if not 0 < int(back.sum()) < count:
        raise ConfigError(
            f"training.validation={settings.validation:g} of {count} images keeps back {int(back.sum())}"
            f"{'' if len(sizes) == count else f', since they come in {len(sizes)} groups that stay together'}; give a "
            "share that keeps back one or more and leaves one to learn from, or 0 for none."
        )
    return torch.nonzero(~back)[:, 0], torch.nonzero(back)[:, 0]


class Draw(NamedTuple):
    """Some noised copies to measure by: the rows [B] of their images, where in the range of levels each lies [B] in
    (0, 1), and the number by which their noise is drawn."""

    rows: Tensor
    uniform: Tensor
    number: int


class Best(NamedTuple):
    """The averaged weights, on the host, of the step with the least loss so far."""

    step: int
    loss: float
    weights: Mapping[str, Tensor]


class Validation:
    """What was kept back, and the best that a training has shown on it. The images, levels and noise are the same each
    time, so that losses of different steps differ by what was learned alone."""

    def __init__(self, rows: Tensor, seed: int) -> None:
        """rows: [V], those kept back."""
        self.best: Best | None = None
        self.images = len(rows)
        count = len(rows) * max(1, math.ceil(DRAWS / len(rows)))
        generator = torch.Generator().manual_seed(keyed_seed(seed, "validation levels"))
        self._rows = rows.repeat_interleave(count // len(rows))
        # One level from each of equal parts of the range, in mixed order: few draws cover it evenly.
        self._uniform = (torch.randperm(count, generator=generator) + 0.5) / count

    def draws(self) -> Iterator[Draw]:
        """All copies, AT_ONCE at a time."""
        parts = zip(self._rows.split(AT_ONCE), self._uniform.split(AT_ONCE), strict=True)
        return (Draw(*part, number) for number, part in enumerate(parts))

    def __len__(self) -> int:
        return len(self._rows)

    def seen(self, step: int, loss: float, averaged: Denoiser) -> None:
        """Keep these weights if nothing before was better; a loss that is not finite never is."""
        if math.isfinite(loss) and (self.best is None or loss < self.best.loss):
            kept = {name: tensor.detach().to("cpu", copy=True) for name, tensor in averaged.state_dict().items()}
            self.best = Best(step, loss, kept)

    def say(self, last: int, loss: float, observer: Observer) -> None:
        """At the end of a training: which step is kept, where that is not the last one."""
        if self.best is not None and self.best.step < last:
            observer.note(
                f"keeping the weights of step {self.best.step} of {last}: there the loss on images that were kept back "
                f"was least, {self.best.loss:.4g}; in the end it is {loss:.4g}"
            )

    def saved(self) -> dict[str, Tensor]:
        """What a checkpoint keeps of it."""
        if self.best is None:
            return {}
        numbers = {STEP: torch.tensor(self.best.step), LOSS: torch.tensor(self.best.loss, dtype=torch.float64)}
        return {f"{SAVED}{name}": tensor for name, tensor in self.best.weights.items()} | numbers

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from a checkpoint's tensors."""
        if STEP in tensors:
            kept = {n.removeprefix(SAVED): t for n, t in tensors.items() if n.startswith(SAVED)}
            step, loss = (kept.pop(name.removeprefix(SAVED)) for name in (STEP, LOSS))
            self.best = Best(int(step), float(loss), kept)
