"""The one careful reader and writer of tensors on disk, under releases, intermediates and checkpoints.

A file is safetensors with one metadata entry, ``collafuse``: a JSON object that holds ``kind``, ``version``,
the fields of that kind, and ``sha256`` over everything else. Whoever reads it says which kind, tensors and
limits they expect; anything else is refused with FileFormatError before memory is spent on it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from .atomic import atomic_file
from .errors import FileFormatError, first_line
from .metadata import Fields, parse_json, shown, shown_names
from .rows import Rows, blocks_of

MAX_HEADER_BYTES = 1 << 20
"""The largest safetensors header that is read (the format itself allows 100 MB)."""
MAX_FILE_BYTES = 64 << 30
"""The largest file that is opened: 64 GiB is 20 million images of 32x32x3 in half precision."""

WRITTEN_TYPES = "bool uint8 int8 int16 uint16 float16 int32 uint32 float32 float64 int64 uint64".split()
"""NumPy's types in the order in which safetensors writes them, from the last to the first."""

Tensors = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class TensorFile:
    """What a checked file holds: its kind, the fields of its metadata, and its tensors."""

    fields: Fields
    tensors: Tensors


def begin_digest(metadata: Mapping[str, Any]) -> hashlib._Hash:
    """A SHA-256 of the metadata (without the digest); every tensor in the order of its name follows."""
    return hashlib.sha256(json.dumps(metadata, sort_keys=True, ensure_ascii=True).encode())


def digest_tensor_name(digest: hashlib._Hash, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    """Add a tensor's name, type and shape; its bytes follow. A number without axes counts as one row."""
    digest.update(f"\0{name}\0{dtype.str}\0{shape or (1,)}\0".encode())


def content_digest(metadata: Mapping[str, Any], tensors: Mapping[str, Rows]) -> str:
    """SHA-256 over the metadata (without the digest) and every tensor's name, type, shape and bytes."""
    digest = begin_digest(metadata)
    for name in sorted(tensors):
        digest_tensor_name(digest, name, tensors[name].dtype, tensors[name].shape)
        for block in _bytes_of(tensors[name]):
            digest.update(block)
    return digest.hexdigest()


def to_bytes(kind: str, version: int, fields: Mapping[str, Any], tensors: Mapping[str, Rows]) -> bytes:
    """The bytes of a tensor file; equal input gives equal bytes."""
    return b"".join(pieces(kind, version, fields, tensors))


def pieces(
    kind: str, version: int, fields: Mapping[str, Any], tensors: Mapping[str, Rows]
) -> Iterator[bytes | memoryview]:
    """The bytes of a tensor file piece by piece, so that tensors that lie in a file need not fit in memory.

    The header and the order of the tensors are those that safetensors itself writes.
    """
    metadata = {"kind": kind, "version": version, **fields}
    metadata["sha256"] = content_digest(metadata, tensors)
    header: dict[str, Any] = {
        "__metadata__": {"collafuse": json.dumps(metadata, sort_keys=True, ensure_ascii=True)},
    }
    ordered = sorted(tensors, key=lambda name: (-WRITTEN_TYPES.index(tensors[name].dtype.name), name))
    end = 0
    for name in ordered:
        tensor = tensors[name]
        begin, end = end, end + math.prod(tensor.shape) * tensor.dtype.itemsize
        kind_of_number = safetensors_name(tensor.dtype)
        header[name] = {"dtype": kind_of_number, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in ordered:
        yield from _bytes_of(tensors[name])


def safetensors_name(dtype: np.dtype[Any]) -> str:
    """What safetensors calls a type of numbers: F16 for float16."""
    return "BOOL" if dtype.kind == "b" else f"{dtype.kind.upper()}{8 * dtype.itemsize}"


def _bytes_of(tensor: Rows) -> Iterator[memoryview]:
    """A tensor's bytes, row after row; all at once when they are in memory."""
    if isinstance(tensor, np.ndarray | np.generic):
        if tensor.size:
            yield np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data
        return
    for block in blocks_of(tensor):
        yield tensor[block].reshape(-1).view(np.uint8).data


def write(
    path: Path,
    kind: str,
    version: int,
    fields: Mapping[str, Any],
    tensors: Mapping[str, NDArray[Any]],
    *,
    overwrite: bool = False,
) -> None:
    """Write a tensor file in one act. Raises OutputExistsError or StorageError; see ``atomic``."""
    with atomic_file(path, overwrite=overwrite) as file:
        file.writelines(pieces(kind, version, fields, tensors))


def read(path: Path, kind: str, version: int) -> TensorFile:
    """Read and check a tensor file of this kind and version.

    Raises FileFormatError when the file is missing, too large, damaged, of another kind or version, or when
    its digest does not match. The header is checked before the rest is read.
    """
    with reading(path, kind):
        file, size = open_file(path, kind)
        with file:
            read_metadata(read_head(file), size, kind, version, str(path))
            file.seek(0)
            return from_bytes(file.read(size), kind, version, source=str(path))


@contextmanager
def reading(path: Path, kind: str) -> Iterator[None]:
    """Turns an error of the operating system, or a lack of memory, while reading into a FileFormatError."""
    try:
        yield
    except OSError as error:
        raise FileFormatError(f"cannot read {path}: {error.strerror}; check the name of the {kind}.") from error
    except MemoryError as error:
        raise FileFormatError(
            f"{path} has {Path(path).stat().st_size} bytes, more than this machine's memory holds; ask its maker for "
            "smaller files."
        ) from error


def open_file(path: Path, kind: str) -> tuple[IO[bytes], int]:
    """A file to read and its size in bytes. Raises FileFormatError for what is no file or too large, or OSError."""
    path = Path(path)
    size = path.stat().st_size
    if not path.is_file():
        raise FileFormatError(f"{path} is a folder or a device, expected {_a(kind)} file.")
    if size > MAX_FILE_BYTES:
        raise FileFormatError(f"{path} has {size} bytes; {_a(kind)} has at most {MAX_FILE_BYTES}.")
    return path.open("rb"), size


def read_head(file: IO[bytes]) -> bytes:
    """The header's length and the header, of which no more than is allowed is read."""
    length = file.read(8)
    return length + file.read(min(int.from_bytes(length, "little"), MAX_HEADER_BYTES))


def from_bytes(data: bytes, kind: str, version: int, *, source: str) -> TensorFile:
    """As :func:`read`, from bytes; ``source`` names them in messages."""
    metadata = read_metadata(data, len(data), kind, version, source)
    try:
        tensors = safetensors.numpy.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise FileFormatError(f"{source} is damaged ({first_line(error)}); get the file anew.") from error
    digest = metadata.pop("sha256", None)
    if digest != content_digest(metadata, tensors):
        raise FileFormatError(f"{source} does not match the SHA-256 that it carries; it was damaged. Get it anew.")
    del metadata["kind"], metadata["version"]
    return TensorFile(Fields(metadata, source), tensors)


def peek_kind(path: Path) -> str | None:
    """The kind that a file claims to be, or None when it is no tensor file of ours. Reads the header only."""
    try:
        with Path(path).open("rb") as file:
            head = file.read(8)
            length = int.from_bytes(head, "little")
            data = head + file.read(length) if len(head) == 8 and length <= MAX_HEADER_BYTES else b""
        header = parse_json(data[8:], str(path))
        return str(parse_json(header["__metadata__"]["collafuse"], str(path))["kind"])
    except (OSError, FileFormatError, KeyError, TypeError):
        return None


def read_metadata(data: bytes, size: int, kind: str, version: int, source: str) -> dict[str, Any]:
    """Our metadata from the beginning of a file of ``size`` bytes, once kind and version are right."""
    length = int.from_bytes(data[:8], "little")
    if size < 8 or length > size - 8:
        raise FileFormatError(f"{source} is cut short or is no {kind} file ({size} bytes); get the file anew.")
    if length > MAX_HEADER_BYTES:
        raise FileFormatError(f"{source} claims a header of {length} bytes; at most {MAX_HEADER_BYTES} are read.")
    header = parse_json(data[8 : 8 + length], source)
    extra = header.get("__metadata__")
    if not isinstance(extra, dict) or set(extra) != {"collafuse"} or not isinstance(extra["collafuse"], str):
        raise FileFormatError(
            f"{source} was not written by collafuse: it lacks our metadata; expected {_a(kind)} file."
        )
    metadata = parse_json(extra["collafuse"], source)
    found_kind, found_version = metadata.get("kind"), metadata.get("version")
    if found_kind != kind:
        raise FileFormatError(
            f"{source} is a {shown(found_kind)} file, expected {_a(kind)}; check which file you pass."
        )
    if type(found_version) is not int or found_version != version:
        raise FileFormatError(
            f"{source} has {kind} format version {shown(found_version)}, this program reads version {version}; "
            "update the older of the two."
        )
    return metadata


def _a(kind: str) -> str:
    return f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"


class HasLayout(Protocol):
    """A tensor, or the description of one that has not been read."""

    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def shape(self) -> tuple[int, ...]: ...


Tensor = TypeVar("Tensor", bound=HasLayout)


def expect_layout(tensors: dict[str, Tensor], name: str, dtypes: tuple[str, ...], ndim: int, source: str) -> Tensor:
    """Take a tensor out of ``tensors``, checking its type and rank but not what it holds."""
    if name not in tensors:
        raise FileFormatError(f"{source} lacks the tensor {name!r}; get the file anew from its maker.")
    tensor = tensors.pop(name)
    if tensor.dtype.name not in dtypes or len(tensor.shape) != ndim:
        raise FileFormatError(
            f"{source}: tensor {name!r} is {tensor.dtype.name} with shape {list(tensor.shape)}, "
            f"expected {' or '.join(dtypes)} with {ndim} axes; get the file anew from its maker."
        )
    return tensor


def check_finite(array: NDArray[Any], name: str, source: str) -> None:
    """Refuse a tensor, or a block of one, that holds values that are not finite."""
    if not np.isfinite(array).all():
        raise FileFormatError(f"{source}: tensor {name!r} holds values that are not finite; get the file anew.")


def expect_nothing_else(tensors: Mapping[str, object], source: str) -> None:
    """Refuse tensors that nobody asked for."""
    if tensors:
        raise FileFormatError(f"{source} holds unexpected tensors {shown_names(tensors)}; refused.")


def file_digest(path: Path) -> str:
    """SHA-256 of a whole file, for manifests and provenance."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
