"""One batch of a fixed shape whose rows are images of any request, each at its own noise level.

A row joins with its own start noise, condition and list of levels, moves one step at a time together with all
the others, and leaves when it stands at its last level. The steps are those of ``collafuse.core.samplers``, with
one sigma per image. What else is in the batch does not change a row: at one width the result is byte for byte
the same, at another it agrees within 1e-4.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..core.conditioning import guided
from ..core.noise import SIGMA_MAX
from ..core.samplers import EVALUATES_AT_END, STEPS, STOCHASTIC, History
from ..learning.compiled import SamplingDenoiser
from ..nodes.streams import Stream, draw

IDLE_SIGMA = 1.0
"""The level of a row that nobody uses; it stays there."""
MULTISTEP = "dpmpp_2m"


@dataclass
class Row:
    """One image on its way: where it stands in its levels, and whose it is."""

    owner: Any
    index: int
    sigmas: Sequence[float]
    sampler: str
    conditioned: bool
    stream: Stream
    position: int = 0

    @property
    def finished(self) -> bool:
        """Whether it stands at its last level."""
        return self.position == len(self.sigmas) - 1


class Batch:
    """Rows of a denoiser's images on one device; used by one thread only.

    ``slots`` is the number of rows. With ``fit`` only as many are evaluated as are in use, rounded up to a power
    of two: faster when few are, but then the bytes of a result depend on how many there were.
    """

    def __init__(
        self,
        denoiser: SamplingDenoiser,
        slots: int,
        guidance: float,
        device: torch.device,
        *,
        fit: bool = False,
    ) -> None:
        self.slots, self.guidance, self.fit = slots, guidance, fit
        self.rows: dict[int, Row] = {}
        self._denoiser, self._device = denoiser, device
        self._free = list(range(slots))
        self._x = torch.zeros(slots, *denoiser.image_shape, device=device)
        self._x0_hat = torch.zeros_like(self._x)
        self._precision = torch.float32 if device.type == "mps" else torch.float64  # which an Apple GPU has not
        self._last_sigma = torch.full((slots,), math.inf, dtype=self._precision, device=device)
        self._conditions = torch.zeros(slots, denoiser.condition_width, device=device)
        self._conditions[:, -1] = 1.0

    @property
    def free(self) -> int:
        """How many rows nobody uses."""
        return len(self._free)

    @property
    def width(self) -> int:
        """How many rows the next step evaluates."""
        if not self.fit or not self.rows:
            return self.slots
        return min(self.slots, 1 << max(self.rows).bit_length())

    def join(self, rows: Sequence[Row], noise: NDArray[np.float32], conditions: NDArray[np.float32]) -> None:
        """Put images into free rows, from start noise [N, C, H, W] and conditions [N, W]."""
        slots = [heapq.heappop(self._free) for _ in rows]  # the lowest first, which keeps a fitted batch narrow
        self.rows.update(zip(slots, rows, strict=True))
        self._x[slots] = torch.from_numpy(noise).to(self._device) * SIGMA_MAX
        self._x0_hat[slots] = 0.0
        self._last_sigma[slots] = math.inf
        self._conditions[slots] = torch.from_numpy(conditions).to(self._device)

    def leave(self, slots: Sequence[int]) -> None:
        """Free rows, whether or not they have finished."""
        for slot in slots:
            del self.rows[slot]
            heapq.heappush(self._free, slot)

    def take(self, slots: Sequence[int]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """x [N, C, H, W] of some rows, and the x0_hat of their last step."""
        return self._x[slots].cpu().numpy(), self._x0_hat[slots].cpu().numpy()

    def step(self) -> list[int]:
        """Move every row one level down; returns those that have finished."""
        width = self.width
        sigma, sigma_next = self._levels(width)
        used = {row.sampler for row in self.rows.values()}
        conditioned = any(row.conditioned for row in self.rows.values())
        # Without a condition both of guidance's estimates are the same number, so a batch without any is plain.
        denoise = guided(self._denoiser, self._conditions[:width], self.guidance if conditioned else 1.0)
        x = self._x[:width]
        moved = x
        if used - EVALUATES_AT_END or not used:
            # Euler is the multistep method without a history: one evaluation serves both.
            history = History(self._x0_hat[:width], self._last_sigma[:width])
            moved, history = STEPS[MULTISTEP](denoise, x, sigma, sigma_next, history)
            self._x0_hat[:width] = history.x0_hat
            self._last_sigma[:width] = torch.where(self._rows_with({MULTISTEP}, width), sigma, math.inf)
            for name in used & set(STOCHASTIC):
                noisy, _ = STOCHASTIC[name](lambda *_: history.x0_hat, x, sigma, sigma_next, noise=self._fresh_noise)
                moved = torch.where(self._rows_with({name}, width)[:, None, None, None], noisy, moved)
        for name in used & EVALUATES_AT_END:
            two_evaluations, _ = STEPS[name](denoise, x, sigma, sigma_next)
            moved = torch.where(self._rows_with({name}, width)[:, None, None, None], two_evaluations, moved)
        self._x[:width] = moved
        for row in self.rows.values():
            row.position += 1
        return [slot for slot, row in self.rows.items() if row.finished]

    def _fresh_noise(self, x: torch.Tensor) -> torch.Tensor:
        """Standard normal noise like x for the rows that take some at this step, from their own streams."""
        noise = torch.zeros_like(x)
        slots = [slot for slot, row in self.rows.items() if row.sampler in STOCHASTIC]
        noise[slots] = torch.from_numpy(draw([self.rows[slot].stream for slot in slots], x.shape[1:])).to(x)
        return noise

    def _levels(self, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Each row's level and its next one [width], in float64 where the device has it."""
        now, then = [IDLE_SIGMA] * width, [IDLE_SIGMA] * width
        for slot, row in self.rows.items():
            now[slot], then[slot] = row.sigmas[row.position], row.sigmas[row.position + 1]
        sigmas = torch.tensor([now, then], dtype=self._precision).to(self._device)
        return sigmas[0], sigmas[1]

    def _rows_with(self, samplers: set[str], width: int) -> torch.Tensor:
        """Which rows use one of these samplers, bool [width]."""
        chosen = [slot in self.rows and self.rows[slot].sampler in samplers for slot in range(width)]
        return torch.tensor(chosen).to(self._device)
