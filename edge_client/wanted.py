"""What a device asks a server for, and whether what came is that.

What is delivered is finished as what it says of itself. So a reply that shows something else, for whatever reason,
would become pictures that look right and are of the wrong thing; it is refused instead.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass

import numpy as np

from collafuse.core.conditioning import Labels, Texts, dealt_row
from collafuse.core.errors import MismatchError, UsageError
from collafuse.core.intermediate import Intermediate, IntermediateFile
from collafuse.core.texts import EncodedText, most_asked

ADVICE = "Ask again; if that does not help, tell the server's operator."


@dataclass(frozen=True)
class WantedText:
    """Texts as numbers, as a request carries them: each row the base64 of its float16 numbers."""

    encoder: str
    rows: tuple[str, ...]

    @classmethod
    def of(cls, text: EncodedText) -> WantedText:
        """These texts. Raises UsageError for more than a server takes at once."""
        if len(text) > (most := most_asked(text.space.width)):
            raise UsageError(
                f"{len(text)} prompts; a server takes at most {most} at once of {text.space.encoder}. Make several "
                "files of them, or let it deliver to a file (collafuse deliver --text)."
            )
        rows = (base64.b64encode(row.astype("<f2").tobytes()).decode("ascii") for row in text.rows)
        return cls(text.space.encoder, tuple(rows))

    def dealt(self, images: range, count: int) -> list[bytes]:
        """The numbers of the text of each of these images, of so many in all."""
        return [base64.b64decode(self.rows[dealt_row(image, count, len(self.rows))]) for image in images]


@dataclass(frozen=True)
class Wanted:
    """A delivery: how many images of what, for which client."""

    client: str
    count: int
    labels: tuple[str, ...] | None = None
    seed: int | None = None
    sampler: str | None = None
    half: bool = False
    text: WantedText | None = None

    def check(self, came: Came, images: range, image_shape: tuple[int, int, int]) -> None:
        """Raise MismatchError unless this is what was asked for, of these images of the whole."""
        part = came.part
        if len(part) != len(images) or part.image_shape != image_shape:
            raise MismatchError(
                f"the server sent {len(part)} images of shape {list(part.image_shape)}, asked for were {len(images)} "
                f"of {list(image_shape)}; use the bundle that belongs to this server."
            )
        if self.sampler is not None and part.sampler != self.sampler:
            raise MismatchError(f"the server sampled with {part.sampler}, asked for was {self.sampler}. {ADVICE}")
        self._check_labels(came)
        self._check_text(came, images)

    def _check_labels(self, came: Came) -> None:
        if self.labels is None and self.text is None:
            return  # the client's own are dealt out, or none: that is the server's to say
        found, asked = came.part.used_labels if came.part.labelled else None, self.labels
        each = 0 if came.labels is None else came.labels.sum(axis=1, dtype=np.int64)
        if asked is None:
            right = found is None  # of text alone no label is dealt
        else:
            right = found is not None and set(found) == set(asked) and bool(np.all(each == len(set(asked))))
        if not right:
            raise MismatchError(
                f"the server sent images that show {_named(found)}, asked for were images that each show just "
                f"{_named(asked)}. {ADVICE}"
            )

    def _check_text(self, came: Came, images: range) -> None:
        space = came.part.text_space
        found, asked = None if space is None else space.encoder, None if self.text is None else self.text.encoder
        if found != asked:
            raise MismatchError(
                f"the server sent images of {found or 'no'} text, asked for was {asked or 'no'} text. {ADVICE}"
            )
        if self.text is None or came.text is None:
            return
        if [row.astype("<f2").tobytes() for row in came.text] != self.text.dealt(images, self.count):
            raise MismatchError(f"the server sent images of another text than was asked for. {ADVICE}")


@dataclass(frozen=True, eq=False)
class Came:
    """A part of a delivery with what each of its images shows: labels [N, K], text [N, T]."""

    part: Intermediate | IntermediateFile
    labels: Labels | None
    text: Texts | None

    @classmethod
    def in_memory(cls, part: Intermediate) -> Came:
        """What a reply holds."""
        return cls(part, part.labels, None if part.text is None else part.text.rows)

    @classmethod
    def in_file(cls, file: IntermediateFile) -> Came:
        """What a file holds, of which the images are left there."""
        said = {name: np.concatenate(list(file.blocks(name))) for name in ("labels", "text") if name in file.layouts}
        return cls(file, said.get("labels"), said.get("text"))


def _named(labels: tuple[str, ...] | None) -> str:
    """Labels for a sentence; None: nothing was said of labels."""
    return "no stated label" if labels is None else ", ".join(labels) or "none of the labels"
