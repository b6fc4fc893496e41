"""A cell's figures: what it generates beside held-out images, in the features of one classifier for the whole study."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from collafuse.core import tensorfile
from collafuse.core.conditioning import translate_labels
from collafuse.data.imageset import ImageSet
from collafuse.evaluation.classifier import Classifier, Network, train_classifier
from collafuse.evaluation.comparison import compare, share
from collafuse.evaluation.generated import Generated
from collafuse.evaluation.mixing import strata_of

from .sites import SEED

NAME = "judge.safetensors"
STEPS = 2_000
"""Of the classifier's training."""


class Judge:
    """A classifier trained once on images that nobody else sees, kept in the work folder."""

    def __init__(self, images: ImageSet, reference: ImageSet, work: Path) -> None:
        path = work / NAME
        if path.exists():
            self.classifier = _load(path, images.pixels.shape[1:], len(images.label_names))
        else:
            self.classifier = train_classifier(images, seed=SEED, steps=STEPS)
            state = {name: tensor.numpy() for name, tensor in self.classifier.network.state_dict().items()}
            tensorfile.write(path, "judge", 1, {}, state)
        self.names = images.label_names
        self.accuracy = self.classifier.accuracy(reference)
        self.digest = tensorfile.file_digest(path)[:16]

    def figures(self, made: Generated, real: ImageSet) -> dict[str, list[float]]:
        """Each figure with its spread over half-samples, and the share read as asked."""
        assert made.labels is not None
        rng = np.random.default_rng(SEED)
        mine, theirs = rng.permutation(len(made)), rng.permutation(len(real))
        asked = translate_labels(made.labels, made.label_names, real.label_names)
        strata = strata_of(asked, len(made))[mine], strata_of(real.labels, len(real))[theirs]
        features = [self.classifier.features(part) for part in (made.channels_first[mine], real.pixels[theirs])]
        figures = compare(features[0], features[1], strata, rng)
        right = self.classifier.shows(made.channels_first, translate_labels(asked, real.label_names, self.names))
        return {name: [one.value, one.spread] for name, one in (figures | {"read_as_asked": share(right)}).items()}


def pooled(parts: Mapping[str, Generated]) -> Generated:
    """What was generated for several sites, as one set over all of their labels."""
    names = tuple(sorted({name for one in parts.values() for name in one.label_names}))
    labels = [translate_labels(one.labels, one.label_names, names) for one in parts.values() if one.labels is not None]
    pixels = np.concatenate([one.pixels for one in parts.values()])
    return Generated(pixels, np.concatenate(labels), names)


def _load(path: Path, image_shape: tuple[int, int, int], num_labels: int) -> Classifier:
    network = Network(image_shape, num_labels)
    tensors = tensorfile.read(path, "judge", 1).tensors
    network.load_state_dict({name: torch.from_numpy(array) for name, array in tensors.items()})
    return Classifier(network.eval())
