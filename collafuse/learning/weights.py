"""A trained denoiser on disk: averaged weights and their configuration, nothing else.

File format (safetensors, ``kind`` "weights", version 1): one tensor per parameter, float32, under its name in
``Denoiser.state_dict``; metadata: role (see ROLES), network (see NetworkSettings), image_shape,
label_names, sigma_data, sigma_low and sigma_high (the levels trained), steps; with text besides text_encoder and
text_width. Holds no optimiser state and no release ids, so a server may give it to a site for a warm start. Beside it,
in a file of the same kind, lies an earlier version of it for autoguidance (EARLY), where a training has kept one.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from ..config import NetworkSettings
from ..config.learning import MAX_SIGMA_DATA
from ..core import tensorfile
from ..core.atomic import storage_error
from ..core.conditioning import Conditions, ConditionSpace
from ..core.errors import ConfigError, FileFormatError, MismatchError
from ..core.noise import SIGMA_MAX, server_sigmas
from ..core.pictures import MAX_SIDE
from ..core.texts import read_text_space, text_fields
from .autoguidance import AutoGuided, Early
from .denoiser import Denoiser
from .observer import Observer

KIND = "weights"
VERSION = 1
ID_DIGITS = 16
EARLY = "early.safetensors"
"""The name of an earlier version's file, beside that of the weights."""
ROLES = ("server", "client", "whole")
"""Whose weights they are: either half, or a baseline's model of the whole range."""


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """A denoiser and what its levels mean. ``id`` identifies the weights (from their SHA-256). ``early``: an earlier
    version of it, where there is one and it was asked for."""

    denoiser: Denoiser | AutoGuided
    role: str
    sigma_low: float
    sigma_high: float
    steps: int
    id: str = ""
    early: Early | None = None
    mixes_labels = True
    """An image may be asked for with several labels."""

    @property
    def learned(self) -> Denoiser:
        """The denoiser without what guides it: what learned, and what knows images best."""
        return self.denoiser.trained if isinstance(self.denoiser, AutoGuided) else self.denoiser

    @property
    def space(self) -> ConditionSpace:
        """What its conditions mean."""
        return self.denoiser.space

    @property
    def label_names(self) -> tuple[str, ...]:
        """The labels that it knows."""
        return self.space.label_names

    def levels(self, handover: float, num_steps: int) -> list[float]:
        """A server's noise levels, from pure noise down to where a client takes over."""
        return server_sigmas(handover, num_steps)

    def begin(self, noise: NDArray[np.float32], sigma: float, conditions: Conditions) -> NDArray[np.float32]:
        """Images at the first level, of standard normal noise [N, C, H, W]: at SIGMA_MAX nothing else is seen."""
        return noise * np.float32(sigma)

    def autoguided(self, weight: float) -> TrainedModel:
        """The same, guided by its earlier version with this weight; 1 is as it is.

        Raises MismatchError where there is no earlier version.
        """
        if weight == 1.0:
            return self
        if self.early is None:
            raise _no_early(self.role, weight)
        name = hashlib.sha256(f"{self.id} {weight!r} {self.early.id}".encode()).hexdigest()[:ID_DIGITS]
        return replace(self, denoiser=AutoGuided(self.learned, self.early, weight), early=None, id=name)


def check_early(path: Path, role: str, autoguidance: float) -> None:
    """Raise MismatchError where there are weights, and no earlier version of them to be guided by."""
    if autoguidance != 1.0 and path.exists() and not path.with_name(EARLY).exists():
        raise _no_early(role, autoguidance)


def _no_early(role: str, autoguidance: float) -> MismatchError:
    return MismatchError(
        f"sampler.autoguidance={autoguidance:g} needs an earlier version of the trained {role}, which a training "
        f"writes as {EARLY} beside its weights, and there is none. Restore it from where the weights came from, or "
        "set sampler.autoguidance to 1; a training that began before there were any, has hardly a step, or whose "
        "validation kept one as early as that, has none."
    )


def save(path: Path, model: TrainedModel) -> str:
    """Write the weights in one act, over older ones, before them their earlier version; returns their id.

    Raises StorageError as every writer.
    """
    beside = path.with_name(EARLY)
    if model.early is None:
        try:
            beside.unlink(missing_ok=True)
        except OSError as error:
            raise storage_error(beside, error) from error
    else:
        _save(beside, replace(model, denoiser=model.early.denoiser, steps=model.early.steps))
    return _save(path, model)


def _save(path: Path, model: TrainedModel) -> str:
    denoiser = model.learned
    fields = {
        "role": model.role,
        "network": denoiser.network_settings.model_dump(mode="json"),
        "image_shape": list(denoiser.image_shape),
        "label_names": list(model.label_names),
        "sigma_data": denoiser.sigma_data,
        "sigma_low": model.sigma_low,
        "sigma_high": model.sigma_high,
        "steps": model.steps,
        **text_fields(model.space.text),
    }
    arrays = {name: tensor.detach().cpu().contiguous().numpy() for name, tensor in denoiser.state_dict().items()}
    tensorfile.write(path, KIND, VERSION, fields, arrays, overwrite=True)
    return tensorfile.file_digest(path)[:ID_DIGITS]


def load_sampling(path: Path, role: str, autoguidance: float) -> TrainedModel:
    """Weights as a sampler of this ``autoguidance`` evaluates them. Raises as :func:`load_with_early`, and
    MismatchError where they should be guided by an earlier version and there is none."""
    return (load(path, role) if autoguidance == 1.0 else load_with_early(path, role)).autoguided(autoguidance)


def load_with_early(path: Path, role: str | None = None) -> TrainedModel:
    """Weights, with their earlier version where one lies beside them. Raises as :func:`load`, and MismatchError where
    that is another network's."""
    model, beside = load(path, role), path.with_name(EARLY)
    if not beside.exists():
        return model
    early = load(beside, model.role)
    for name, ours, theirs in (
        ("network", model.learned.network_settings, early.learned.network_settings),
        ("image shape", model.denoiser.image_shape, early.denoiser.image_shape),
        ("labels and text", model.space, early.space),
        ("levels", (model.sigma_low, model.sigma_high), (early.sigma_low, early.sigma_high)),
    ):
        if ours != theirs:
            raise MismatchError(
                f"{beside} is no earlier version of {path.name}: {name} {theirs}, expected {ours}; restore the one "
                "that belongs to it, or train again."
            )
    if early.steps >= model.steps:
        raise MismatchError(
            f"{beside} is of step {early.steps}, no earlier than {path.name} of step {model.steps}; restore the one "
            "that belongs to it, or train again."
        )
    return replace(model, early=Early(early.learned, early.steps, early.id))


def load_trained(path: Path, role: str, autoguidance: float, observer: Observer) -> TrainedModel:
    """As :func:`load_sampling`, for the end of a training: where there is no earlier version the observer hears it, and
    the model is as without, so that what else there is to train is trained."""
    try:
        return load_sampling(path, role, autoguidance)
    except MismatchError as error:
        observer.note(f"warning: {error}")
        return load(path, role)


def load(path: Path, role: str | None = None) -> TrainedModel:
    """Read and check weights. Raises FileFormatError, or MismatchError when the role is another."""
    file = tensorfile.read(path, KIND, VERSION)
    fields, source = file.fields, str(path)
    found = fields.text("role", one_of=ROLES)
    if role is not None and found != role:
        raise MismatchError(f"{path} holds the weights of a {found}, expected those of a {role}.")
    space = ConditionSpace(fields.names("label_names"), read_text_space(fields, str(path)))
    settings = _network(fields.take("network"), source)
    channels, height, width = fields.integers("image_shape", length=3, at_least=1, at_most=MAX_SIDE)
    sigma_data = fields.number("sigma_data", above=0, at_most=MAX_SIGMA_DATA)
    parts = (settings, (channels, height, width), space, sigma_data)
    tensors = {name: torch.from_numpy(array) for name, array in file.tensors.items()}
    _check_tensors(parts, tensors, source)
    denoiser = Denoiser(*parts)
    denoiser.load_state_dict(tensors)
    model = TrainedModel(
        denoiser=denoiser.eval().requires_grad_(False),
        role=found,
        sigma_low=fields.number("sigma_low", above=0, at_most=SIGMA_MAX),
        sigma_high=fields.number("sigma_high", above=0, at_most=SIGMA_MAX),
        steps=fields.integer("steps", at_least=0, at_most=1 << 40),
        id=tensorfile.file_digest(path)[:ID_DIGITS],
    )
    fields.done()
    return model


def _network(values: Any, source: str) -> NetworkSettings:
    try:
        return NetworkSettings.model_validate(values)
    except ValidationError as error:
        raise FileFormatError(f"{source} describes a network that is not known; get the weights anew.") from error


def _check_tensors(
    parts: tuple[NetworkSettings, tuple[int, int, int], ConditionSpace, float], tensors: dict[str, Tensor], source: str
) -> None:
    expected = None
    if parts[0].blocks <= len(tensors):  # each block has several
        try:
            with torch.device("meta"):  # sizes alone: what a file claims must not cost memory
                expected = {name: tensor.shape for name, tensor in Denoiser(*parts).state_dict().items()}
        except (ConfigError, RuntimeError, OverflowError) as error:
            raise FileFormatError(
                f"{source} describes a network that cannot be built; get the weights anew."
            ) from error
    if expected != {name: tensor.shape for name, tensor in tensors.items()}:
        raise FileFormatError(f"{source} holds other tensors than its network has; get the weights anew.")
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise FileFormatError(f"{source} holds weights that are not finite; train again from an older checkpoint.")


def warm_start(denoiser: Denoiser, teacher: TrainedModel) -> None:
    """Start a denoiser from a teacher of the same size; label columns are matched by name.

    A label that the teacher does not know starts as "no condition"; where the teacher has no text, ours starts as it
    was. Raises MismatchError, naming both sizes or both text encoders.
    """
    theirs = teacher.learned
    for name, ours, other in (
        ("network", denoiser.network_settings, theirs.network_settings),
        ("image shape", denoiser.image_shape, theirs.image_shape),
    ):
        if ours != other:
            raise MismatchError(
                f"a warm start needs the same {name}: here {ours}, in the weights {other}; "
                "give the client the server's network, or train it from scratch."
            )
    state = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    key = "network.label_embedding.weight"
    state[key] = state[key][:, denoiser.space.columns_from(teacher.space)]
    if teacher.space.text is None:
        own = denoiser.state_dict()[key]  # not zeros: a design that normalises them could not learn from there
        state[key][:, denoiser.space.text_columns] = own[:, denoiser.space.text_columns]
    denoiser.load_state_dict(state)
    denoiser.sigma_data = theirs.sigma_data
