"""The release: the only thing of an image that ever leaves its site, once.

File format (safetensors, ``kind`` "release", version 1):

    z        float16 [N, C, H, W]   x0 + sigma_cut * n, with n drawn once per image
    ids      uint8   [N, 16]        random, so that server and site can speak about one image
    labels   uint8   [N, K]         multi-hot, only when the site shares them

    metadata: sigma_cut, label_names (null when labels are not shared), simulated

MUST NOT hold: clean images, the noise or a seed, file names, site names, EXIF, or anything else that is
derived from x0. Limits: N >= 1, C in 1..4, H and W in 1..1024, K <= 4096. ``simulated`` marks releases that
``train`` made inside one process; ``train-server`` and ``serve`` refuse them without a flag.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from . import tensorfile
from .conditioning import Labels
from .errors import FileFormatError
from .metadata import Fields
from .noise import SIGMA_MAX, SIGMA_MIN, Cut, Noise
from .pictures import MAX_CHANNELS, MAX_SIDE

KIND = "release"
VERSION = 1


@dataclass(frozen=True, eq=False)
class Release:
    """Images of one site, noised once up to its cut.

    z: [N, C, H, W] float16 at level sigma_cut. labels: [N, K] in the order of label_names, or None when the
    site does not share them. ids: [N, 16] random bytes.
    """

    z: NDArray[np.float16]
    sigma_cut: float
    ids: NDArray[np.uint8]
    labels: Labels | None
    label_names: tuple[str, ...]
    simulated: bool

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        _, channels, height, width = self.z.shape
        return channels, height, width


def make(
    blocks: Iterable[NDArray[np.float32]],
    cut: Cut,
    noise: Noise,
    *,
    labels: Labels | None,
    label_names: tuple[str, ...],
    simulated: bool,
) -> Release:
    """The release of clean images at this cut: blocks of x0 [n, C, H, W] in [-1, 1], N images in all.

    A block at a time, because noise takes ten times the memory of grey levels. ``noise`` draws it; only the
    ``release`` command and the client node decide what it is, and they pass
    :func:`collafuse.core.noise.system_noise`. labels None means that they are not shared.
    """
    z = np.concatenate([(x0 + cut.sigma * noise(x0.shape)).astype(np.float16) for x0 in blocks])
    ids = np.frombuffer(secrets.token_bytes(16 * len(z)), dtype=np.uint8).reshape(len(z), 16)
    return Release(
        z=z,
        sigma_cut=cut.sigma,
        ids=ids,
        labels=labels,
        label_names=label_names if labels is not None else (),
        simulated=simulated,
    )


def to_bytes(release: Release) -> bytes:
    """The file's bytes."""
    tensors: dict[str, NDArray[np.generic]] = {"z": release.z, "ids": release.ids}
    if release.labels is not None:
        tensors["labels"] = release.labels
    fields = {
        "sigma_cut": release.sigma_cut,
        "label_names": list(release.label_names) if release.labels is not None else None,
        "simulated": release.simulated,
    }
    return tensorfile.to_bytes(KIND, VERSION, fields, tensors)


def read(path: Path) -> Release:
    """Read and check a release file. Raises FileFormatError."""
    return from_tensorfile(tensorfile.read(path, KIND, VERSION), str(path))


def from_bytes(data: bytes, source: str) -> Release:
    """As :func:`read`, from bytes; ``source`` names them in messages."""
    return from_tensorfile(tensorfile.from_bytes(data, KIND, VERSION, source=source), source)


def from_tensorfile(file: tensorfile.TensorFile, source: str) -> Release:
    """Check every field and tensor of a release. Raises FileFormatError."""
    fields, tensors = file.fields, dict(file.tensors)
    sigma_cut = fields.number("sigma_cut", above=SIGMA_MIN, at_most=SIGMA_MAX)
    z = tensorfile.expect_tensor(tensors, "z", ("float16",), 4, source)
    check_image_shape(z.shape, source)
    ids = tensorfile.expect_tensor(tensors, "ids", ("uint8",), 2, source)
    if ids.shape != (len(z), 16) or len(np.unique(ids, axis=0)) != len(ids):
        raise FileFormatError(f"{source}: expected {len(z)} different ids of 16 bytes, found shape {list(ids.shape)}.")
    labels, names = read_labels(fields, tensors, len(z), source)
    simulated = fields.boolean("simulated")
    fields.done()
    tensorfile.expect_nothing_else(tensors, source)
    return Release(z=z, sigma_cut=sigma_cut, ids=ids, labels=labels, label_names=names, simulated=simulated)


def check_image_shape(shape: tuple[int, ...], source: str) -> None:
    """Refuse an [N, C, H, W] outside the limits."""
    count, channels, height, width = shape
    if count < 1 or not 1 <= channels <= MAX_CHANNELS or not 1 <= min(height, width) <= max(height, width) <= MAX_SIDE:
        raise FileFormatError(
            f"{source} holds images of shape {list(shape)}; expected at least one image with 1 to {MAX_CHANNELS} "
            f"channels and sides from 1 to {MAX_SIDE}."
        )


def read_labels(
    fields: Fields, tensors: tensorfile.Tensors, count: int, source: str
) -> tuple[Labels | None, tuple[str, ...]]:
    """Labels [count, K] and their names from a file, or (None, ()) when it carries none."""
    if "labels" not in tensors:
        if fields.take("label_names") is not None:
            raise FileFormatError(f"{source} names labels but holds none; get the file anew from its maker.")
        return None, ()
    names = fields.names("label_names")
    labels = tensorfile.expect_tensor(tensors, "labels", ("uint8",), 2, source)
    if labels.shape != (count, len(names)) or labels.max(initial=0) > 1:
        raise FileFormatError(
            f"{source}: labels have shape {list(labels.shape)} and values up to {labels.max(initial=0)}, "
            f"expected [{count}, {len(names)}] with 0 and 1 only; get the file anew from its maker."
        )
    return labels, names
