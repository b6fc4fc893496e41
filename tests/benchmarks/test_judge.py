"""What the benchmarks' judge does before it compares."""

from __future__ import annotations

import numpy as np

from benchmarks.judge import halves
from tests.tiny import image_set


def test_halves_show_the_same_though_images_lie_label_by_label():
    images = image_set(40, ("a", "b"))
    by_label = images.take(np.argsort(images.labels.argmax(axis=1), kind="stable"))
    one, other = halves(by_label)
    assert one.labels.sum(axis=0).tolist() == other.labels.sum(axis=0).tolist() == [10, 10]
    assert not {p.tobytes() for p in one.pixels} & {p.tobytes() for p in other.pixels}
    assert len(one) + len(other) == 40
