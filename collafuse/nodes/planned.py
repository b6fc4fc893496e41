"""What each image of a delivery is to show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core.conditioning import (
    Conditions,
    ConditionSpace,
    Labels,
    TextSpace,
    check_same_text,
    dealt_labels,
    indices_of,
    one_label_each,
    translate_labels,
)
from ..core.errors import MismatchError
from ..core.texts import EncodedText
from ..data.imageset import ImageSet


@dataclass(frozen=True, eq=False)
class Planned:
    """labels [N, K] in the model's order, and text [N, T]; None of either where it is not asked for."""

    labels: Labels | None
    text: EncodedText | None = None

    def take(self, rows: Any) -> Planned:
        """The same of these images."""
        labels, text = self.labels, self.text
        return Planned(None if labels is None else labels[rows], None if text is None else text.take(rows))

    @property
    def conditioned(self) -> bool:
        """Whether anything is asked for."""
        return self.labels is not None or self.text is not None

    def conditions(self, count: int, space: ConditionSpace) -> Conditions:
        """The same as conditions [count, W] of a model. Raises MismatchError for text of another encoder than its."""
        if self.text is not None:
            check_same_text(self.text.space, space.text, "what is asked for")
        return space.conditions(count, self.labels, None if self.text is None else self.text.rows)


def check_asked(text: TextSpace, known: TextSpace | None) -> None:
    """Raise MismatchError unless a server whose model takes ``known`` can be asked for text of this encoder."""
    if known is None:
        raise MismatchError(
            f"the request holds text of the encoder {text.encoder}, and this model was trained without text, since no "
            "site shared any with the server; ask without it, and choose it at the device (finish --text)."
        )
    check_same_text(text, known, "the request")


def planned_like(
    count: int,
    shared: Sequence[str] | None,
    names: Sequence[str],
    images: ImageSet | None,
    *,
    text: bool = False,
    several: bool = True,
    in_turn: bool = False,
) -> Planned:
    """What ``count`` images show that are to stand beside ``images``.

    shared: the labels that may be asked for, None for no labels, and none for images that show none of them; names: the
    model's. Where each of the images has one label, or there are no images, labels are dealt out evenly. Where they
    have several at once, or none, each shows what one of them does, in turn: nobody has a single attribute and nothing
    else. text: each also has the text of one of them that shows its labels. several: whether the model can be asked for
    several labels at once. in_turn: images with one label each are taken in turn too, so that labels come in their mix.
    """
    shared = shared if names else None
    one_each = images is None or one_label_each(images.labels)
    by_image = in_turn if one_each else several and bool(shared or in_turn)
    if by_image and images is not None and (found := _in_turn(count, shared, names, images, text)) is not None:
        return found
    dealt = None if shared is None else dealt_labels(count, indices_of(shared, names), len(names))
    return Planned(dealt, text_like(count, dealt, names, images) if text and images is not None else None)


def _in_turn(
    count: int, shared: Sequence[str] | None, names: Sequence[str], images: ImageSet, text: bool
) -> Planned | None:
    """What these images show, one after the other; None where each shows something that may not be asked for."""
    able = np.arange(len(images))
    if shared is not None:
        beyond = [column for column, name in enumerate(images.label_names) if name not in shared]
        able = np.flatnonzero(~images.labels[:, beyond].any(axis=1))
    if not len(able):
        return None
    rows = able[np.arange(count) % len(able)]
    labels = None if shared is None else translate_labels(images.labels[rows], images.label_names, names)
    return Planned(labels, images.text.take(rows) if text and images.text is not None else None)


def text_like(count: int, labels: Labels | None, names: Sequence[str], images: ImageSet) -> EncodedText | None:
    """For each of ``count`` images the text of one of ``images`` that shows its label, in turn; None without text
    or images.

    labels: [count, K] by their names, or None where any image will do.
    """
    if images.text is None or not len(images):
        return None
    rows = np.arange(count) % len(images)
    for column, name in enumerate(() if labels is None else names):
        assert labels is not None
        places = np.flatnonzero(labels[:, column])
        own = images.rows_with(name)
        if len(own):
            rows[places] = own[np.arange(len(places)) % len(own)]
    return images.text.take(rows)
