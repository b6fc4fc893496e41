"""Checkpoints: everything a training needs to go on exactly, in one file that is whole or not there.

``checkpoints/step-00001000.safetensors`` (``kind`` "checkpoint", version 1) holds the weights ("model."), the
averaged weights ("ema.") and the optimiser's state ("optimizer."); from a quarter of the training on those of then
("early."); where images are kept back to choose a step by, also the best averaged weights so far, their step and loss
("best."). Random numbers are keyed by (seed, step),
so no generator's state needs saving. The file carries its own SHA-256; resuming takes the newest one that
verifies and is finite, and says which were skipped. The last two are kept, and what a killed training had half
written goes.
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

from ..config import TrainingSettings
from ..core import tensorfile
from ..core.atomic import PARTIAL_PREFIX
from ..core.errors import FileFormatError, MismatchError
from ..core.rows import Rows, blocks_of

KIND = "checkpoint"
VERSION = 1
KEEP = 2
PREFIX = "step-"
MANNER = frozenset({"accumulate", "compile", "recompute", "shard"})
"""Settings that say how a step is computed, not what; a training may go on with others."""


@dataclass(frozen=True)
class Identity:
    """What a training must have in common with the checkpoint it resumes from, as digests."""

    config: str
    data: str


def settings_that_count(settings: TrainingSettings) -> dict[str, Any]:
    """What of a training's settings two trainings must have in common to be the same.

    ``validation`` is left out where it is off, so that trainings from before there was one go on.
    """
    left_out = set(MANNER) if settings.validation else {*MANNER, "validation"}
    return settings.model_dump(mode="json", exclude=left_out)


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


def tensors_of(model: nn.Module, ema: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What a checkpoint keeps, by its name there. These are the tensors themselves: what is copied into them counts."""
    found = {f"model.{n}": t for n, t in model.state_dict().items()}
    found |= {f"ema.{n}": t for n, t in ema.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        found |= {f"optimizer.{index}.{n}": t for n, t in state.items()}
    return found


def start_moments(optimizer: torch.optim.Optimizer) -> None:
    """Give Adam the moments that it would make at its first step, in the memory layout of their parameters."""
    for parameter in (p for group in optimizer.param_groups for p in group["params"]):
        optimizer.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }


def save(folder: Path, step: int, tensors: Mapping[str, Tensor], identity: Identity) -> Path:
    """Write a checkpoint in one act, then drop all but the newest two."""
    arrays = {name: tensor.detach().cpu().contiguous().numpy() for name, tensor in tensors.items()}
    path = folder / f"{PREFIX}{step:08d}.safetensors"
    tensorfile.write(path, KIND, VERSION, {"step": step, **vars(identity)}, arrays, overwrite=True)
    for old in (*_all(folder)[KEEP:], *folder.glob(f"{PARTIAL_PREFIX}*")):  # the folder is this training's alone
        old.unlink(missing_ok=True)
    return path


def newest(folder: Path, identity: Identity, skipped: Callable[[str], None]) -> tuple[int, dict[str, Tensor]]:
    """The step and the tensors of the newest checkpoint that verifies; (0, {}) when there is none.

    ``skipped`` is told about each damaged one, and each that is not finite, which older versions wrote. Raises
    MismatchError when the configuration or data differ, FileFormatError when all are not finite.
    """
    spoilt = ""
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
        if bad := sum(int((~tensor.isfinite()).sum()) for tensor in tensors.values()):
            spoilt = f"{path} holds {bad} values that are not finite"
            skipped(f"skipping a checkpoint: {spoilt}")
            continue
        return step, tensors
    if spoilt:
        raise FileFormatError(
            f"{spoilt}, and no older checkpoint is there to go on from; lower the learning_rate or take another seed, "
            "and train into a new run folder."
        )
    return 0, {}


def _all(folder: Path) -> list[Path]:
    """Checkpoints, newest first."""
    return sorted(folder.glob(f"{PREFIX}*.safetensors"), reverse=True)
