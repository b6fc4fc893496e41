"""What a statistics server learned: one Gaussian per label, whose denoiser is known in closed form.

    D(x, sigma) = mu + C (C + sigma^2 I)^-1 (x - mu),    x at level sigma ~ N(mu, C + sigma^2 I)

C is described in the lowest D frequencies of a cosine basis; what lies above them is 0.

File format (safetensors, ``kind`` "gaussians", version 1), in place of a network's weights:

    counts        float64 [K + 1]         images behind each Gaussian: of each label, and of all of them together
    means         float32 [K + 1, D]      of their coefficients
    eigenvalues   float32 [K + 1, D]      of their covariances, 0 or above
    eigenvectors  float32 [K + 1, D, D]   in the columns

    metadata: image_shape, coefficients (per channel), label_names (K)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..core import tensorfile
from ..core.conditioning import Conditions, ConditionSpace
from ..core.errors import FileFormatError
from ..core.moments import Basis, Gaussian
from ..core.statistics import read_basis
from .weights import ID_DIGITS

KIND = "gaussians"
VERSION = 1
ORTHONORMAL = 1e-3
"""How far eigenvectors in a file may be from being orthonormal."""


class GaussianDenoiser(nn.Module):
    """D(x [B, C, H, W], sigma [B] or a float, conditions [B, K + 1]) -> x0_hat [B, C, H, W], float32, in closed form.

    A condition names one label, or none with its last entry: no other ones are known.
    """

    def __init__(self, basis: Basis, gaussians: Sequence[Gaussian]) -> None:
        super().__init__()
        self.basis = basis
        self.image_shape = basis.image_shape
        self.gaussians = tuple(gaussians)
        self.condition_width = len(gaussians)
        """Numbers in a condition."""
        self.matrix: Tensor
        self.means: Tensor
        self.eigenvalues: Tensor
        self.eigenvectors: Tensor
        self.register_buffer("matrix", _float32(basis.matrix))
        self.register_buffer("means", _float32(np.stack([one.mean for one in gaussians])))
        self.register_buffer("eigenvalues", _float32(np.stack([one.eigenvalues for one in gaussians])))
        self.register_buffer("eigenvectors", _float32(np.stack([one.eigenvectors for one in gaussians])))

    def forward(self, x: Tensor, sigma: Any, conditions: Tensor) -> Tensor:
        count, channels = x.shape[:2]
        sigmas = torch.as_tensor(sigma, dtype=torch.float32, device=x.device).expand(count)
        y = (x.reshape(count, channels, -1) @ self.matrix.T).reshape(count, -1)
        estimate = torch.empty_like(y)
        which = conditions.argmax(dim=1)
        for label in which.unique():
            rows = which == label
            mean, values, vectors = self.means[label], self.eigenvalues[label], self.eigenvectors[label]
            along = (y[rows] - mean) @ vectors
            estimate[rows] = mean + (along * (values / (values + sigmas[rows, None].square()))) @ vectors.T
        return (estimate.reshape(count, channels, -1) @ self.matrix).reshape(x.shape)

    def draw(self, noise: NDArray[np.float32], sigma: float, conditions: Conditions) -> NDArray[np.float32]:
        """Draws from N(mu, C + sigma^2 I) [B, C, H, W], made of standard normal noise of that shape."""
        along = self.basis.coefficients(noise)
        which = conditions.argmax(axis=1)
        added = np.empty_like(along)
        for label in np.unique(which):
            one, rows = self.gaussians[label], which == label
            grown = np.sqrt(one.eigenvalues + sigma**2) - sigma
            added[rows] = one.mean + (along[rows] @ one.eigenvectors * grown) @ one.eigenvectors.T
        return (sigma * noise + self.basis.images(added)).astype(np.float32)


def _float32(array: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(array.astype(np.float32))


@dataclass(frozen=True, eq=False)
class TrainedGaussians:
    """A statistics server's model. ``id`` identifies its numbers (from their SHA-256).

    label_names: of all but the last Gaussian, which is that of all images together.
    """

    denoiser: GaussianDenoiser
    label_names: tuple[str, ...]
    id: str = ""
    mixes_labels: bool = False
    """A Gaussian of two labels at once was not released."""

    @property
    def space(self) -> ConditionSpace:
        """What its conditions mean: statistics say nothing of text."""
        return ConditionSpace(self.label_names)

    def levels(self, handover: float, num_steps: int) -> list[float]:
        """Only the level where the client takes over: no step is needed, however many are configured."""
        return [handover]

    def begin(self, noise: NDArray[np.float32], sigma: float, conditions: Conditions) -> NDArray[np.float32]:
        """Images at a level, of standard normal noise [N, C, H, W]."""
        return self.denoiser.draw(noise, sigma, conditions)


def save(path: Path, model: TrainedGaussians) -> str:
    """Write the Gaussians in one act, over older ones; returns their id."""
    denoiser = model.denoiser
    fields = {
        "image_shape": list(denoiser.image_shape),
        "coefficients": len(denoiser.basis.matrix),
        "label_names": list(model.label_names),
    }
    arrays = {
        "counts": np.array([one.count for one in denoiser.gaussians]),
        "means": np.stack([one.mean for one in denoiser.gaussians]).astype(np.float32),
        "eigenvalues": np.stack([one.eigenvalues for one in denoiser.gaussians]).astype(np.float32),
        "eigenvectors": np.stack([one.eigenvectors for one in denoiser.gaussians]).astype(np.float32),
    }
    tensorfile.write(path, KIND, VERSION, fields, arrays, overwrite=True)
    return tensorfile.file_digest(path)[:ID_DIGITS]


def load(path: Path) -> TrainedGaussians:
    """Read and check a statistics server's model. Raises FileFormatError."""
    file = tensorfile.read(path, KIND, VERSION)
    fields, source = file.fields, str(path)
    image_shape, coefficients = read_basis(fields, source)
    names = fields.names("label_names")
    fields.done()
    gaussians = _gaussians(file.tensors, len(names) + 1, image_shape[0] * coefficients, source)
    denoiser = GaussianDenoiser(Basis(image_shape, coefficients), gaussians)
    return TrainedGaussians(denoiser.eval(), names, tensorfile.file_digest(path)[:ID_DIGITS])


def _gaussians(tensors: tensorfile.Tensors, rows: int, size: int, source: str) -> list[Gaussian]:
    """As many checked Gaussians of this many coefficients."""
    left = dict(tensors)
    shapes = {"means": (rows, size), "eigenvalues": (rows, size), "eigenvectors": (rows, size, size)}
    counts = tensorfile.expect_layout(left, "counts", ("float64",), 1, source)
    arrays = [tensorfile.expect_layout(left, name, ("float32",), len(shape), source) for name, shape in shapes.items()]
    tensorfile.expect_nothing_else(left, source)
    if [counts.shape, *(array.shape for array in arrays)] != [(rows,), *shapes.values()]:
        raise FileFormatError(f"{source} holds tensors of other sizes than its labels have; get the file anew.")
    for name, array in zip(("counts", *shapes), (counts, *arrays), strict=True):
        tensorfile.check_finite(array, name, source)
    means, eigenvalues, eigenvectors = (array.astype(np.float64) for array in arrays)
    apart = np.abs(eigenvectors.transpose(0, 2, 1) @ eigenvectors - np.eye(size)).max()
    if eigenvalues.min() < 0 or apart > ORTHONORMAL:
        raise FileFormatError(
            f"{source} holds no covariances: an eigenvalue is below 0, or vectors are not orthonormal; get it anew."
        )
    return [Gaussian(float(counts[i]), means[i], eigenvalues[i], eigenvectors[i]) for i in range(rows)]
