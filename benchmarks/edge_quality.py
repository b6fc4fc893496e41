"""Quality rows of bench-edge: what few steps, a precision and a small network cost, in Fréchet distance.

Two sources of intermediates: the run's own server, and held-out images noised to where the client takes over, which
is what a perfect server would deliver. The spread is that of three sets of intermediates.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from collafuse.core.intermediate import Intermediate
from collafuse.data.imageset import ImageSet
from collafuse.evaluation.classifier import Classifier, train_classifier
from collafuse.evaluation.measured import halves
from collafuse.evaluation.quality import frechet_distance
from edge_client import Finisher

from .edge_run import EdgeRun
from .judge import noised

IMAGES = 400
"""Enough for a ratio on two cores: with 40 steps an image takes an eighth of a second."""
SEEDS = (0, 1, 2)
CLASSIFIER_STEPS = 400


@dataclass(frozen=True)
class Ways:
    """The finishers that are compared."""

    default: Finisher
    many_steps: Finisher
    twin: Finisher


def quality_rows(edge: EdgeRun, ways: Ways) -> None:
    """Print the table: Fréchet distances to held-out images, medians and range over the seeds."""
    classifier = train_classifier(edge.site.train, steps=CLASSIFIER_STEPS)
    held_out = edge.site.held_out
    given, reference = halves(held_out)
    count = min(IMAGES, len(given))
    chosen = np.random.default_rng(0).choice(len(given), count, replace=False)
    features = classifier.features(reference.pixels)
    print(
        f"Features of a classifier that reads {classifier.accuracy(held_out):.1%} of held-out images; {count} images "
        f"against {len(reference)} held-out ones; real to real "
        f"{frechet_distance(classifier.features(given.pixels[chosen]), features):.2f}.\n"
    )
    default, many = ways.default.bundle.info.precision, ways.many_steps.settings.steps
    print(
        f"| intermediates | default ({default}, {ways.default.settings.steps} steps) | fp32, {many} steps "
        "| client of the server's size | default / many steps | default / server's size |\n|---|---|---|---|---|---|"
    )
    for name, source in (("server", _delivered(edge, count)), ("true noised", _noised(edge, given, count))):
        columns = {
            way: [_frechet(classifier, getattr(ways, way), one, features) for one in source] for way in vars(ways)
        }
        cells = [f"{statistics.median(v):.2f} ({min(v):.2f} to {max(v):.2f})" for v in columns.values()]
        ratios = [
            statistics.median(a / b for a, b in zip(columns["default"], columns[other], strict=True))
            for other in ("many_steps", "twin")
        ]
        print(f"| {name} | {' | '.join(cells)} | {ratios[0]:.3f} | {ratios[1]:.3f} |")


def _frechet(classifier: Classifier, finisher: Finisher, given: Intermediate, features: NDArray[np.float64]) -> float:
    finished = finisher.finish(given).transpose(0, 3, 1, 2)
    return frechet_distance(classifier.features(finished), features)


def _delivered(edge: EdgeRun, count: int) -> list[Intermediate]:
    return [edge.server.deliver(edge.name, count, seed=seed) for seed in SEEDS]


def _noised(edge: EdgeRun, images: ImageSet, count: int) -> list[Intermediate]:
    sigma = edge.config.client(edge.name).handover_sigma
    made = []
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        chosen = images.take(rng.choice(len(images), count, replace=False))
        made.append(noised(chosen, sigma, rng))
    return made
