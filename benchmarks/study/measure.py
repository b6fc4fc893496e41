"""A cell's figures: what it generates beside held-out images, in the features of one classifier for the whole study."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from collafuse.core import tensorfile
from collafuse.core.conditioning import translate_labels
from collafuse.data.imageset import ImageSet
from collafuse.evaluation.classifier import Classifier, train_classifier
from collafuse.evaluation.comparison import compare
from collafuse.evaluation.generated import Generated

from .sites import SEED

NAME = "judge.safetensors"
STEPS = 2_000
"""Of the classifier's training."""


class Judge:
    """A classifier trained once on images that nobody else sees, kept in the work folder."""

    def __init__(self, images: ImageSet, reference: ImageSet, work: Path) -> None:
        path = work / NAME
        if path.exists():
            self.classifier = _load(path, images)
        else:
            self.classifier = train_classifier(images, seed=SEED, steps=STEPS)
            state = {name: tensor.numpy() for name, tensor in self.classifier.network.state_dict().items()}
            tensorfile.write(path, "judge", 1, {}, state)
        self.names = images.label_names
        self.accuracy = self.classifier.accuracy(reference)
        self.digest = tensorfile.file_digest(path)[:16]

    def figures(self, made: Generated, real: ImageSet) -> dict[str, list[float]]:
        """Each figure with its spread over half-samples, and the share read as asked."""
        pixels = made.channels_first
        rng = np.random.default_rng(SEED)
        order = rng.permutation(len(pixels)), rng.permutation(len(real))
        features, others = self.features(pixels[order[0]]), self.features(real.pixels[order[1]])
        figures = compare(features, others, np.random.default_rng(SEED))
        found = {name: [figure.value, figure.spread] for name, figure in figures.items()}
        if made.labels is not None:
            asked = np.asarray(made.label_names)[made.labels.argmax(axis=1)]
            right = np.asarray(self.names)[self.read(pixels)] == asked
            found["read_as_asked"] = [float(right.mean()), float(right.std() / np.sqrt(len(right)))]
        return found

    def features(self, pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Features [N, F] of images uint8 [N, C, H, W], in parts that fit into memory."""
        return np.concatenate([self.classifier.features(part) for part in _parts(pixels)])

    def read(self, pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
        """The label that each image shows."""
        return np.concatenate([self.classifier.read(part) for part in _parts(pixels)])


def pooled(parts: Mapping[str, Generated]) -> Generated:
    """What was generated for several sites, as one set over all of their labels."""
    names = tuple(sorted({name for one in parts.values() for name in one.label_names}))
    labels = [translate_labels(one.labels, one.label_names, names) for one in parts.values() if one.labels is not None]
    pixels = np.concatenate([one.pixels for one in parts.values()])
    return Generated(pixels, np.concatenate(labels), names)


def _parts(pixels: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    return np.array_split(pixels, max(1, len(pixels) // 1000))


def _load(path: Path, images: ImageSet) -> Classifier:
    classifier = train_classifier(images, seed=SEED, steps=2)  # for its network alone
    tensors = tensorfile.read(path, "judge", 1).tensors
    classifier.network.load_state_dict({name: torch.from_numpy(array) for name, array in tensors.items()})
    return classifier
