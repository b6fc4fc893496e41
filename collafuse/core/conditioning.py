"""Conditions: labels, a text as numbers, and one flag for "no condition"; and classifier-free guidance.

A condition is a float32 row of K + T + 1 numbers: K labels in the order of ``label_names`` (a class is a one-hot), T
numbers of a text (none without text), then the flag. "No condition" (flag 1, all else 0) is not the same as "none of
the labels, and no caption" (flag 0, all else 0). :class:`ConditionSpace` alone knows this layout.

At rest labels are uint8 [N, K], and two sides match them by name. A text is float16 [N, T] of root mean square 1, or
all zeros where an image has no caption; two sides match the encoder that made it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import MismatchError, UsageError

MAX_GUIDANCE = 100.0
"""The largest guidance weight that a file, a configuration or a command may ask for."""

MAX_TEXT_WIDTH = 4096
"""The most numbers that a text may have; the largest T5 makes as many."""
ENCODER_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
"""What the name of a text encoder may be: short, and of plain letters and digits."""
RMS_SLACK = 0.01
"""How far the root mean square of a text may be from 1: it is rounded to half precision."""

Labels = NDArray[np.uint8]
"""Multi-hot labels [N, K], each 0 or 1."""
Texts = NDArray[np.float16]
"""Texts as numbers [N, T], each row of root mean square 1, or zeros for none."""
Conditions = NDArray[np.float32]
"""Conditions [N, K + T + 1]: labels, text and the "no condition" flag."""


@dataclass(frozen=True)
class TextSpace:
    """What numbers a text becomes: ``width`` of them, made by the encoder of this name, which says its weights."""

    encoder: str
    width: int


def is_encoder(value: object) -> bool:
    """Whether this may be the name of a text encoder."""
    return isinstance(value, str) and re.fullmatch(ENCODER_NAME, value) is not None


@dataclass(frozen=True)
class ConditionSpace:
    """The layout of a condition: which labels, and which text if any."""

    label_names: tuple[str, ...] = ()
    text: TextSpace | None = None

    @property
    def text_width(self) -> int:
        """T; 0 without text."""
        return 0 if self.text is None else self.text.width

    @property
    def width(self) -> int:
        """Numbers in a condition: K + T + 1."""
        return len(self.label_names) + self.text_width + 1

    @property
    def label_columns(self) -> slice:
        """Where in a condition the labels stand."""
        return slice(0, len(self.label_names))

    @property
    def text_columns(self) -> slice:
        """Where in a condition the text stands."""
        return slice(len(self.label_names), len(self.label_names) + self.text_width)

    def conditions(self, count: int, labels: Labels | None, text: Texts | None = None) -> Conditions:
        """Conditions [count, width] of labels [count, K] and text [count, T].

        None of either leaves its numbers 0. Where nothing is said it is "no condition" for every image: None of both,
        or labels in a space without any, which say nothing of an image.
        """
        conditions = np.zeros((count, self.width), dtype=np.float32)
        if text is None and (labels is None or not self.label_names):
            conditions[:, -1] = 1.0
        if labels is not None:
            conditions[:, self.label_columns] = labels
        if text is not None:
            conditions[:, self.text_columns] = text
        return conditions

    def columns_from(self, other: ConditionSpace) -> list[int]:
        """For each number here its place in a condition of another space, or that of its flag where it has none.

        Raises MismatchError where both have text and their encoders differ.
        """
        if self.text is not None and other.text is not None and self.text != other.text:
            raise MismatchError(
                f"the weights were trained with text of the encoder {other.text.encoder}, here it is "
                f"{self.text.encoder}; use the same encoder, or leave one of them without text."
            )
        labels = [other.label_names.index(n) if n in other.label_names else -1 for n in self.label_names]
        first = len(other.label_names)
        text = list(range(first, first + self.text_width)) if other.text is not None else [-1] * self.text_width
        return [*labels, *text, -1]

    def with_parts_dropped(self, conditions: Any, draw: Any, share: float) -> Any:
        """Conditions [N, width] to train on, some of them dropped. ``draw``: uniform in [0, 1), [N].

        A share of the rows loses all of it, which guidance needs. With text as many lose their labels alone, and as
        many their text alone, so that later either can be asked for without the other; of a share above 1/4 fewer, so
        that as many keep both.
        """
        # Arithmetic alone: to pick rows by a mask would make the host wait for a GPU.
        whole = (draw < share)[:, None]
        kept = conditions * ~whole + unconditional(conditions) * whole
        if self.text is not None and self.label_names:
            each = min(share, (1 - share) / 3)
            for turn, columns in enumerate((self.label_columns, self.text_columns)):
                part = (draw >= share + turn * each) & (draw < share + (turn + 1) * each)
                kept[:, columns] = kept[:, columns] * ~part[:, None]
        return kept


def check_same_text(given: TextSpace, known: TextSpace | None, what: str) -> None:
    """Raise MismatchError, naming both encoders, unless texts of ``what`` mean the same here. known: here."""
    if known is None:
        raise MismatchError(
            f"{what} holds text of the encoder {given.encoder}, and this model was trained without text; leave the "
            "text out, or use a model of a training with data.text."
        )
    if given != known:
        raise MismatchError(
            f"{what} holds text of the encoder {given.encoder} ({given.width} numbers), this model was trained with "
            f"{known.encoder} ({known.width}); make the text anew with that encoder (collafuse text)."
        )


def unconditional(conditions: Any) -> Any:
    """The "no condition" row for each row, on a torch tensor or a NumPy array."""
    blank = conditions * 0.0
    blank[:, -1] = 1.0
    return blank


def dealt_labels(count: int, columns: Sequence[int], num_labels: int) -> Labels:
    """Multi-hot labels [count, num_labels]: each image shows one of the columns, in blocks, as evenly as it goes:
    0 0 0 1 1 1 2 2. Without any column it shows none."""
    labels = np.zeros((count, num_labels), dtype=np.uint8)
    if not len(columns):
        return labels
    images = np.arange(count)
    labels[images, np.asarray(columns)[dealt_row(images, count, len(columns))]] = 1
    return labels


def same_labels(count: int, names: Sequence[str], known: Sequence[str]) -> Labels:
    """Multi-hot labels [count, len(known)] of images that all show these. Raises MismatchError, see indices_of."""
    labels = np.zeros((count, len(known)), dtype=np.uint8)
    labels[:, indices_of(names, known)] = 1
    return labels


def check_one_each(count: int, texts: int) -> None:
    """Raise UsageError where there are fewer images than texts."""
    if count < texts:
        raise UsageError(f"{texts} texts and {count} images; ask for at least one image of each text.")


def dealt_row(index: Any, count: int, texts: int) -> Any:
    """Which of so many texts the image of this index is of, in blocks, as evenly as it goes; of indices, an array."""
    return index * texts // count


def one_label_each(labels: Labels) -> bool:
    """Whether each image of [N, K] shows exactly one label."""
    return labels.shape[1] > 0 and bool((labels.sum(axis=1) == 1).all())


def indices_of(names: Sequence[str], known: Sequence[str]) -> list[int]:
    """Position of each name in ``known``. Raises MismatchError for an unknown one, naming the closest."""
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise MismatchError(f"label {name!r} is not known; known are {', '.join(known) or 'none'}.{hint}")
    return [list(known).index(name) for name in names]


def translate_labels(labels: Labels, names: Sequence[str], known: Sequence[str]) -> Labels:
    """Labels [N, K] given by ``names`` in the order of ``known`` [N, len(known)].

    Raises MismatchError when an image carries a label that is not in ``known``.
    """
    used = [i for i in range(len(names)) if labels[:, i].any()]
    targets = indices_of([names[i] for i in used], known)
    translated = np.zeros((len(labels), len(known)), dtype=np.uint8)
    translated[:, targets] = labels[:, used]
    return translated


def guided(
    model: Callable[[Any, Any, Any], Any], conditions: Any, guidance: float, blank: Any = None
) -> Callable[[Any, Any], Any]:
    """``denoise(x, sigma)`` for these conditions with classifier-free guidance (Ho and Salimans 2022).

    ``model(x, sigma, conditions) -> x0_hat``. With weight w the estimate is
    ``x0_hat(none) + w * (x0_hat(conditions) - x0_hat(none))``; w = 1 is plain conditioning, one evaluation.
    ``blank`` is the "no condition" row of each row where :func:`unconditional` cannot make it.
    """
    if guidance == 1.0:
        return lambda x, sigma: model(x, sigma, conditions)
    blank = unconditional(conditions) if blank is None else blank

    def denoise(x: Any, sigma: Any) -> Any:
        without = model(x, sigma, blank)
        return without + guidance * (model(x, sigma, conditions) - without)

    return denoise
