"""Rows of an array that lies in a file, read when they are asked for: for a set of images larger than memory.

They are read and not mapped. A file that somebody cuts short is then a sentence and not the end of the process, and
what was read once does not count as this process's memory.
"""

from __future__ import annotations

import itertools
import math
import os
import weakref
from collections.abc import Sequence
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .errors import FileFormatError

IN_MEMORY_BYTES = 2 << 30
"""Sets of images up to this size are held in memory; larger ones are read from their file, row by row."""
BLOCK_BYTES = 4 << 20

Index = slice | NDArray[np.int64]
"""Which rows: neighbours, or any, in any order."""


class Rows(Protocol):
    """Images [N, ...] that give some of their rows: an array, or what lies in a file."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: Any, /) -> Any: ...


class FileRows:
    """Some rows of an array in a file, in some order. ``rows[index]`` reads those of a slice or of an array of numbers.

    file: stays open here even when the caller closes it. shape, dtype, offset: of the whole array there. source: what
    messages call it. Raises FileFormatError when the file is shorter than it was.
    """

    def __init__(
        self, file: IO[bytes], dtype: np.dtype[Any], shape: tuple[int, ...], *, offset: int = 0, source: str
    ) -> None:
        self._file = _Descriptor(file)
        self._offset, self._source = offset, source
        self._rows: NDArray[np.int64] = np.arange(shape[0], dtype=np.int64)
        self._row_shape = shape[1:]
        self.dtype = dtype

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, ...)."""
        return (len(self._rows), *self._row_shape)

    def take(self, rows: NDArray[np.int64]) -> FileRows:
        """These rows alone, not read yet."""
        chosen = object.__new__(FileRows)
        chosen.__dict__.update(self.__dict__)
        chosen._rows = self._rows[rows]
        return chosen

    def __getitem__(self, index: Index) -> NDArray[Any]:
        rows = self._rows[index]
        found = np.empty((len(rows), *self._row_shape), dtype=self.dtype)
        if found.size:
            flat = found.reshape(len(rows), -1).view(np.uint8)
            starts = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist()]  # neighbours come in one read
            for start, end in itertools.pairwise([*starts, len(rows)]):
                self._read(int(rows[start]), flat[start:end].reshape(-1))
        return found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[:], dtype=dtype)

    def _read(self, row: int, into: NDArray[np.uint8]) -> None:
        row_bytes = math.prod(self._row_shape) * self.dtype.itemsize
        at, done = self._offset + row * row_bytes, 0
        while done < len(into):
            data = os.pread(self._file.number, min(len(into) - done, BLOCK_BYTES), at + done)
            if not data:
                raise FileFormatError(f"{self._source} became shorter while it was read; run the command again.")
            into[done : done + len(data)] = np.frombuffer(data, dtype=np.uint8)
            done += len(data)


class _Descriptor:
    """A file's own descriptor here, open as long as any selection of its rows is there."""

    def __init__(self, file: IO[bytes]) -> None:
        self.number = os.dup(file.fileno())
        weakref.finalize(self, os.close, self.number)


class JoinedRows:
    """Several sets of images of one shape and type, as one."""

    def __init__(self, parts: Sequence[Rows]) -> None:
        self._parts = list(parts)
        self._starts = np.cumsum([0, *map(len, parts)])
        self.dtype = parts[0].dtype

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, ...)."""
        return (len(self), *self._parts[0].shape[1:])

    def __getitem__(self, index: Index) -> NDArray[Any]:
        rows = np.arange(*index.indices(len(self))) if isinstance(index, slice) else index
        part_of = np.searchsorted(self._starts, rows, side="right") - 1
        found = np.empty((len(rows), *self.shape[1:]), dtype=self.dtype)
        for number, part in enumerate(self._parts):
            here = part_of == number
            if here.any():
                found[here] = part[rows[here] - self._starts[number]]
        return found


def blocks_of(rows: Rows) -> Sequence[slice]:
    """Slices that together are all rows, each of a few megabytes."""
    count = max(1, BLOCK_BYTES // max(1, math.prod(rows.shape[1:]) * rows.dtype.itemsize))
    return [slice(start, start + count) for start in range(0, len(rows), count)]
