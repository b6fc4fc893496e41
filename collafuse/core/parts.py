"""Intermediates that came in several files, as one: what they would be in a single file, without holding it."""

from __future__ import annotations

import itertools
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np

from .errors import MismatchError
from .intermediate import KIND, VERSION, Intermediate, IntermediateFile
from .intermediateheader import Described
from .tensorfile import begin_digest, digest_tensor_name
from .texts import EncodedText


class Parts(Described):
    """Files, one after another; at least one. Whoever opened them closes them; let go before, they are opened in turn.

    Raises MismatchError when they are not of one delivery.
    """

    def __init__(self, files: Sequence[IntermediateFile]) -> None:
        first = files[0].header
        for file in files[1:]:
            if file.header.server_model != first.server_model:
                raise MismatchError(
                    f"the server's model changed from {first.server_model} to {file.header.server_model} while it "
                    "delivered; ask again."
                )
            if replace(file.header, shape=()) != replace(first, shape=()) or file.image_shape != files[0].image_shape:
                raise MismatchError("the server's settings changed while it delivered; ask again.")
        self._files = list(files)
        self._read_last = files[0]
        self._starts = [0, *itertools.accumulate(map(len, files))]
        self.header = replace(first, shape=(self._starts[-1], *first.shape[1:]))
        counts = Counter[str]()
        for file in files:
            counts.update(file.label_counts or {})
        self.label_counts = None if files[0].label_counts is None else dict(counts)

    def block(self, rows: slice) -> Intermediate:
        """These rows. Raises FileFormatError when a file changed since it was opened."""
        start, stop, _ = rows.indices(len(self))
        # Of thousands of files, the few that are asked for.
        here = slice(bisect_right(self._starts, start) - 1, bisect_left(self._starts, stop))
        blocks = [
            self._block_of(file, slice(max(start - first, 0), stop - first))
            for file, first in zip(self._files[here], self._starts[here], strict=True)
        ]
        if len(blocks) == 1:
            return blocks[0]
        labels = [block.labels for block in blocks if block.labels is not None]
        previous = [block.previous_x0_hat for block in blocks if block.previous_x0_hat is not None]
        texts = [block.text for block in blocks if block.text is not None]
        return replace(
            blocks[0],
            x=np.concatenate([block.x for block in blocks]),
            labels=np.concatenate(labels) if labels else None,
            previous_x0_hat=np.concatenate(previous) if previous else None,
            text=EncodedText(texts[0].space, np.concatenate([text.rows for text in texts])) if texts else None,
        )

    def _block_of(self, file: IntermediateFile, rows: slice) -> Intermediate:
        """Rows of one file. No other holds a block meanwhile: many small files would hold all that is in them."""
        if file is not self._read_last:
            self._read_last.let_go()
            self._read_last = file
        return file.block(rows)

    @cached_property
    def digest(self) -> str:
        """The SHA-256 that a single file of them would carry; it reads them through once."""
        fields = self.header.fields(labelled=self.label_counts is not None)
        digest = begin_digest({"kind": KIND, "version": VERSION, **fields})
        for name, layout in sorted(self._files[0].layouts.items()):
            digest_tensor_name(digest, name, layout.dtype, (len(self), *layout.shape[1:]))
            for file in self._files:
                for block in file.blocks(name):
                    digest.update(np.ascontiguousarray(block).reshape(-1).view(np.uint8).data)
                file.let_go()
        return digest.hexdigest()
