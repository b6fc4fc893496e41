"""A denoiser that samples with compiled kernels, at batches of one size; on CUDA its evaluation is replayed as a graph.

Compiling pays where many batches of one shape follow each other, so a smaller batch is filled up to that shape: rows do
not influence each other. torch's own graphs (``mode="reduce-overhead"``) belong to the thread that recorded them
(pytorch issue 123177), and a service records in one and samples in another; so the recording is done here, around what
torch.compile made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from ..core.errors import first_line
from .autoguidance import AutoGuided
from .denoiser import Denoiser

COMPILING_FAILS_WITH = (RuntimeError, ImportError, OSError, AssertionError)
"""What torch.compile raises where it cannot work: no compiler, no Triton, a graph that it does not understand."""
WARM_UPS = 3
"""Evaluations before a recording, in which libraries choose their kernels and take their memory."""

Evaluate = Callable[[Tensor, Tensor, Tensor], Tensor]


class SamplingDenoiser(Protocol):
    """What samplers evaluate: D(x [B, C, H, W], sigma [B] or a float, conditions [B, W]) -> x0_hat [B, C, H, W]."""

    @property
    def image_shape(self) -> tuple[int, int, int]: ...
    @property
    def condition_width(self) -> int: ...
    def __call__(self, x: Tensor, sigma: Any, conditions: Tensor) -> Tensor: ...


class CompiledDenoiser:
    """Evaluates batches of up to ``rows`` images as ``rows``, and of up to twice as many, as guidance makes them, as
    ``2 rows``. Larger ones are evaluated by the denoiser as it is.

    A shape is compiled when it is first met, which takes a minute or two. Where that fails the denoiser as it is takes
    its place and ``note`` hears why. Results agree with it up to rounding. Not for two threads at once.
    """

    def __init__(
        self, denoiser: Denoiser | AutoGuided, rows: int, note: Callable[[str], None], *, backend: str = "inductor"
    ) -> None:
        self.image_shape, self.condition_width = denoiser.image_shape, denoiser.condition_width
        self._denoiser, self._note, self._backend = denoiser, note, backend
        self._widths = (rows, 2 * rows)
        self._compiled: Any = torch.compile(denoiser, dynamic=False, backend=backend)
        self._ways: dict[int, Evaluate] = {}

    def __call__(self, x: Tensor, sigma: Any, conditions: Tensor) -> Tensor:
        count = len(x)
        sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).expand(count)
        width = next((width for width in self._widths if width >= count), None)
        if width is None:
            return self._denoiser(x, sigma, conditions)
        more = width - count
        given = (
            functional.pad(x, (0,) * 7 + (more,)),
            functional.pad(sigma, (0, more), value=1.0),
            functional.pad(conditions, (0, 0, 0, more)),
        )
        if width not in self._ways:
            self._ways[width] = self._way(given)
        return self._ways[width](*given)[:count]

    def of_rows(self, rows: int) -> CompiledDenoiser:
        """The same for batches of another size."""
        return CompiledDenoiser(self._denoiser, rows, self._note, backend=self._backend)

    def _way(self, given: tuple[Tensor, Tensor, Tensor]) -> Evaluate:
        try:
            self._compiled(*given)
            return Recorded(self._compiled, given) if given[0].device.type == "cuda" else self._compiled
        except torch.OutOfMemoryError:
            raise
        except COMPILING_FAILS_WITH as error:
            self._note(f"compiling does not work here and is left out: {first_line(error)}")
            return self._denoiser


class Recorded:
    """A denoiser's evaluation at fixed shapes, recorded as a CUDA graph: one launch in place of hundreds."""

    def __init__(self, evaluate: Evaluate, given: tuple[Tensor, Tensor, Tensor]) -> None:
        device = given[0].device
        self._given = tuple(tensor.clone() for tensor in given)
        side, current = torch.cuda.Stream(device), torch.cuda.current_stream(device)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                evaluate(*self._given)
        current.wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        # What other threads do meanwhile, as a service's do, does not spoil the recording.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._x0_hat = evaluate(*self._given)

    def __call__(self, x: Tensor, sigma: Tensor, conditions: Tensor) -> Tensor:
        for mine, value in zip(self._given, (x, sigma, conditions), strict=True):
            mine.copy_(value)
        self._graph.replay()
        return self._x0_hat.clone()  # the next replay writes over it, and a multistep sampler remembers it
