"""The release: the only thing of an image that ever leaves its site, once.

File format (safetensors, ``kind`` "release", version 1):

    z        float16 [N, C, H, W]   x0 + sigma_cut * n, with n drawn once per image
    ids      uint8   [N, 16]        random, so that server and site can speak about one image
    labels   uint8   [N, K]         multi-hot, only when the site shares them
    text     float16 [N, T]         each image's caption as numbers (zeros: it has none), only when the site shares it

    metadata: sigma_cut, label_names (null when labels are not shared), simulated, and with text its text_encoder

Rows stand in a random order, unless simulated. MUST NOT hold: clean images, the noise or a seed, file names or
their order, site names, EXIF, or anything else that is derived from x0. Limits: N >= 1, C in 1..4, H and W in
1..1024, K <= 4096, T <= 4096. ``simulated`` marks releases that ``train`` made inside one process;
``train-server`` and ``serve`` refuse them without a flag.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from . import rows, tensorfile, texts
from .conditioning import Labels, TextSpace
from .errors import FileFormatError
from .metadata import Fields
from .noise import SIGMA_MAX, SIGMA_MIN, Cut, Noise
from .pictures import MAX_CHANNELS, MAX_SIDE
from .tensorstream import open_stream
from .texts import EncodedText

KIND = "release"
VERSION = 1
ID_BYTES = 16


@dataclass(frozen=True, eq=False)
class Release:
    """Images of one site, noised once up to its cut.

    z: [N, C, H, W] float16 at level sigma_cut, as rows of a file where memory would not hold them. labels: [N, K] in
    the order of label_names, or None when the site does not share them. ids: [N, 16] random bytes. text: of each image,
    or None when the site does not share it.
    """

    z: NDArray[np.float16] | rows.FileRows
    sigma_cut: float
    ids: NDArray[np.uint8]
    labels: Labels | None
    label_names: tuple[str, ...]
    simulated: bool
    text: EncodedText | None = None

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
    text: EncodedText | None = None,
    scratch: IO[bytes] | None = None,
) -> Release:
    """The release of clean images at this cut: blocks of x0 [n, C, H, W] in [-1, 1], N images in all.

    A block at a time, because noise takes ten times the memory of grey levels. ``noise`` draws it; only the
    ``release`` command and the client node decide what it is, and they pass
    :func:`collafuse.core.noise.system_noise`. labels or text None means that they are not shared. scratch: an
    empty file that takes z where memory would not.
    """
    drawn = ((x0 + cut.sigma * noise(x0.shape)).astype(np.float16) for x0 in blocks)
    z = np.concatenate(list(drawn)) if scratch is None else _spilled(drawn, scratch)
    ids = np.frombuffer(secrets.token_bytes(ID_BYTES * len(z)), dtype=np.uint8).reshape(len(z), ID_BYTES)
    return Release(
        z=z,
        sigma_cut=cut.sigma,
        ids=ids,
        labels=labels,
        label_names=label_names if labels is not None else (),
        simulated=simulated,
        text=text,
    )


def _spilled(blocks: Iterable[NDArray[np.float16]], scratch: IO[bytes]) -> rows.FileRows:
    count, row_shape = 0, tuple[int, ...]()
    for block in blocks:
        scratch.write(block.tobytes())
        count, row_shape = count + len(block), block.shape[1:]
    scratch.flush()
    return rows.FileRows(scratch, np.dtype(np.float16), (count, *row_shape), source="the scratch file")


def to_bytes(release: Release) -> bytes:
    """The file's bytes."""
    return b"".join(pieces(release))


def pieces(release: Release) -> Iterator[bytes | memoryview]:
    """The file's bytes, piece by piece."""
    tensors: dict[str, rows.Rows] = {"z": release.z, "ids": release.ids}
    if release.labels is not None:
        tensors["labels"] = release.labels
    if release.text is not None:
        tensors["text"] = release.text.rows
    fields = {
        "sigma_cut": release.sigma_cut,
        "label_names": list(release.label_names) if release.labels is not None else None,
        "simulated": release.simulated,
        **texts.encoder_field(None if release.text is None else release.text.space),
    }
    return tensorfile.pieces(KIND, VERSION, fields, tensors)


def read(path: Path, *, in_memory: bool | None = None) -> Release:
    """Read and check a release file. Raises FileFormatError.

    in_memory: whether z is held or stays in the file; by default that depends on the file's size.
    """
    if in_memory is None:
        in_memory = not path.is_file() or path.stat().st_size <= rows.IN_MEMORY_BYTES
    return from_tensorfile(tensorfile.read(path, KIND, VERSION), str(path)) if in_memory else _left_in_file(path)


def _left_in_file(path: Path) -> Release:
    """A release that was checked block by block and of which all but z is held."""
    with open_stream(path, KIND, VERSION) as stream:
        source = stream.source
        header = read_header(stream.fields, stream.layouts, source)

        def check(name: str, block: NDArray[Any]) -> None:
            if name == "z":
                tensorfile.check_finite(block, name, source)
            else:
                check_values(name, block, source)

        stream.verify(check)
        z = stream.left("z")
        ids = stream.left("ids")[:]
        check_ids(ids, source)
        others = stream.layouts.keys() - {"z", "ids"}
        held: dict[str, NDArray[Any]] = {name: stream.left(name)[:] for name in others}
        return _made(header, z, ids, held)


def from_bytes(data: bytes, source: str) -> Release:
    """As :func:`read`, from bytes; ``source`` names them in messages."""
    return from_tensorfile(tensorfile.from_bytes(data, KIND, VERSION, source=source), source)


def from_tensorfile(file: tensorfile.TensorFile, source: str) -> Release:
    """Check every field and tensor of a release. Raises FileFormatError."""
    header = read_header(file.fields, file.tensors, source)
    z, ids = file.tensors["z"], file.tensors["ids"]
    tensorfile.check_finite(z, "z", source)
    check_ids(ids, source)
    for name, tensor in file.tensors.items():
        check_values(name, tensor, source)
    return _made(header, z, ids, file.tensors)


def _made(
    header: Header, z: NDArray[np.float16] | rows.FileRows, ids: NDArray[np.uint8], held: Mapping[str, NDArray[Any]]
) -> Release:
    text = texts.found_in(held, header.text)
    return Release(z, header.sigma_cut, ids, held.get("labels"), header.label_names, header.simulated, text)


@dataclass(frozen=True)
class Header:
    """What a release says of itself, before its tensors are read."""

    sigma_cut: float
    label_names: tuple[str, ...]
    simulated: bool
    text: TextSpace | None = None


def read_header(fields: Fields, tensors: Mapping[str, tensorfile.HasLayout], source: str) -> Header:
    """Check all of a release but the values in its tensors. Raises FileFormatError."""
    left = dict(tensors)
    sigma_cut = fields.number("sigma_cut", above=SIGMA_MIN, at_most=SIGMA_MAX)
    z = tensorfile.expect_layout(left, "z", ("float16",), 4, source)
    check_image_shape(z.shape, source)
    ids = tensorfile.expect_layout(left, "ids", ("uint8",), 2, source)
    if ids.shape != (z.shape[0], ID_BYTES):
        raise FileFormatError(
            f"{source}: expected {z.shape[0]} different ids of {ID_BYTES} bytes, found shape {list(ids.shape)}."
        )
    names = read_label_names(fields, left, z.shape[0], source)
    simulated = fields.boolean("simulated")
    text = texts.read_layout(fields, left, z.shape[0], source)
    fields.done()
    tensorfile.expect_nothing_else(left, source)
    return Header(sigma_cut, names, simulated, text)


def check_ids(ids: NDArray[np.uint8], source: str) -> None:
    """Refuse ids [N, ID_BYTES] of which two are equal."""
    if len(np.unique(ids, axis=0)) != len(ids):
        raise FileFormatError(f"{source}: expected {len(ids)} different ids of {ID_BYTES} bytes, some are equal.")


def check_image_shape(shape: tuple[int, ...], source: str) -> None:
    """Refuse an [N, C, H, W] outside the limits."""
    count, channels, height, width = shape
    if count < 1 or not 1 <= channels <= MAX_CHANNELS or not 1 <= min(height, width) <= max(height, width) <= MAX_SIDE:
        raise FileFormatError(
            f"{source} holds images of shape {list(shape)}; expected at least one image with 1 to {MAX_CHANNELS} "
            f"channels and sides from 1 to {MAX_SIDE}."
        )


def read_label_names(
    fields: Fields, tensors: dict[str, tensorfile.HasLayout], count: int, source: str
) -> tuple[str, ...]:
    """Names of the labels that a file carries, whose layout is checked and taken; () when it carries none."""
    if "labels" not in tensors:
        if fields.take("label_names") is not None:
            raise FileFormatError(f"{source} names labels but holds none; get the file anew from its maker.")
        return ()
    names = fields.names("label_names")
    labels = tensorfile.expect_layout(tensors, "labels", ("uint8",), 2, source)
    if labels.shape != (count, len(names)):
        raise FileFormatError(
            f"{source}: labels have shape {list(labels.shape)}, expected {[count, len(names)]}; get the file anew "
            "from its maker."
        )
    return names


def check_values(name: str, tensor: NDArray[Any], source: str) -> None:
    """Check labels or text, or a block of them; other tensors are for the caller. Raises FileFormatError."""
    if name == "labels":
        check_labels(tensor, source)
    elif name == "text":
        texts.check(tensor, source)


def check_labels(labels: NDArray[Any], source: str) -> None:
    """Refuse labels, or a block of them, that are not 0 or 1."""
    if (largest := labels.max(initial=0)) > 1:
        raise FileFormatError(
            f"{source}: labels have values up to {largest}, expected labels with 0 and 1 only; get the file anew "
            "from its maker."
        )
