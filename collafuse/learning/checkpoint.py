"""Checkpoints: everything a training needs to go on exactly, in one file that is whole or not there.

``checkpoints/step-00001000.safetensors`` (``kind`` "checkpoint", version 1) holds the weights ("model."), the
averaged weights ("ema.") and the optimiser's state ("optimizer."). Random numbers are keyed by (seed, step),
so no generator's state needs saving. The file carries its own SHA-256; resuming takes the newest one that
verifies and says which were skipped. The last two are kept, and what a killed training had half written goes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core import tensorfile
from ..core.atomic import PARTIAL_PREFIX
from ..core.errors import FileFormatError, MismatchError
from ..core.rows import Rows, blocks_of

KIND = "checkpoint"
VERSION = 1
KEEP = 2
PREFIX = "step-"


@dataclass(frozen=True)
class Identity:
    """What a training must have in common with the checkpoint it resumes from, as digests."""

    config: str
    data: str


def digest_of_settings(settings: Mapping[str, Any]) -> str:
    """A digest of plain settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()


def digest_of_tensors(*tensors: Tensor | Rows) -> str:
    """A digest of the values of tensors; the same for rows of a file, which are read a few megabytes at a time."""
    digest = hashlib.sha256()
    for tensor in tensors:
        array = tensor.detach().cpu().contiguous().numpy() if isinstance(tensor, Tensor) else tensor
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        for block in blocks_of(array):
            digest.update(array[block].reshape(-1).view("uint8").data)
    return digest.hexdigest()


def save(
    folder: Path, step: int, model: nn.Module, ema: nn.Module, optimizer: torch.optim.Optimizer, identity: Identity
) -> Path:
    """Write a checkpoint in one act, then drop all but the newest two."""
    tensors = {f"model.{n}": t for n, t in model.state_dict().items()}
    tensors |= {f"ema.{n}": t for n, t in ema.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{n}": t for n, t in state.items()}
    arrays = {name: tensor.detach().cpu().contiguous().numpy() for name, tensor in tensors.items()}
    path = folder / f"{PREFIX}{step:08d}.safetensors"
    tensorfile.write(path, KIND, VERSION, {"step": step, **vars(identity)}, arrays, overwrite=True)
    for old in (*_all(folder)[KEEP:], *folder.glob(f"{PARTIAL_PREFIX}*")):  # the folder is this training's alone
        old.unlink(missing_ok=True)
    return path


def resume(
    folder: Path,
    model: nn.Module,
    ema: nn.Module,
    optimizer: torch.optim.Optimizer,
    identity: Identity,
    skipped: Callable[[str], None],
) -> int:
    """Load the newest checkpoint that verifies into the arguments; returns its step, 0 when there is none.

    ``skipped`` is told about each damaged one. Raises MismatchError when the configuration or data differ.
    """
    for path in _all(folder):
        try:
            file = tensorfile.read(path, KIND, VERSION)
            step = file.fields.integer("step", at_least=0, at_most=1 << 40)
            found = Identity(config=file.fields.text("config"), data=file.fields.text("data"))
        except FileFormatError as error:
            skipped(f"skipping a checkpoint: {error}")
            continue
        for name, here, there in (
            ("configuration or starting weights", identity.config, found.config),
            ("data", identity.data, found.data),
        ):
            if here != there:
                raise MismatchError(
                    f"{path} was made with another {name} ({there[:12]}..., now {here[:12]}...); "
                    f"restore the old {name}, or train into a new run folder."
                )
        tensors = {name: torch.from_numpy(array) for name, array in file.tensors.items()}
        model.load_state_dict(_under("model.", tensors))
        ema.load_state_dict(_under("ema.", tensors))
        _load_optimizer(optimizer, _under("optimizer.", tensors))
        return step
    return 0


def _all(folder: Path) -> list[Path]:
    """Checkpoints, newest first."""
    return sorted(folder.glob(f"{PREFIX}*.safetensors"), reverse=True)


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    # Fused kernels walk parameter and state in step, so the state takes the parameter's memory layout back on.
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            if value.shape == parameter.shape and value.stride() != parameter.stride():
                values[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
