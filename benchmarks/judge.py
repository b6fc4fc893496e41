"""Who judges pictures in these measurements: a classifier trained on half of a run's own training images.

Its features give the Fréchet distance, its reading the share of pictures that show what was asked for. Every table
says so, and real images against real ones, with as many on each side, stand beside. Those are of the other half: to a
classifier the images that it learned from look unlike any others, and generated ones would seem nearer than they.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from collafuse.core.intermediate import Intermediate
from collafuse.data.dealing import SiteData, load_sites
from collafuse.data.imageset import ImageSet
from collafuse.evaluation.classifier import Classifier, train_classifier
from collafuse.evaluation.measured import halves
from collafuse.evaluation.pooling import pooled
from collafuse.evaluation.quality import frechet_distance
from collafuse.nodes.runfolder import RunFolder


@dataclass(frozen=True)
class Judge:
    """All sites' images, with the labels of all in alphabetical order. train: those the sites trained on; learned: the
    half of them that the classifier learned from; real: the other half; held_out: those that nobody trained on."""

    sites: dict[str, SiteData]
    train: ImageSet
    learned: ImageSet
    real: ImageSet
    held_out: ImageSet
    classifier: Classifier

    @classmethod
    def of_run(cls, run: Path, steps: int = 1500) -> Judge:
        """The judge of a run of ``train`` or ``demo``; ``steps`` is how long its classifier trains."""
        sites = load_sites(RunFolder(run).read_config())
        train, held_out = (pooled({n: getattr(s, part) for n, s in sites.items()}) for part in ("train", "held_out"))
        learned, real = halves(train)
        return cls(sites, train, learned, real, held_out, train_classifier(learned, steps=steps))

    def introduce(self) -> str:
        """What every table says first."""
        right = self.classifier.accuracy(self.held_out)
        return (
            f"A classifier trained on {len(self.learned)} real images reads {right:.1%} of {len(self.held_out)} "
            "held-out ones; Frechet distances are in its features."
        )

    def frechet(self, pixels: NDArray[np.uint8], others: NDArray[np.uint8]) -> float:
        """Between two sets of images uint8 [N, C, H, W]."""
        return frechet_distance(self.classifier.features(pixels), self.classifier.features(others))

    def read_as(self, pixels: NDArray[np.uint8], names: NDArray[np.str_]) -> float:
        """Share of images uint8 [N, C, H, W] that show the label asked for [N]."""
        read = np.asarray(self.train.label_names)[self.classifier.read(pixels)]
        return float((read == names).mean())


def names_of(labels: NDArray[np.uint8], label_names: tuple[str, ...]) -> NDArray[np.str_]:
    """The name of each image's one label [N]."""
    return np.asarray(label_names)[labels.argmax(axis=1)]


def noised(images: ImageSet, sigma: float, rng: np.random.Generator) -> Intermediate:
    """Real images noised to a level: what a perfect server would deliver."""
    x = images.x0() + sigma * rng.standard_normal(images.pixels.shape)
    return Intermediate(
        x=x.astype(np.float32),
        sigma=sigma,
        labels=images.labels,
        label_names=images.label_names,
        server_model="none: true noised images",
        sampler="euler",
        nfe=0,
        guidance=1.0,
    )
