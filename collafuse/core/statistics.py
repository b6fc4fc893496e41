"""The statistics release: counts, means and covariances of a site's images, in place of the images.

File format (safetensors, ``kind`` "statistics", version 1):

    counts       float64 [L]               images of each label
    means        float32 [L, D]            of their coefficients
    covariances  float32 [L, D (D + 1)/2]  of their coefficients: the upper triangle, row by row

    metadata: image_shape [C, H, W], coefficients (per channel), label_names (null: the site keeps its labels, and
              L = 1 counts all of its images), epsilon, delta and clip (all null: no noise), simulated

The D = C * coefficients numbers of an image are its lowest frequencies in the orthonormal two-dimensional cosine basis
of ``moments``, channel by channel; with coefficients = H * W they are the image, turned. With epsilon and delta the
numbers carry noise that makes them (epsilon, delta)-private for whoever replaces one image, whose values had a root
mean square of at most ``clip``; a covariance may then have eigenvalues below 0, which the server drops. Without them
the numbers are exact, and each label has at least 50 images.

MUST NOT hold: images in any form, or a digest, an id or a count of anything else. Limits: L in 1..4096, D <= 1024, C in
1..4, H and W in 1..1024. ``simulated`` as in a release.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from . import tensorfile
from .errors import ConfigError, FileFormatError
from .mechanism import Budget
from .metadata import Fields
from .pictures import MAX_CHANNELS, MAX_SIDE

KIND = "statistics"
VERSION = 1
MAX_NUMBERS = 1024
"""The largest D."""
MIN_IMAGES = 50
"""Of a label, where no noise hides the single image."""


def most_coefficients(image_shape: Sequence[int]) -> int:
    """Of each channel, for images of shape [C, H, W]: as many as a channel has values, and D at most MAX_NUMBERS."""
    channels, height, width = image_shape
    return min(height * width, MAX_NUMBERS // channels)


@dataclass(frozen=True)
class Statement:
    """What the numbers are of: the images' shape [C, H, W], coefficients per channel, and the noise on them.

    clip: the largest root mean square of an image's values that counted in full; None without a budget.
    """

    image_shape: tuple[int, int, int]
    coefficients: int
    budget: Budget | None = None
    clip: float | None = None

    @property
    def dimension(self) -> int:
        """D, the numbers of one image."""
        return self.image_shape[0] * self.coefficients


@dataclass(frozen=True, eq=False)
class Statistics:
    """One site's statistics. counts: float64 [L]; means: float32 [L, D]; covariances: float32 [L, D (D + 1)/2].

    label_names: of the L rows; None when the site keeps its labels, and L is 1.
    """

    about: Statement
    counts: NDArray[np.float64]
    means: NDArray[np.float32]
    covariances: NDArray[np.float32]
    label_names: tuple[str, ...] | None
    simulated: bool

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.about.image_shape


def to_bytes(statistics: Statistics) -> bytes:
    """The file's bytes."""
    about, names = statistics.about, statistics.label_names
    fields = {
        "image_shape": list(about.image_shape),
        "coefficients": about.coefficients,
        "label_names": None if names is None else list(names),
        "epsilon": None if about.budget is None else about.budget.epsilon,
        "delta": None if about.budget is None else about.budget.delta,
        "clip": about.clip,
        "simulated": statistics.simulated,
    }
    tensors = {name: getattr(statistics, name) for name in ("counts", "means", "covariances")}
    return tensorfile.to_bytes(KIND, VERSION, fields, tensors)


def read(path: Path) -> Statistics:
    """Read and check a file of statistics. Raises FileFormatError."""
    return from_tensorfile(tensorfile.read(path, KIND, VERSION), str(path))


def from_bytes(data: bytes, source: str) -> Statistics:
    """As :func:`read`, from bytes; ``source`` names them in messages."""
    return from_tensorfile(tensorfile.from_bytes(data, KIND, VERSION, source=source), source)


def from_tensorfile(file: tensorfile.TensorFile, source: str) -> Statistics:
    """Check every field and tensor of a file of statistics. Raises FileFormatError."""
    fields, left = file.fields, dict(file.tensors)
    about = _statement(fields, source)
    kept = fields.take("label_names")
    names = None if kept is None else Fields({"label_names": kept}, source).names("label_names")
    simulated = fields.boolean("simulated")
    fields.done()
    rows = 1 if names is None else len(names)
    counts = tensorfile.expect_layout(left, "counts", ("float64",), 1, source)
    means = tensorfile.expect_layout(left, "means", ("float32",), 2, source)
    covariances = tensorfile.expect_layout(left, "covariances", ("float32",), 2, source)
    tensorfile.expect_nothing_else(left, source)
    size = about.dimension
    expected = ((rows,), (rows, size), (rows, size * (size + 1) // 2))
    found = (counts.shape, means.shape, covariances.shape)
    if rows < 1 or found != expected:
        raise FileFormatError(
            f"{source}: counts, means and covariances have the shapes {', '.join(str(list(s)) for s in found)}; for "
            f"{rows} labels and {size} coefficients expected {', '.join(str(list(s)) for s in expected)}."
        )
    for name, array in (("counts", counts), ("means", means), ("covariances", covariances)):
        tensorfile.check_finite(array, name, source)
    if counts.min() < MIN_IMAGES:
        raise FileFormatError(
            f"{source}: a label counts {counts.min():g} images, expected at least {MIN_IMAGES}; ask its maker for one "
            "without that label."
        )
    return Statistics(about, counts, means, covariances, names, simulated)


def read_basis(fields: Fields, source: str) -> tuple[tuple[int, int, int], int]:
    """The image shape and coefficients that a file's metadata states. Raises FileFormatError."""
    channels, height, width = fields.integers("image_shape", length=3, at_least=1, at_most=MAX_SIDE)
    if channels > MAX_CHANNELS:
        raise FileFormatError(f"{source}: images with {channels} channels; at most {MAX_CHANNELS} are possible.")
    shape = channels, height, width
    return shape, fields.integer("coefficients", at_least=1, at_most=most_coefficients(shape))


def _statement(fields: Fields, source: str) -> Statement:
    image_shape, coefficients = read_basis(fields, source)
    private = {name: fields.take(name) for name in ("epsilon", "delta", "clip")}
    if all(value is None for value in private.values()):
        return Statement(image_shape, coefficients)
    given = Fields(private, source)
    epsilon, delta = (given.number(name, above=0) for name in ("epsilon", "delta"))
    clip = given.number("clip", above=0, at_most=1)
    try:
        return Statement(image_shape, coefficients, Budget(epsilon, delta), clip)
    except ConfigError as error:
        raise FileFormatError(f"{source} states {error}") from error
