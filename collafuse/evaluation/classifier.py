"""A small classifier trained on a data set itself: it reads labels, and its last layer gives features.

Where no standard network is at hand this is the feature extractor; every table that uses it says so.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from ..data.imageset import ImageSet
from ..learning.training import batch_rows, keyed_seed, to_float

FEATURES = 64


class _Network(nn.Module):
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

    network: nn.Module

    @torch.inference_mode()
    def features(self, pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Features [N, 64] of images uint8 [N, C, H, W]."""
        return self.network.features(to_float(torch.from_numpy(pixels))).double().numpy()

    @torch.inference_mode()
    def read(self, pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
        """The label index [N] that each image uint8 [N, C, H, W] shows."""
        return self.network(to_float(torch.from_numpy(pixels))).argmax(dim=1).numpy()

    def accuracy(self, images: ImageSet) -> float:
        """Share of images that are read as their (single) label says."""
        return float((self.read(images.pixels) == images.labels.argmax(axis=1)).mean())


def train_classifier(images: ImageSet, *, seed: int = 0, steps: int = 1500, batch_size: int = 128) -> Classifier:
    """Train on images with one label each, on the CPU; the same seed gives the same classifier."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(keyed_seed(seed, "classifier"))
        network = _Network(images.pixels.shape[1:], len(images.label_names))
        x, labels = torch.from_numpy(images.pixels), torch.from_numpy(images.labels.argmax(axis=1))
        optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
        for step in range(steps):
            rows = batch_rows(len(x), batch_size, step, seed)
            optimizer.zero_grad()
            functional.cross_entropy(network(to_float(x[rows])), labels[rows]).backward()
            optimizer.step()
            schedule.step()
    return Classifier(network.eval())
