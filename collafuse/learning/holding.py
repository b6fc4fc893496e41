"""How the ranks of one training hold its weights, their averages and Adam's moments: all of them, or a part each.

Both hold a ``model`` to train and its average ``ema``. What they promise is said once, at :class:`Replicated`; with one
rank it is a plain model.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from . import checkpoint
from .denoiser import Denoiser
from .distributed import Ranks


class Holding(Protocol):
    """What a training asks of the way in which its weights are held."""

    model: Denoiser
    ema: Denoiser

    def joined(self, module: nn.Module) -> nn.Module: ...
    def unjoined(self, joined: nn.Module) -> AbstractContextManager[None]: ...
    def average(self, weight: float) -> None: ...
    def averaged(self) -> Denoiser: ...
    def tensors(self, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]: ...
    def fill(self, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None: ...


class Replicated:
    """Each rank holds all; rank 0 alone averages."""

    def __init__(self, denoiser: Denoiser, device: torch.device, ranks: Ranks) -> None:
        layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
        self.model = denoiser.to(device, memory_format=layout)  # type: ignore[call-overload]
        self.ema = copy.deepcopy(self.model).eval().requires_grad_(False)
        self._device, self._ranks = device, ranks

    def joined(self, module: nn.Module) -> nn.Module:
        """The model, or what computes the same, so that gradients become means over all ranks."""
        if self._ranks.size == 1:
            return module
        devices = [self._device] if self._device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=devices, gradient_as_bucket_view=True)

    def unjoined(self, joined: nn.Module) -> AbstractContextManager[None]:
        """Gradients that come in this block are kept at each rank until some come outside it."""
        return nullcontext() if self._ranks.size == 1 else joined.no_sync()  # type: ignore[operator]

    @torch.no_grad()
    def average(self, weight: float) -> None:
        """Bring the averages this share of the way to the weights."""
        if self._ranks.leads:
            torch._foreach_lerp_(list(self.ema.parameters()), list(self.model.parameters()), weight)

    def averaged(self) -> Denoiser:
        """The denoiser with averaged weights, whole, on every rank; all have to ask for it."""
        self._ranks.copy_from_first(list(self.ema.parameters()))
        return self.ema

    def tensors(self, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """What a checkpoint keeps, on rank 0; all have to ask for it."""
        return checkpoint.tensors_of(self.model, self.ema, optimizer)

    @torch.no_grad()
    def fill(self, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
        """Take over, on every rank, what rank 0 read from a checkpoint."""
        checkpoint.start_moments(optimizer)
        mine = checkpoint.tensors_of(self.model, self.ema, optimizer)
        if self._ranks.leads:
            for name, tensor in mine.items():
                tensor.copy_(tensors[name])
        self._ranks.copy_from_first(list(mine.values()))


class Sharded:
    """Each rank holds a part of every tensor, for networks that outgrow a GPU.

    torch's FSDP2 brings the weights of a block together for as long as it is computed and leaves each rank the part of
    the gradient that belongs to its weights (Zhao et al. 2023, arXiv 2304.11277).
    """

    def __init__(self, denoiser: Denoiser, device: torch.device, ranks: Ranks) -> None:
        from torch.distributed.device_mesh import init_device_mesh

        self._whole = copy.deepcopy(denoiser).to("cpu").eval().requires_grad_(False)
        self._device, self._ranks = device, ranks
        mesh = init_device_mesh(device.type, (ranks.size,))
        # The parts have to lie one behind the other, so there is no channels-last here.
        self.model = _in_parts(denoiser.to(device), mesh)
        self.ema = _in_parts(copy.deepcopy(self._whole).to(device), mesh)

    def joined(self, module: nn.Module) -> nn.Module:
        return module

    @contextmanager
    def unjoined(self, joined: nn.Module) -> Iterator[None]:
        self._join(False)
        try:
            yield
        finally:
            self._join(True)

    def _join(self, now: bool) -> None:
        self.model.set_requires_gradient_sync(now)  # type: ignore[operator]

    @torch.no_grad()
    def average(self, weight: float) -> None:
        averages, parts = ([_own_part(one) for one in model.parameters()] for model in (self.ema, self.model))
        torch._foreach_lerp_(averages, parts, weight)

    def averaged(self) -> Denoiser:
        whole = copy.deepcopy(self._whole)
        whole.load_state_dict({name: _gathered(part) for name, part in self.ema.state_dict().items()})
        return whole.to(self._device)

    def tensors(self, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        found = {}
        for name, part in checkpoint.tensors_of(self.model, self.ema, optimizer).items():
            whole = _gathered(part)
            if self._ranks.leads:
                found[name] = whole
        return found

    @torch.no_grad()
    def fill(self, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
        from torch.distributed.tensor import DTensor, distribute_tensor

        checkpoint.start_moments(optimizer)
        for name, mine in checkpoint.tensors_of(self.model, self.ema, optimizer).items():
            whole = torch.empty(mine.shape, dtype=mine.dtype, device=self._device)
            if self._ranks.leads:
                whole.copy_(tensors[name])
            if isinstance(mine, DTensor):
                mine.to_local().copy_(distribute_tensor(whole, mine.device_mesh, mine.placements).to_local())
            else:
                self._ranks.copy_from_first([whole])
                mine.copy_(whole)


def _in_parts(denoiser: Denoiser, mesh: Any) -> Denoiser:
    """The denoiser, each of whose blocks is brought together apart from the others."""
    from torch.distributed.fsdp import FSDPModule, fully_shard

    for block in denoiser.network.all_blocks():
        fully_shard(block, mesh=mesh)
    fully_shard(denoiser, mesh=mesh)
    for one in denoiser.modules():
        if isinstance(one, FSDPModule) and dist.get_backend() == "gloo":
            one.set_force_sum_reduction_for_comms(True)  # gloo knows no means
    return denoiser


def _own_part(tensor: Any) -> Tensor:
    """What of a tensor lies here, sharing its memory."""
    return tensor.to_local()


def _gathered(part: Tensor) -> Tensor:
    """A whole tensor on the host; all ranks have to ask for it."""
    from torch.distributed.tensor import DTensor

    return (part.full_tensor() if isinstance(part, DTensor) else part).cpu()
