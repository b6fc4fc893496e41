"""Which client network to put on a device: quality against milliseconds, on trained weights.

Every variant is trained on the same images, exported in fp32 and int8, and finishes the same true noised images at the
cut, so that no server stands between the variants. Designs want different learning rates, so each variant first tries
all of ``--learning-rates`` on a quarter of the images, and the best of them trains it in full. The loss is the
project's objective on held-out images over the client's noise range, at fixed levels; the Fréchet distance is in the
features of a classifier trained on the same data set, finished held-out images against other held-out ones. What has
been trained is kept in ``--out``; an interrupted command goes on.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cli.console import reporting
from collafuse.config import Config, from_mapping
from collafuse.core import intermediate
from collafuse.core.conditioning import conditions_from_labels
from collafuse.data.dealing import SiteData, load_site
from collafuse.data.imageset import ImageSet
from collafuse.evaluation.classifier import Classifier, train_classifier
from collafuse.evaluation.quality import frechet_distance
from collafuse.learning.networks import num_parameters
from collafuse.learning.objective import denoising_loss
from collafuse.learning.training import to_float
from collafuse.learning.weights import TrainedModel
from collafuse.nodes.client import Client
from collafuse.nodes.runfolder import RunFolder
from edge_client import Finisher
from export.writer import export_client

from .judge import noised

MIDDLE: dict[str, Any] = {"channels": 32, "multipliers": [1, 2], "blocks": 1}
VARIANTS: dict[str, dict[str, Any]] = {
    "width-16": MIDDLE | {"channels": 16},
    "width-32": MIDDLE,
    "width-48": MIDDLE | {"channels": 48},
    "blocks-2": MIDDLE | {"blocks": 2},
    "levels-3": MIDDLE | {"multipliers": [1, 2, 2]},
    "attention": MIDDLE | {"attention": [8]},
    "no-norm": MIDDLE | {"norm": "none"},
    "magnitude": MIDDLE | {"norm": "magnitude"},
}
"""Around the middle one (width-32, with group norm), one thing changed at a time."""
CUT = {"t": 0.2, "schedule": "cosine"}
LEARNING_RATES = (1e-3, 3e-3, 1e-2)
SEARCHED = 4
"""Learning rates are compared on one of so many images."""
BATCH = 64
PRECISIONS = ("fp32", "int8")
CALIBRATION = 256
CALLS = 10
ROUNDS = 15
LEVELS = 6
JUDGED = 512
"""Held-out images of the loss, each at every level with the same noise for all variants."""
SAMPLES = 1000
"""Images on each side of the Fréchet distance."""
CLASSIFIER_STEPS = 400

Denoise = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Row:
    """What one variant reached, in each precision. losses, frechet: lower is better."""

    learning_rate: float
    parameters: int
    losses: dict[str, float]
    frechet: float
    finishers: dict[str, Finisher]


@dataclass(frozen=True)
class Ablation:
    """The images, half of the held-out ones to finish and half to compare with, and where trainings lie."""

    data: Path
    side: int
    out: Path
    site: SiteData
    given: ImageSet
    reference: ImageSet

    @classmethod
    def of(cls, data: Path, side: int, out: Path) -> Ablation:
        config = _config(data, side, "any", MIDDLE, BATCH, LEARNING_RATES[0])
        site = load_site(config, "any")
        half = len(site.held_out) // 2
        parts = (site.held_out.take(np.arange(start, start + min(half, SAMPLES))) for start in (0, half))
        return cls(data, side, out, site, *parts)

    def trained(self, variant: str, images: int, rate: float) -> tuple[TrainedModel, Client]:
        """A variant, trained on so many images; at once where that was done before."""
        name = f"{variant}-{rate * 1e4:.0f}e-4-{images}"
        client = Client(_config(self.data, self.side, name, VARIANTS[variant], images, rate), name, self.site)
        with reporting() as reporter:
            observer = reporter.observer(name)
            model = client.train(self.folder(client), torch.device("cpu"), observer, resume=True)
        return model, client

    def folder(self, client: Client) -> Any:
        return RunFolder(self.out).client(client.name)

    def best_rate(self, variant: str, images: int, rates: Sequence[float]) -> float:
        """The learning rate with the least held-out loss."""
        if len(rates) == 1:
            return rates[0]
        losses = {}
        for rate in rates:
            model, client = self.trained(variant, images, rate)
            losses[rate] = self.loss(model.denoiser, client.settings.handover_sigma)
        found = ", ".join(f"{rate:g}: {loss:.4f}" for rate, loss in losses.items())
        print(f"{variant}: held-out loss by learning rate after {images} images: {found}", flush=True)
        return min(losses, key=lambda rate: losses[rate])

    def row(self, variant: str, images: int, rate: float, classifier: Classifier) -> Row:
        """Train a variant in full, export it in each precision, and measure what comes out."""
        model, client = self.trained(variant, images, rate)
        finishers = {precision: self._bundle(model, client, precision) for precision in PRECISIONS}
        sigma = client.settings.handover_sigma
        given = noised(self.given, sigma, np.random.default_rng(0))
        finished = finishers["fp32"].finish(given).transpose(0, 3, 1, 2)
        return Row(
            rate,
            num_parameters(model.denoiser),
            {precision: self.loss(_on_arrays(finisher), sigma) for precision, finisher in finishers.items()},
            frechet_distance(classifier.features(finished), classifier.features(self.reference.pixels)),
            finishers,
        )

    def _bundle(self, model: TrainedModel, client: Client, precision: str) -> Finisher:
        folder = self.folder(client).path
        bundle, calibration = folder / f"{precision}.onnx", folder / "calibration.safetensors"
        shaping = self.site.train.take(np.arange(CALIBRATION))
        data = intermediate.to_bytes(noised(shaping, client.settings.handover_sigma, np.random.default_rng(1)))
        calibration.write_bytes(data)
        export_client(
            model, client.settings, client.name, bundle,
            precision=precision, intermediates=calibration, force=True, overwrite=True,
        )  # fmt: skip
        return Finisher.load(bundle, threads=1)

    @torch.inference_mode()
    def loss(self, denoise: Denoise, sigma_high: float) -> float:
        """The objective, averaged over levels evenly spaced in ln sigma from 0.02 to the cut."""
        images, generator = self.given.take(np.arange(min(JUDGED, len(self.given)))), torch.Generator().manual_seed(0)
        conditions = torch.from_numpy(conditions_from_labels(images.labels, len(images), len(images.label_names)))
        z, floor = to_float(torch.from_numpy(images.pixels)), torch.zeros(len(images))
        losses = []
        for level in np.geomspace(0.02, sigma_high, LEVELS):
            noise, sigma = torch.randn(z.shape, generator=generator), torch.full((len(z),), float(level))
            for rows in torch.arange(len(z)).split(200):
                part: Any = conditions[rows]
                losses.append(
                    denoising_loss(
                        lambda x, s, part=part: denoise(x, s, part), z[rows], floor[rows], sigma[rows], noise[rows], 0.5
                    )
                )
        return float(torch.cat(losses).mean())


def main(data: Path, out: Path, images: int, side: int, names: Sequence[str], rates: Sequence[float]) -> None:
    """Train what is not trained yet, measure all, print the table."""
    tried = images // SEARCHED
    total = len(names) * (images + (tried * len(rates) if len(rates) > 1 else 0))
    print(f"{len(names)} variants learn from {total:,} images in all; what is done is kept in {out}.", flush=True)
    ablation = Ablation.of(data, side, out)
    chosen = {name: ablation.best_rate(name, tried, rates) for name in names}
    classifier = train_classifier(ablation.site.train, steps=CLASSIFIER_STEPS)
    given, reference = ablation.given.pixels, ablation.reference.pixels
    floor = frechet_distance(classifier.features(given), classifier.features(reference))
    rows = {name: ablation.row(name, images, rate, classifier) for name, rate in chosen.items()}
    latencies = _latencies({(name, p): row.finishers[p] for name, row in rows.items() for p in PRECISIONS})
    cut = rows[names[0]].finishers["fp32"].bundle.info.sigma_max
    print(
        f"\n{images} training images of {side}x{side} each, cut at sigma {cut:.3g}; classifier right on "
        f"{classifier.accuracy(ablation.site.held_out):.1%} of held-out images; Frechet distance of real to real "
        f"{floor:.2f} with {len(given)} images on each side.\n"
    )
    print(
        "| variant | learning rate | parameters | held-out loss | in int8 | Frechet | ms per call | in int8 |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    for name, row in rows.items():
        losses = " | ".join(f"{row.losses[p]:.4f}" for p in PRECISIONS)
        ms = " | ".join(f"{latencies[name, p]:.2f}" for p in PRECISIONS)
        print(f"| {name} | {row.learning_rate:g} | {row.parameters:,} | {losses} | {row.frechet:.2f} | {ms} |")


def _config(data: Path, side: int, name: str, network: Mapping[str, Any], images: int, rate: float) -> Config:
    training = {
        "steps": images // BATCH, "batch_size": BATCH, "warmup_steps": min(100, images // BATCH // 5),
        "ema_halflife_images": images // 20, "sample_every": 10**9, "checkpoint_every": 200, "learning_rate": rate,
    }  # fmt: skip
    return from_mapping(
        {
            "data": {
                "dataset": "folder", "image_size": side, "channels": 3, "held_out": 0.1,
                "horizontal_flip": True, "path": str(data),
            },
            "client": {
                "cut": CUT, "network": dict(network), "training": training,
                "sampler": {"steps": 6, "sigma_low": 0.02},
            },
            "clients": {name: {}},
        }
    )  # fmt: skip


def _on_arrays(finisher: Finisher) -> Denoise:
    """A bundle as a denoiser of torch's tensors."""

    def denoise(x: Tensor, sigma: Tensor, conditions: Tensor) -> Tensor:
        return torch.from_numpy(finisher.model(x.numpy(), float(sigma[0]), conditions.numpy()))

    return denoise


def _latencies(finishers: Mapping[tuple[str, str], Finisher]) -> dict[tuple[str, str], float]:
    """Milliseconds per network evaluation of one image, one thread: medians of alternating rounds."""
    measured: dict[tuple[str, str], list[float]] = {name: [] for name in finishers}
    for _ in range(ROUNDS):
        for name, finisher in finishers.items():
            info = finisher.bundle.info
            x = np.zeros((1, *info.image_shape), dtype=np.float32)
            conditions = conditions_from_labels(None, 1, len(info.label_names))
            started = time.perf_counter()
            for _ in range(CALLS):
                finisher.model(x, info.sigma_max, conditions)
            measured[name].append((time.perf_counter() - started) / CALLS * 1000)
    return {name: statistics.median(times) for name, times in measured.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.client_ablation", description=__doc__)
    parser.add_argument("data", type=Path, help="folder of images, one sub-folder per label")
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"), help="where trainings lie and resume")
    parser.add_argument("--images", type=int, default=64_000, help="training images per variant")
    parser.add_argument("--size", type=int, default=32, help="side in pixels")
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, default=list(VARIANTS), metavar="NAME")
    parser.add_argument("--learning-rates", nargs="*", type=float, default=LEARNING_RATES, metavar="RATE")
    given = parser.parse_args()
    main(given.data, given.out, given.images, given.size, given.variants, given.learning_rates)
