"""Small real parts that several tests share: networks, images, an observer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from collafuse.config import NetworkSettings, TrainingSettings
from collafuse.core.conditioning import ConditionSpace, TextSpace
from collafuse.data.images import pixel_digest
from collafuse.data.imageset import ImageSet
from collafuse.learning.denoiser import Denoiser

torch.set_num_threads(1)  # networks this small run fastest so, and two test processes do not get in each other's way

NETWORK = NetworkSettings(channels=8, multipliers=(1,), blocks=1)
CPU = torch.device("cpu")


def training_settings(**changes: Any) -> TrainingSettings:
    """Six steps, each logged, with dropout of labels."""
    values: dict[str, Any] = {"steps": 6, "batch_size": 4, "warmup_steps": 2, "label_dropout": 0.3, "log_every": 1}
    return TrainingSettings(**(values | {"checkpoint_every": 3, "ema_halflife_images": 50} | changes))


def denoiser(
    network: NetworkSettings = NETWORK,
    image_shape: tuple[int, int, int] = (1, 4, 4),
    label_names: tuple[str, ...] = ("a", "b"),
    seed: int = 0,
    text: TextSpace | None = None,
) -> Denoiser:
    """A denoiser with the weights of a seed; every weight is away from zero, also those that start there."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = Denoiser(network, image_shape, ConditionSpace(label_names, text))
        for parameter in made.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
    return made


def image_set(count: int, label_names: tuple[str, ...] = ("a", "b"), side: int = 4, seed: int = 0) -> ImageSet:
    """Random grey images, labelled in turn."""
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 256, (count, 1, side, side), dtype=np.uint8)
    labels = np.zeros((count, len(label_names)), dtype=np.uint8)
    if label_names:
        labels[np.arange(count), np.arange(count) % len(label_names)] = 1
    digests = b"".join(pixel_digest(one.transpose(1, 2, 0)) for one in pixels)
    return ImageSet(pixels, labels, label_names, np.frombuffer(digests, dtype=np.uint8).reshape(count, 32))


@dataclass
class Recorder:
    """Keeps what a training tells its observer."""

    notes: list[str] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)
    starts: list[tuple[int, int]] = field(default_factory=list)
    sheets: list[int] = field(default_factory=list)

    def started(self, step: int, total: int) -> None:
        self.starts.append((step, total))

    def note(self, text: str) -> None:
        self.notes.append(text)

    def logged(self, record: dict[str, Any]) -> None:
        self.records.append(record)

    def sampled(self, step: int, denoiser: Denoiser) -> None:
        self.sheets.append(step)
