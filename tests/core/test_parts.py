"""collafuse.core.parts: several files are what a single one would be."""

from __future__ import annotations

import dataclasses
import tracemalloc
from contextlib import ExitStack

import numpy as np
import pytest

from collafuse.core import intermediate as intermediates
from collafuse.core.errors import MismatchError
from collafuse.core.intermediate import Intermediate, IntermediateFile
from collafuse.core.parts import Parts


def whole(count=7, side=2):
    x = np.random.default_rng(0).standard_normal((count, 3, side, side)).astype(np.float32)
    labels = np.eye(2, dtype=np.uint8)[np.arange(count) % 2]
    return Intermediate(x, 0.75, labels, ("cat", "dog"), "0123456789abcdef", "dpmpp_2m", 16, 1.5)


PLAIN = whole()
WARM = dataclasses.replace(PLAIN, previous_x0_hat=PLAIN.x * 0.5, previous_sigma=1.25)
UNLABELLED = dataclasses.replace(PLAIN, labels=None, label_names=())


@pytest.fixture
def opened(tmp_path):
    with ExitStack() as stack:

        def files(*parts):
            for index, part in enumerate(parts):
                (tmp_path / str(index)).write_bytes(intermediates.to_bytes(part))
            return [stack.enter_context(IntermediateFile(tmp_path / str(i))) for i in range(len(parts))]

        yield files


@pytest.mark.parametrize("one", [PLAIN, WARM, UNLABELLED], ids=["cold", "warm", "unlabelled"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_parts_say_and_give_what_a_single_file_would(opened, one, dtype):
    previous = None if one.previous_x0_hat is None else one.previous_x0_hat.astype(dtype)
    one = dataclasses.replace(one, x=one.x.astype(dtype), previous_x0_hat=previous)
    parts = Parts(opened(*(one.block(slice(*rows)) for rows in ((0, 3), (3, 6), (6, 7)))))
    names = ("sigma", "server_model", "sampler", "nfe", "guidance", "image_shape", "labelled", "used_labels", "digest")
    assert [getattr(parts, name) for name in names] == [getattr(one, name) for name in names]
    assert len(parts) == 7
    for rows in (slice(0, 7), slice(2, 4), slice(3, 6), slice(5, 99)):
        assert intermediates.to_bytes(parts.block(rows)) == intermediates.to_bytes(one.block(rows))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"server_model": "another"}, "model changed from 0123456789abcdef to another"),
        ({"sigma": 0.5}, "settings changed"),
        ({"labels": None, "label_names": ()}, "settings changed"),
        ({"previous_x0_hat": PLAIN.x, "previous_sigma": 1.25}, "settings changed"),
        ({"x": np.zeros((7, 3, 2, 4), dtype=np.float32)}, "settings changed"),
    ],
)
def test_parts_of_two_deliveries_are_refused(opened, changes, message):
    with pytest.raises(MismatchError, match=message):
        Parts(opened(PLAIN, dataclasses.replace(PLAIN, **changes)))


@pytest.mark.parametrize("most", [2, 8])
def test_parts_are_not_held_together(opened, most):
    """Neither large ones nor many small ones, each of which fits into a block."""
    one = whole(64, 128)
    size, digest = one.x.nbytes, one.digest
    files = opened(*(one.block(slice(i, i + most)) for i in range(0, 64, most)))
    tracemalloc.start()
    try:
        parts = Parts(files)
        assert parts.digest == digest
        for start in range(0, 64, 4):
            parts.block(slice(start, start + 4))
        for file in files:
            file.close()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < size / 2  # the parts held together would be all of it, and joined twice that
