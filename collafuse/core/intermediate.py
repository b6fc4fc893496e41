"""The intermediate: half-denoised images on their way from the server to a device.

File format (safetensors, ``kind`` "intermediate", version 1); over HTTP the same bytes:

    x                float32 or float16 [N, C, H, W]   images at level sigma
    labels           uint8 [N, K]                      what was asked for, when it was asked for
    text             float16 [N, T]                    the text that was asked for, as numbers, when it was asked for
    previous_x0_hat  as x, optional                    the server's last estimate of the clean images, so that
                                                       a multistep sampler starts warm

    metadata: sigma, label_names (or null), guidance, sampler, nfe, server_model,
              previous_sigma (above sigma by more than a millionth; null without previous_x0_hat),
              autoguidance where it is not 1, and with text its text_encoder

Limits as for a release. A device checks that sigma, shape, labels and text fit its bundle before it starts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from . import tensorfile, texts
from .conditioning import Labels, TextSpace
from .intermediateheader import Described, Header, read_header
from .release import check_labels
from .samplers import History
from .tensorstream import open_stream
from .texts import EncodedText

KIND = "intermediate"
VERSION = 1


@dataclass(frozen=True, eq=False)
class Intermediate:
    """A batch where a client takes over.

    x: [N, C, H, W] float32 or float16 at level sigma. labels: [N, K] in the order of label_names, or None.
    text: what each image was asked to show, or None. guidance, autoguidance, sampler and nfe say how the server made
    it; server_model identifies its weights.
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
    text: EncodedText | None = None
    autoguidance: float = 1.0

    def __len__(self) -> int:
        return len(self.x)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        _, channels, height, width = self.x.shape
        return channels, height, width

    def block(self, rows: slice) -> Intermediate:
        """These rows alone."""
        previous = self.previous_x0_hat
        return replace(
            self,
            x=self.x[rows],
            labels=None if self.labels is None else self.labels[rows],
            previous_x0_hat=None if previous is None else previous[rows],
            text=None if self.text is None else self.text.take(rows),
        )

    @property
    def header(self) -> Header:
        """What a file of it says of itself."""
        return Header(
            shape=tuple(self.x.shape),
            dtype=self.x.dtype.name,
            sigma=self.sigma,
            label_names=self.label_names,
            server_model=self.server_model,
            sampler=self.sampler,
            nfe=self.nfe,
            guidance=self.guidance,
            previous_sigma=self.previous_sigma,
            text_space=self.text_space,
            autoguidance=self.autoguidance,
        )

    @property
    def labelled(self) -> bool:
        """Whether it was made for labels, be they all absent."""
        return self.labels is not None

    @property
    def text_space(self) -> TextSpace | None:
        """What text it was made for; None where none was asked for."""
        return None if self.text is None else self.text.space

    @property
    def used_labels(self) -> tuple[str, ...]:
        """Names of the labels that at least one image carries."""
        if self.labels is None:
            return ()
        return tuple(name for i, name in enumerate(self.label_names) if self.labels[:, i].any())

    @property
    def digest(self) -> str:
        """The SHA-256 that a file of it carries."""
        fields, tensors = _contents(self)
        return tensorfile.content_digest({"kind": KIND, "version": VERSION, **fields}, tensors)

    def history(self, rows: slice) -> History | None:
        """The server's last step for these rows, for a multistep sampler; None when it did not travel."""
        if self.previous_x0_hat is None or self.previous_sigma is None:
            return None
        return History(self.previous_x0_hat[rows].astype(np.float32), self.previous_sigma)


class Source(Protocol):
    """Intermediates in memory or in a file, which can be taken in blocks."""

    @property
    def sigma(self) -> float: ...
    @property
    def server_model(self) -> str: ...
    @property
    def sampler(self) -> str: ...
    @property
    def nfe(self) -> int: ...
    @property
    def guidance(self) -> float: ...
    @property
    def autoguidance(self) -> float: ...
    @property
    def image_shape(self) -> tuple[int, int, int]: ...
    @property
    def labelled(self) -> bool: ...
    @property
    def text_space(self) -> TextSpace | None: ...
    @property
    def used_labels(self) -> tuple[str, ...]: ...
    @property
    def digest(self) -> str: ...
    def __len__(self) -> int: ...
    def block(self, rows: slice) -> Intermediate: ...


def to_bytes(intermediate: Intermediate) -> bytes:
    """The file's bytes; equal intermediates give equal bytes."""
    return tensorfile.to_bytes(KIND, VERSION, *_contents(intermediate))


def _contents(intermediate: Intermediate) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Metadata and tensors of a file."""
    tensors: dict[str, NDArray[Any]] = {"x": intermediate.x}
    if intermediate.labels is not None:
        tensors["labels"] = intermediate.labels
    if intermediate.previous_x0_hat is not None:
        tensors["previous_x0_hat"] = intermediate.previous_x0_hat
    if intermediate.text is not None:
        tensors["text"] = intermediate.text.rows
    return intermediate.header.fields(labelled=intermediate.labels is not None), tensors


def read(path: Path) -> Intermediate:
    """Read and check an intermediates file. Raises FileFormatError."""
    return from_tensorfile(tensorfile.read(path, KIND, VERSION), str(path))


def from_tensorfile(file: tensorfile.TensorFile, source: str) -> Intermediate:
    """Check every field and tensor of an intermediate. Raises FileFormatError."""
    header = read_header(file.fields, file.tensors, source)
    for name, tensor in file.tensors.items():
        check_values(name, tensor, source)
    return _made(header, file.tensors)


def check_values(name: str, tensor: NDArray[Any], source: str) -> None:
    """Check what a tensor of an intermediate, or a block of one, holds. Raises FileFormatError."""
    if name == "labels":
        check_labels(tensor, source)
    elif name == "text":
        texts.check(tensor, source)
    else:
        tensorfile.check_finite(tensor, name, source)


def _made(header: Header, tensors: Mapping[str, NDArray[Any]]) -> Intermediate:
    return Intermediate(
        x=tensors["x"],
        sigma=header.sigma,
        labels=tensors.get("labels"),
        label_names=header.label_names,
        server_model=header.server_model,
        sampler=header.sampler,
        nfe=header.nfe,
        guidance=header.guidance,
        previous_x0_hat=tensors.get("previous_x0_hat"),
        previous_sigma=header.previous_sigma,
        text=texts.found_in(tensors, header.text_space),
        autoguidance=header.autoguidance,
    )


class IntermediateFile(Described):
    """An intermediates file of any size, checked whole and read in blocks. Close it, or use ``with``.

    Raises FileFormatError when the file is damaged; see :mod:`tensorstream` for what happens when it changes while
    it is open.
    """

    def __init__(self, path: Path) -> None:
        self._stream = open_stream(path, KIND, VERSION)
        try:
            self.header = read_header(self._stream.fields, self._stream.layouts, self._stream.source)
            counts = np.zeros(len(self.header.label_names), dtype=np.int64)
            self._stream.verify(lambda name, block: self._check(name, block, counts))
        except BaseException:
            self.close()
            raise
        has_labels = "labels" in self._stream.layouts
        self.label_counts = dict(zip(self.header.label_names, counts.tolist(), strict=True)) if has_labels else None

    def _check(self, name: str, block: NDArray[Any], counts: NDArray[np.int64]) -> None:
        check_values(name, block, self._stream.source)
        if name == "labels":
            counts += block.sum(axis=0, dtype=np.int64)

    def __enter__(self) -> IntermediateFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._stream.close()

    def let_go(self) -> None:
        """Forget the blocks that are held and close the file until it is read again."""
        self._stream.let_go()

    def blocks(self, name: str) -> Iterator[NDArray[Any]]:
        """One tensor from its first row to its last, in blocks. Raises FileFormatError as :meth:`block` does."""
        layout = self._stream.layouts[name]
        for start in range(0, layout.rows, layout.block_rows):
            yield self._stream.rows(name, start, min(start + layout.block_rows, layout.rows))

    @property
    def layouts(self) -> Mapping[str, tensorfile.HasLayout]:
        """Type and shape of each tensor."""
        return self._stream.layouts

    def block(self, rows: slice) -> Intermediate:
        """These rows. Raises FileFormatError when the file changed since it was opened."""
        start, stop, _ = rows.indices(len(self))
        return _made(self.header, {name: self._stream.rows(name, start, stop) for name in self._stream.layouts})

    @property
    def digest(self) -> str:
        """The SHA-256 that the file carries."""
        return self._stream.digest
