"""A small classifier trained on a data set itself: it reads labels, and its last layer gives features.

Where no standard network is at hand this is the feature extractor; every table that uses it says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from ..core.conditioning import Labels, one_label_each
from ..data.imageset import ImageSet
from ..learning.examples import batch_rows, to_float
from ..learning.seeds import keyed_seed

FEATURES = 64
BATCH, BATCH_PIXELS = 1024, 1 << 20
"""Images read at a time, and fewer of larger ones: each pixel takes 128 bytes in every layer."""


class Network(nn.Module):
    """Images [N, C, H, W] in [-1, 1] to a logit per label [N, K]; ``features`` is all but the last layer."""

    def __init__(self, image_shape: tuple[int, int, int], num_labels: int, width: int = 32) -> None:
        super().__init__()
        channels, height, width_px = image_shape
        self.features = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(2 * width * (height // 2) * (width_px // 2), FEATURES),
            nn.ReLU(),
        )
        self.head = nn.Linear(FEATURES, num_labels)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


@dataclass(frozen=True)
class Classifier:
    """A trained classifier; see :func:`train_classifier`."""

    network: Network
    one_label: bool = True
    """Whether each image that it learned from had exactly one label."""

    @torch.inference_mode()
    def features(self, pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Features [N, 64] of images uint8 [N, C, H, W]."""
        return torch.cat([self.network.features(x) for x in _batches(pixels)]).double().numpy()

    @torch.inference_mode()
    def read(self, pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
        """The label index [N] that each image uint8 [N, C, H, W] shows."""
        return torch.cat([self.network(x) for x in _batches(pixels)]).argmax(dim=1).numpy()

    @torch.inference_mode()
    def shows(self, pixels: NDArray[np.uint8], labels: Labels) -> NDArray[np.bool_]:
        """Whether each image uint8 [N, C, H, W] shows all of its labels [N, K]. What was learned with one label an
        image shows the likeliest, anything else each label that is likelier than not."""
        logits = torch.cat([self.network(x) for x in _batches(pixels)])
        if self.one_label:
            return logits.argmax(dim=1).numpy() == labels.argmax(axis=1)
        return ((logits > 0).numpy() | (labels == 0)).all(axis=1)

    def accuracy(self, images: ImageSet) -> float:
        """Share of the images with labels that show what these say; an image without says nothing to be read."""
        labelled = images.labels.any(axis=1)
        return float(self.shows(images.in_memory(), images.labels)[labelled].mean())


def _batches(pixels: NDArray[np.uint8]) -> Iterator[Tensor]:
    size = max(1, min(BATCH, BATCH_PIXELS // (pixels.shape[2] * pixels.shape[3])))
    return (to_float(part) for part in torch.from_numpy(pixels).split(size))


def train_classifier(
    images: ImageSet,
    *,
    seed: int = 0,
    steps: int = 1500,
    batch_size: int = 128,
    advance: Callable[[int], None] = lambda count: None,
) -> Classifier:
    """Train on labelled images, on the CPU; the same seed gives the same classifier. ``advance`` hears of each step.

    Where every image has exactly one label it learns to tell them apart, otherwise to tell for each label whether it
    is there.
    """
    one_label = one_label_each(images.labels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(keyed_seed(seed, "classifier"))
        network = Network(images.image_shape, len(images.label_names))
        x, targets = torch.from_numpy(images.in_memory()), torch.from_numpy(images.labels).float()
        loss = functional.cross_entropy if one_label else functional.binary_cross_entropy_with_logits
        optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
        for step in range(steps):
            rows = batch_rows(len(x), batch_size, step, seed)
            optimizer.zero_grad()
            loss(network(to_float(x[rows])), targets[rows]).backward()
            optimizer.step()
            schedule.step()
            advance(1)
    return Classifier(network.eval(), one_label)
