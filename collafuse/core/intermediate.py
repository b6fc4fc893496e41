"""The intermediate: half-denoised images on their way from the server to a device.

File format (safetensors, ``kind`` "intermediate", version 1); over HTTP the same bytes:

    x                float32 or float16 [N, C, H, W]   images at level sigma
    labels           uint8 [N, K]                      what was asked for, when it was asked for
    previous_x0_hat  as x, optional                    the server's last estimate of the clean images, so that
                                                       a multistep sampler starts warm

    metadata: sigma, label_names (or null), guidance, sampler, nfe, server_model,
              previous_sigma (null without previous_x0_hat)

Limits as for a release. A device checks that sigma, shape and labels fit its bundle before it starts.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import tensorfile
from .conditioning import MAX_GUIDANCE, Labels
from .errors import FileFormatError
from .noise import SIGMA_MAX, SIGMA_MIN
from .release import check_image_shape, read_labels
from .samplers import STEPS, History

KIND = "intermediate"
VERSION = 1
MAX_NFE = 100_000


@dataclass(frozen=True, eq=False)
class Intermediate:
    """A batch at the cut.

    x: [N, C, H, W] float32 or float16 at level sigma. labels: [N, K] in the order of label_names, or None.
    guidance, sampler and nfe say how the server made it; server_model identifies its weights.
    """

    x: NDArray[Any]
    sigma: float
    labels: Labels | None
    label_names: tuple[str, ...]
    server_model: str
    sampler: str
    nfe: int
    guidance: float
    previous_x0_hat: NDArray[Any] | None = None
    previous_sigma: float | None = None

    def __len__(self) -> int:
        return len(self.x)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        _, channels, height, width = self.x.shape
        return channels, height, width

    def history(self, rows: slice) -> History | None:
        """The server's last step for these rows, for a multistep sampler; None when it did not travel."""
        if self.previous_x0_hat is None or self.previous_sigma is None:
            return None
        return History(self.previous_x0_hat[rows].astype(np.float32), self.previous_sigma)


def to_bytes(intermediate: Intermediate) -> bytes:
    """The file's bytes; equal intermediates give equal bytes."""
    tensors: dict[str, NDArray[Any]] = {"x": intermediate.x}
    if intermediate.labels is not None:
        tensors["labels"] = intermediate.labels
    if intermediate.previous_x0_hat is not None:
        tensors["previous_x0_hat"] = intermediate.previous_x0_hat
    fields = {
        "sigma": intermediate.sigma,
        "label_names": list(intermediate.label_names) if intermediate.labels is not None else None,
        "server_model": intermediate.server_model,
        "sampler": intermediate.sampler,
        "nfe": intermediate.nfe,
        "guidance": intermediate.guidance,
        "previous_sigma": intermediate.previous_sigma,
    }
    return tensorfile.to_bytes(KIND, VERSION, fields, tensors)


def read(path: Path) -> Intermediate:
    """Read and check an intermediates file. Raises FileFormatError."""
    return from_tensorfile(tensorfile.read(path, KIND, VERSION), str(path))


def from_tensorfile(file: tensorfile.TensorFile, source: str) -> Intermediate:
    """Check every field and tensor of an intermediate. Raises FileFormatError."""
    fields, tensors = file.fields, dict(file.tensors)
    sigma = fields.number("sigma", above=SIGMA_MIN, at_most=SIGMA_MAX)
    x = tensorfile.expect_tensor(tensors, "x", ("float32", "float16"), 4, source)
    check_image_shape(x.shape, source)
    labels, names = read_labels(fields, tensors, len(x), source)
    previous, previous_sigma = None, None
    if "previous_x0_hat" in tensors:
        previous = tensorfile.expect_tensor(tensors, "previous_x0_hat", (x.dtype.name,), 4, source)
        previous_sigma = fields.number("previous_sigma", above=sigma, at_most=SIGMA_MAX)
        if previous.shape != x.shape:
            raise FileFormatError(f"{source}: previous_x0_hat has shape {list(previous.shape)}, x {list(x.shape)}.")
    elif fields.take("previous_sigma") is not None:
        raise FileFormatError(f"{source} names previous_sigma but holds no previous_x0_hat; get the file anew.")
    intermediate = Intermediate(
        x=x,
        sigma=sigma,
        labels=labels,
        label_names=names,
        server_model=fields.text("server_model"),
        sampler=fields.text("sampler", one_of=STEPS),
        nfe=fields.integer("nfe", at_least=0, at_most=MAX_NFE),
        guidance=fields.number("guidance", at_least=0.0, at_most=MAX_GUIDANCE),
        previous_x0_hat=previous,
        previous_sigma=previous_sigma,
    )
    fields.done()
    tensorfile.expect_nothing_else(tensors, source)
    return intermediate
