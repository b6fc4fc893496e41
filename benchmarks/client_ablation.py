"""Which client network to put on a device: quality against milliseconds, on trained weights.

Every variant is trained on the same images, exported in fp32 and int8, and finishes the same true noised images, so
that no server stands between the variants. Designs want different learning rates, so each variant is trained with all
of ``--learning-rates`` and shown with the best. The loss is the project's objective on held-out images over
the client's noise range, at fixed levels; the Fréchet distance is in the features of a classifier trained on the same
data set, finished held-out images against other held-out ones: with few steps in each precision, and with many in fp32.
With ``--server-steps N`` a server learns from a release of the same images first, and each variant also finishes what
it delivers. What has been trained is kept in ``--out``; an interrupted command goes on.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cli.console import reporting
from collafuse.config import Config, from_mapping
from collafuse.core import intermediate
from collafuse.core.intermediate import Intermediate
from collafuse.data.dealing import SiteData, load_site
from collafuse.data.imageset import ImageSet
from collafuse.evaluation.classifier import Classifier, train_classifier
from collafuse.evaluation.measured import halves
from collafuse.evaluation.quality import frechet_distance
from collafuse.learning.examples import to_float
from collafuse.learning.networks import num_parameters
from collafuse.learning.objective import denoising_loss
from collafuse.learning.weights import TrainedModel
from collafuse.nodes.client import Client
from collafuse.nodes.runfolder import NodeFolder, RunFolder
from edge_client import Finisher
from export.writer import export_client

from .ablation_server import delivered
from .judge import noised

MIDDLE: dict[str, Any] = {"channels": 32, "multipliers": [1, 2], "blocks": 1, "norm": "group"}
VARIANTS: dict[str, dict[str, Any]] = {
    "width-16": MIDDLE | {"channels": 16},
    "width-32": MIDDLE,
    "width-48": MIDDLE | {"channels": 48},
    "blocks-2": MIDDLE | {"blocks": 2},
    "levels-3": MIDDLE | {"multipliers": [1, 2, 2]},
    "attention": MIDDLE | {"attention": [8]},
    "no-norm": MIDDLE | {"norm": "none"},
    "no-norm-blocks-2": MIDDLE | {"blocks": 2, "norm": "none"},
    "magnitude": MIDDLE | {"norm": "magnitude"},
}
"""Around the middle one (width-32, with group norm), one thing changed at a time."""
CUT = {"t": 0.2, "schedule": "cosine"}
LEARNING_RATES = (1e-3, 3e-3, 1e-2)
BATCH = 64
PRECISIONS = ("fp32", "int8")
FEW, MANY = 6, 40
"""Finishing steps: those that a bundle of these recommends, and more than make a difference."""
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
    """What one variant reached at its best learning rate. losses: of fp32 by learning rate, and in int8; frechet: by
    precision with FEW steps, and with MANY in fp32; behind_server: as ``frechet``, of what the server delivered."""

    by_rate: dict[float, float]
    parameters: int
    in_int8: float
    frechet: dict[str, float]
    with_many: float
    behind_server: dict[str, float]
    finishers: dict[str, Finisher]


@dataclass(frozen=True)
class Ablation:
    """The images, half of the held-out ones to finish and half to compare with, and where trainings lie.

    served: what a server delivered, where one was asked for."""

    data: Path
    side: int
    images: int
    handover: float
    out: Path
    site: SiteData
    given: ImageSet
    reference: ImageSet
    served: Intermediate | None = None

    @classmethod
    def of(cls, data: Path, side: int, images: int, handover: float, out: Path) -> Ablation:
        config = _config(data, side, "any", MIDDLE, BATCH, LEARNING_RATES[0], handover)
        site = load_site(config, "any")
        rng = np.random.default_rng(0)
        parts = (half.take(rng.permutation(len(half))[:SAMPLES]) for half in halves(site.held_out))
        return cls(data, side, images, handover, out, site, *parts)

    def with_server(self, steps: int, rate: float) -> Ablation:
        """With what a server delivers after so many steps at this learning rate."""
        name = f"server-{steps}-{_in_a_name(rate)}{self._suffix}"
        config = _config(self.data, self.side, "site", MIDDLE, steps * BATCH, rate, self.handover)
        return replace(self, served=delivered(config, self.site, RunFolder(self.out / name), steps, len(self.given)))

    def trained(self, variant: str, rate: float) -> tuple[TrainedModel, Client]:
        """A variant, trained; at once where that was done before."""
        name = f"{variant}-{_in_a_name(rate)}-{self.images}{self._suffix}"
        config = _config(self.data, self.side, name, VARIANTS[variant], self.images, rate, self.handover)
        client = Client(config, name, self.site)
        with reporting() as reporter:
            observer = reporter.observer(name)
            model = client.train(self.folder(client), torch.device("cpu"), observer, resume=True)
        return model, client

    @property
    def _suffix(self) -> str:
        return "" if self.handover == 1 else f"-from-{self.handover * 100:.0f}"

    def folder(self, client: Client) -> NodeFolder:
        return RunFolder(self.out).client(client.name)

    def row(self, variant: str, rates: Sequence[float], classifier: Classifier) -> Row:
        """Train a variant at each rate, export the best in each precision, and measure what comes out."""
        done = {rate: self.trained(variant, rate) for rate in rates}
        sigma = done[rates[0]][1].settings.handover_sigma
        losses = {rate: self.loss(model.denoiser, sigma) for rate, (model, _) in done.items()}
        model, client = done[min(losses, key=lambda rate: losses[rate])]
        finishers = {precision: self._bundle(model, client, precision) for precision in PRECISIONS}
        given, real = noised(self.given, sigma, np.random.default_rng(0)), classifier.features(self.reference.pixels)

        def distance(finisher: Finisher, given: Intermediate = given) -> float:
            return frechet_distance(classifier.features(finisher.finish(given).transpose(0, 3, 1, 2)), real)

        exact = finishers["fp32"]
        return Row(
            losses,
            num_parameters(model.denoiser),
            self.loss(_on_arrays(finishers["int8"]), sigma),
            {precision: distance(finisher) for precision, finisher in finishers.items()},
            distance(Finisher(exact.bundle, exact.model, replace(exact.settings, steps=MANY))),
            {p: distance(one, self.served) for p, one in finishers.items()} if self.served is not None else {},
            finishers,
        )

    def _bundle(self, model: TrainedModel, client: Client, precision: str) -> Finisher:
        folder = self.folder(client).path
        bundle, calibration = folder / f"{precision}.onnx", folder / "calibration.safetensors"
        train = self.site.train
        shaping = train.take(np.random.default_rng(0).choice(len(train), CALIBRATION, replace=False))
        data = intermediate.to_bytes(noised(shaping, client.settings.handover_sigma, np.random.default_rng(1)))
        calibration.write_bytes(data)
        export_client(
            model, client.settings, client.name, bundle,
            precision=precision, intermediates=calibration, force=True, overwrite=True,
        )  # fmt: skip
        return Finisher.load(bundle, threads=1)

    @torch.inference_mode()
    def loss(self, denoise: Denoise, sigma_high: float) -> float:
        """The objective, averaged over levels evenly spaced in ln sigma from 0.02 to where the client takes over."""
        images, generator = self.given.take(np.arange(min(JUDGED, len(self.given)))), torch.Generator().manual_seed(0)
        conditions = torch.from_numpy(images.conditions())
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


def main(ablation: Ablation, names: Sequence[str], rates: Sequence[float], server_steps: int) -> None:
    """Train what is not trained yet, measure all, print the table."""
    images, side = ablation.images, ablation.side
    print(
        f"{len(names)} variants learn from {images:,} images at each of {len(rates)} learning rates; what is done is "
        f"kept in {ablation.out}.",
        flush=True,
    )
    if server_steps:
        ablation = ablation.with_server(server_steps, max(rates))
    classifier = train_classifier(ablation.site.train, steps=CLASSIFIER_STEPS)
    given, reference = ablation.given.pixels, ablation.reference.pixels
    floor = frechet_distance(classifier.features(given), classifier.features(reference))
    rows = {name: ablation.row(name, rates, classifier) for name in names}
    latencies = _latencies({(name, p): row.finishers[p] for name, row in rows.items() for p in PRECISIONS})
    level = rows[names[0]].finishers["fp32"].bundle.info.sigma_max
    print(
        f"\n{images} training images of {side}x{side} each, finished from sigma {level:.3g}; classifier right on "
        f"{classifier.accuracy(ablation.site.held_out):.1%} of held-out images; Frechet distance of real to real "
        f"{floor:.2f} with {len(given)} images on each side.\n"
    )
    behind = ["behind the server", "behind it in int8"] if server_steps else []
    head = ["variant", "parameters", *(f"loss at {rate:g}" for rate in rates), "best, in int8"]
    head += [f"Frechet, {MANY} steps", f"{FEW} steps", f"{FEW} in int8", *behind, "ms per call", "in int8"]
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for name, row in rows.items():
        losses = " | ".join(f"{row.by_rate[rate]:.4f}" for rate in rates)
        ms = " | ".join(f"{latencies[name, p]:.2f}" for p in PRECISIONS)
        distances = (row.with_many, *row.frechet.values(), *row.behind_server.values())
        frechets = " | ".join(f"{value:.2f}" for value in distances)
        print(f"| {name} | {row.parameters:,} | {losses} | {row.in_int8:.4f} | {frechets} | {ms} |")


def _config(
    data: Path, side: int, name: str, network: Mapping[str, Any], images: int, rate: float, handover: float
) -> Config:
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
                "cut": CUT, "handover": handover, "network": dict(network), "training": training,
                "sampler": {"steps": FEW, "sigma_low": 0.02},
            },
            "clients": {name: {}},
        }
    )  # fmt: skip


def _in_a_name(rate: float) -> str:
    """A learning rate as a folder and a client may be named: 0.0025 as 0-0025."""
    return f"{rate:g}".replace(".", "-")


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
            conditions = info.space.conditions(1, None)
            started = time.perf_counter()
            for _ in range(CALLS):
                finisher.model(x, info.sigma_max, conditions)
            measured[name].append((time.perf_counter() - started) / CALLS * 1000)
    return {name: statistics.median(times) for name, times in measured.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.client_ablation", description=__doc__)
    parser.add_argument("data", type=Path, help="folder of images, one sub-folder per label")
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"), help="where trainings lie and resume")
    parser.add_argument("--images", type=int, default=32_000, help="images each training learns from")
    parser.add_argument("--size", type=int, default=32, help="side in pixels")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME")
    parser.add_argument("--learning-rates", nargs="+", type=float, default=LEARNING_RATES, metavar="RATE")
    parser.add_argument("--server-steps", type=int, default=0, help="also finish behind a server trained so long")
    parser.add_argument("--handover", type=float, default=2.0, help="the client takes over at so many times the cut")
    given = parser.parse_args()
    ablation = Ablation.of(given.data, given.size, given.images, given.handover, given.out)
    main(ablation, given.variants, given.learning_rates, given.server_steps)
