"""Reading a tensor file in blocks, so that a file larger than memory can be checked and used.

Opening reads the header alone. ``verify`` goes through the file once, in blocks, and compares the SHA-256 that it
carries; ``rows`` then gives some rows of a tensor. Each block is digested on the first pass and compared when it is
read again, so that what is used is what was verified, whatever happened to the file in between.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from .errors import FileFormatError
from .metadata import Fields, parse_json, shown
from .rows import FileRows
from .tensorfile import begin_digest, digest_tensor_name, open_file, read_head, read_metadata, reading

BLOCK_BYTES = 1 << 20
"""About how much of one tensor is held at a time; a single row may be larger."""
MAX_AXES = 8
"""Of one tensor; ours have four at most, and NumPy has an end as well."""
DTYPES = {
    name: np.dtype(code)
    for name, code in zip(
        "BOOL I8 I16 I32 I64 U8 U16 U32 U64 F16 F32 F64".split(),
        "?    i1 <i2 <i4 <i8 u1 <u2 <u4 <u8 <f2 <f4 <f8".split(),
        strict=True,
    )
}
"""NumPy's types by their names in a safetensors header; a file is little-endian."""

Check = Callable[[str, NDArray[Any]], None]
"""Hears of each block of each tensor, by the tensor's name, on the first pass."""


@dataclass(frozen=True)
class Layout:
    """Where a tensor lies in the file, and what it is."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def rows(self) -> int:
        """Length of the first axis; a number without axes is one row."""
        return self.shape[0] if self.shape else 1

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def block_rows(self) -> int:
        """Rows of one block."""
        return max(1, BLOCK_BYTES // max(1, self.row_bytes))


class TensorStream:
    """An open tensor file: ``fields`` of its metadata and ``layouts`` of its tensors. Made by :func:`open_stream`."""

    def __init__(
        self, file: IO[bytes], path: Path, kind: str, metadata: dict[str, Any], layouts: dict[str, Layout]
    ) -> None:
        self._file, self._path, self._kind = file, path, kind
        self._metadata = metadata
        self._digests: dict[str, list[bytes]] = {}
        self._held: dict[str, tuple[int, NDArray[Any]]] = {}
        self.source = str(path)
        self.layouts = layouts
        self.digest = str(metadata.pop("sha256", ""))
        """The SHA-256 that the file carries; true once ``verify`` has returned."""
        self.fields = Fields({k: v for k, v in metadata.items() if k not in ("kind", "version")}, self.source)

    def __enter__(self) -> TensorStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def let_go(self) -> None:
        """Forget the blocks that are held and close the file until it is read again, for whoever reads on in another:
        a process may have some hundred files open."""
        self._held.clear()
        self._file.close()

    def verify(self, check: Check = lambda name, block: None) -> None:
        """Go through the file once. Raises FileFormatError when its digest does not match, or what ``check`` raises."""
        digest = begin_digest(self._metadata)
        for name in sorted(self.layouts):
            layout = self.layouts[name]
            digest_tensor_name(digest, name, layout.dtype, layout.shape)
            self._digests[name] = []
            for start in range(0, layout.rows if layout.size else 0, layout.block_rows):
                block = self._read(layout, start)
                digest.update(block.reshape(-1).view(np.uint8).data)
                self._digests[name].append(_digest(block))
                check(name, block)
        if digest.hexdigest() != self.digest:
            raise self._damaged()

    def rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Rows [start, stop) of a tensor of a verified file. Raises FileFormatError when they changed since."""
        layout = self.layouts[name]
        if not layout.size:
            return np.empty((stop - start, *layout.shape[1:]), dtype=layout.dtype)
        parts = []
        for first in range(start - start % layout.block_rows, stop, layout.block_rows):
            block = self._block(name, first)
            parts.append(block[max(start - first, 0) : stop - first])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def left(self, name: str) -> FileRows:
        """The rows of a tensor of a verified file, left there. What is read of them is not compared once more: single
        rows in any order would cost a digest of their whole block each."""
        layout = self.layouts[name]
        return FileRows(self._opened(), layout.dtype, layout.shape, offset=layout.offset, source=self.source)

    def _block(self, name: str, first: int) -> NDArray[Any]:
        """The block that begins at this row; the last one of each tensor is held, for whoever reads in order."""
        held, block = self._held.get(name, (-1, None))
        if held != first or block is None:
            self._held.pop(name, None)  # so that two are never held at once
            layout = self.layouts[name]
            block = self._read(layout, first)
            if _digest(block) != self._digests[name][first // layout.block_rows]:
                raise FileFormatError(f"{self.source} changed while it was read; run the command again.")
            self._held[name] = (first, block)
        return block

    def _read(self, layout: Layout, start: int) -> NDArray[Any]:
        count = min(layout.block_rows, layout.rows - start)
        with reading(self._path, self._kind):
            file = self._opened()
            file.seek(layout.offset + start * layout.row_bytes)
            data = file.read(count * layout.row_bytes)
        if len(data) != count * layout.row_bytes:
            raise FileFormatError(f"{self.source} became shorter while it was read; get the file anew.")
        shape = (count, *layout.shape[1:]) if layout.shape else ()
        return np.frombuffer(data, dtype=layout.dtype).reshape(shape)

    def _opened(self) -> IO[bytes]:
        """The file, opened again where it was let go; that another may lie there by now is seen by its blocks."""
        if self._file.closed:
            self._file = self._path.open("rb")
        return self._file

    def _damaged(self) -> FileFormatError:
        return FileFormatError(
            f"{self.source} does not match the SHA-256 that it carries; it was damaged. Get it anew."
        )


def open_stream(path: Path, kind: str, version: int) -> TensorStream:
    """An open tensor file of this kind and version, of which the header has been checked; close it, or use ``with``.

    Raises FileFormatError as :func:`tensorfile.read` does.
    """
    with reading(path, kind):
        file, size = open_file(path, kind)
        try:
            head = read_head(file)
            metadata = read_metadata(head, size, kind, version, str(path))
            return TensorStream(file, path, kind, metadata, _layouts(head, size, str(path)))
        except BaseException:
            file.close()
            raise


def _layouts(head: bytes, size: int, source: str) -> dict[str, Layout]:
    """Every tensor's place; together they fill the file, without gaps and without sharing a byte."""
    header = parse_json(head[8:], source)
    del header["__metadata__"]
    layouts, places = {}, []
    for name, entry in header.items():
        try:
            dtype, shape, (begin, end) = DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
            natural = len(shape) <= MAX_AXES and all(type(n) is int and n >= 0 for n in (*shape, begin, end))
        except (KeyError, TypeError, ValueError) as error:
            raise FileFormatError(f"{source} is damaged (tensor {shown(name)}); get the file anew.") from error
        if not natural or end - begin != math.prod(shape) * dtype.itemsize:
            raise FileFormatError(f"{source} is damaged (tensor {shown(name)}); get the file anew.")
        places.append((begin, end))
        layouts[name] = Layout(dtype, tuple(shape), len(head) + begin)
    expected = 0
    for begin, end in sorted(places):
        if begin != expected:
            raise FileFormatError(f"{source} is damaged (tensors overlap or leave gaps); get the file anew.")
        expected = end
    if len(head) + expected != size:
        raise FileFormatError(f"{source} is cut short or has bytes that belong to nothing; get the file anew.")
    return layouts


def _digest(block: NDArray[Any]) -> bytes:
    return hashlib.sha256(block.reshape(-1).view(np.uint8).data).digest()
