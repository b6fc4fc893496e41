"""What intermediates say of themselves: all that a device has to know before it reads an image.

The format is described in :mod:`.intermediate`; here is the header alone, written, read and checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from . import tensorfile, texts
from .conditioning import MAX_GUIDANCE, TextSpace
from .errors import FileFormatError
from .metadata import Fields
from .noise import SIGMA_MAX, SIGMA_MIN
from .release import check_image_shape, read_label_names
from .samplers import SERVER_SAMPLERS

MAX_NFE = 100_000
LEAST_STEP = 1e-6
"""How far, as a share of sigma, previous_sigma lies above it; a multistep sampler divides by the step between."""


@dataclass(frozen=True)
class Header:
    """What an intermediate says of itself, before its tensors are read. shape: (N, C, H, W)."""

    shape: tuple[int, ...]
    dtype: str
    sigma: float
    label_names: tuple[str, ...]
    server_model: str
    sampler: str
    nfe: int
    guidance: float
    previous_sigma: float | None
    text_space: TextSpace | None = None
    autoguidance: float = 1.0

    def fields(self, *, labelled: bool) -> dict[str, Any]:
        """The metadata of a file."""
        return {
            "sigma": self.sigma,
            "label_names": list(self.label_names) if labelled else None,
            "server_model": self.server_model,
            "sampler": self.sampler,
            "nfe": self.nfe,
            "guidance": self.guidance,
            "previous_sigma": self.previous_sigma,
            # Left out where it is off, for readers from before there was any.
            **({} if self.autoguidance == 1.0 else {"autoguidance": self.autoguidance}),
            **texts.encoder_field(self.text_space),
        }


def read_header(fields: Fields, tensors: Mapping[str, tensorfile.HasLayout], source: str) -> Header:
    """Check all of an intermediate but the values in its tensors. Raises FileFormatError."""
    left = dict(tensors)
    sigma = fields.number("sigma", above=SIGMA_MIN, at_most=SIGMA_MAX)
    x = tensorfile.expect_layout(left, "x", ("float32", "float16"), 4, source)
    check_image_shape(x.shape, source)
    names = read_label_names(fields, left, x.shape[0], source)
    previous_sigma = None
    if "previous_x0_hat" in left:
        previous = tensorfile.expect_layout(left, "previous_x0_hat", (x.dtype.name,), 4, source)
        previous_sigma = fields.number("previous_sigma", above=sigma * (1 + LEAST_STEP), at_most=SIGMA_MAX)
        if previous.shape != x.shape:
            raise FileFormatError(f"{source}: previous_x0_hat has shape {list(previous.shape)}, x {list(x.shape)}.")
    elif fields.take("previous_sigma") is not None:
        raise FileFormatError(f"{source} names previous_sigma but holds no previous_x0_hat; get the file anew.")
    autoguidance = 1.0
    if fields.holds("autoguidance"):
        autoguidance = fields.number("autoguidance", at_least=1.0, at_most=MAX_GUIDANCE)
    header = Header(
        shape=tuple(x.shape),
        dtype=x.dtype.name,
        sigma=sigma,
        label_names=names,
        server_model=fields.text("server_model"),
        sampler=fields.text("sampler", one_of=SERVER_SAMPLERS),
        nfe=fields.integer("nfe", at_least=0, at_most=MAX_NFE),
        guidance=fields.number("guidance", at_least=0.0, at_most=MAX_GUIDANCE),
        previous_sigma=previous_sigma,
        text_space=texts.read_layout(fields, left, x.shape[0], source),
        autoguidance=autoguidance,
    )
    fields.done()
    tensorfile.expect_nothing_else(left, source)
    return header


class Described:
    """What the header of intermediates says, of those that are not in memory.

    ``label_counts``: how many images carry each label, or None when they carry none.
    """

    header: Header
    label_counts: dict[str, int] | None

    def __len__(self) -> int:
        return self.header.shape[0]

    @property
    def sigma(self) -> float:
        """The level it stands at."""
        return self.header.sigma

    @property
    def server_model(self) -> str:
        """Identifies the server's weights."""
        return self.header.server_model

    @property
    def sampler(self) -> str:
        """The server's sampler."""
        return self.header.sampler

    @property
    def nfe(self) -> int:
        """The server's network evaluations per image."""
        return self.header.nfe

    @property
    def guidance(self) -> float:
        """The server's guidance weight."""
        return self.header.guidance

    @property
    def autoguidance(self) -> float:
        """The server's weight of guidance by itself; 1 is none."""
        return self.header.autoguidance

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        _, channels, height, width = self.header.shape
        return channels, height, width

    @property
    def labelled(self) -> bool:
        """Whether they were made for labels, be they all absent."""
        return self.label_counts is not None

    @property
    def text_space(self) -> TextSpace | None:
        """What text they were made for; None where none was asked for."""
        return self.header.text_space

    @property
    def used_labels(self) -> tuple[str, ...]:
        """Names of the labels that at least one image carries."""
        return tuple(name for name, count in (self.label_counts or {}).items() if count)
