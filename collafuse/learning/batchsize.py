"""The batch size at which a denoiser makes most images per second, found by trying."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from ..core.errors import CollaFuseError, first_line
from .compiled import SamplingDenoiser
from .denoiser import guided_together

SIZES = tuple(2**power for power in range(13))
"""1 to 4096 images."""
ENOUGH = 0.95
"""The smallest size is taken that makes this share of the most images per second: a batch twice as large for a few per
cent costs memory, and in a service the time of whoever joins."""
GIVE_UP = 0.8
"""Larger sizes are not tried once one makes less than this share of the most."""
TRIALS, TRIAL_SECONDS = 3, 0.1
"""Each size is evaluated so often, and for so long, at least."""

Seconds = Callable[[int], float]


def fastest_batch(seconds: Seconds) -> int:
    """The smallest size that makes nearly as many images per second as the best. ``seconds``: of an evaluation of so
    many images; it raises torch.OutOfMemoryError where they do not fit. Raises CollaFuseError when not even one does.
    """
    rates: dict[int, float] = {}
    for size in SIZES:
        try:
            rates[size] = size / seconds(size)
        except torch.OutOfMemoryError as error:
            if not rates:
                raise CollaFuseError(
                    f"the device has no memory for one image ({first_line(error)}); free some, or take another."
                ) from error
            break
        if rates[size] < GIVE_UP * max(rates.values()):
            break
    return next(size for size, rate in rates.items() if rate >= ENOUGH * max(rates.values()))


def evaluation_seconds(denoiser: SamplingDenoiser, guidance: float, device: torch.device) -> Seconds:
    """How long one evaluation of a batch takes on this device, with guidance as a delivery has it: the median of a
    few, after one that warms up."""

    @torch.inference_mode()
    def seconds(size: int) -> float:
        x = torch.zeros(size, *denoiser.image_shape, device=device)
        conditions = torch.zeros(size, denoiser.condition_width, device=device)
        denoise = guided_together(denoiser, conditions, guidance)
        _timed(denoise, x, device)
        took: list[float] = []
        while len(took) < TRIALS or math.fsum(took) < TRIAL_SECONDS:
            took.append(_timed(denoise, x, device))
        return statistics.median(took)

    return seconds


def _timed(denoise: Callable[[Tensor, float], Tensor], x: Tensor, device: torch.device) -> float:
    started = time.perf_counter()
    denoise(x, 1.0)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started
