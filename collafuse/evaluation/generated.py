"""Images that something generated, with what they were asked to show."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..core.conditioning import Labels
from ..core.errors import MismatchError
from ..core.pictures import Pixels


@dataclass(frozen=True, eq=False)
class Generated:
    """What one arm of a comparison made for one client.

    pixels: uint8 [N, H, W, C]; labels: what each image was asked to show, uint8 multi-hot [N, K] in the order of
    label_names, or None where nothing was asked for. Raises MismatchError when the counts differ.
    """

    pixels: Pixels
    labels: Labels | None = None
    label_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        expected = (len(self.pixels), len(self.label_names))
        if self.labels is not None and self.labels.shape != expected:
            raise MismatchError(
                f"labels of shape {list(self.labels.shape)} do not belong to {expected[0]} images and {expected[1]} "
                "label names; give one row per image and one column per name."
            )

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def channels_first(self) -> np.ndarray:
        """The same images as uint8 [N, C, H, W], as an ImageSet keeps them."""
        return np.ascontiguousarray(self.pixels.transpose(0, 3, 1, 2))
