"""One mix of labels on both sides of a comparison.

A server deals labels out evenly, a site's images fall as they fall, and in the features of a classifier a few more
images of one label weigh more than anything that a generator does. So both sides get the held-out images' own mix.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..core.conditioning import Labels, one_label_each
from ..data.imageset import ImageSet
from .generated import Generated
from .quality import Strata

FEWEST_MIXED = 10
"""Where one mix would leave fewer images, another mix is the lesser evil."""


@dataclass(frozen=True)
class Mix:
    """How many images of each label are compared, and of how many labels an arm deals its images; empty ``by_label``
    where images have no label or several: then they are taken as they come."""

    count: int
    by_label: dict[str, int]
    num_labels: int = 1

    @property
    def to_generate(self) -> int:
        """So many images, labels dealt out evenly, hold enough of each label."""
        return self.num_labels * max(self.by_label.values(), default=self.count)

    def take(self, made: Generated) -> Generated:
        """The first images of each label; the first of all where labels are not known or too few have one of them."""
        rows = self._rows(made.labels, made.label_names)
        labels = None if made.labels is None else made.labels[rows]
        return Generated(made.pixels[rows], labels, made.label_names)

    def is_in(self, made: Generated) -> bool:
        """Whether images show each label as often as the mix has it; so of those that say nothing of labels."""
        if made.labels is None:
            return True
        shown = dict(zip(made.label_names, made.labels.sum(axis=0, dtype=np.int64).tolist(), strict=True))
        return all(shown.get(name, 0) == count for name, count in self.by_label.items())

    def _rows(self, labels: Labels | None, label_names: tuple[str, ...]) -> NDArray[np.int64]:
        every = np.arange(self.count)
        if labels is None or not self.by_label or not set(self.by_label) <= set(label_names):
            return every
        found = [np.flatnonzero(labels[:, label_names.index(name)])[:count] for name, count in self.by_label.items()]
        rows = np.sort(np.concatenate(found))
        return rows if len(rows) == self.count else every


def by_turns(images: ImageSet) -> ImageSet:
    """The same images; where each has one label, labels take turns: whoever takes the first so many, and begins anew
    where there are no more, has enough of each label for every mix of at most as many as there are."""
    if not one_label_each(images.labels):
        return images
    of = images.labels.argmax(axis=1)
    label_by_label = np.argsort(of, kind="stable")
    first = np.searchsorted(of[label_by_label], np.arange(images.labels.shape[1]))
    rank = np.empty_like(of)
    rank[label_by_label] = np.arange(len(of)) - first[of[label_by_label]]
    return images.take(np.lexsort((of, rank)))


def mix_of(reference: ImageSet, floor: ImageSet, most: int) -> Mix:
    """The reference's mix of labels, for at most so many images and as many as the floor has of each label."""
    if not one_label_each(reference.labels) or not one_label_each(floor.labels):
        return Mix(min(most, len(floor)), {})
    shares = reference.labels.mean(axis=0)
    there = shares > 0
    limit = min(most, int((floor.labels.sum(axis=0)[there] / shares[there]).min()))
    counts = np.floor(limit * shares + 1e-9).astype(int)
    by_label = {name: int(n) for name, n in zip(reference.label_names, counts, strict=True) if n > 0}
    if sum(by_label.values()) < min(FEWEST_MIXED, most, len(floor)):  # the floor lacks one of the labels, or nearly
        return Mix(min(most, len(floor)), {})
    return Mix(sum(by_label.values()), by_label, len(reference.label_names))


def strata_of(labels: Labels | None, count: int) -> Strata:
    """The column [count] of each image's one label; zeros where images have none or several."""
    if labels is None or not one_label_each(labels):
        return np.zeros(count, dtype=np.int64)
    return labels.argmax(axis=1).astype(np.int64)
