"""Which client network to put on a device: quality against milliseconds, on trained weights.

Every variant is trained on the same images, for the same number of them, exported, and finishes the same true
noised images at the cut, so that no server stands between the variants. The loss is the design's objective on
held-out images over the client's noise range; the Fréchet distance is in the features of a classifier trained on
the same data set, finished held-out images against other held-out ones.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cli.console import reporting
from collafuse.config import Config, from_mapping
from collafuse.data.dealing import load_site
from collafuse.data.imageset import ImageSet
from collafuse.evaluation.classifier import Classifier, train_classifier
from collafuse.evaluation.quality import frechet_distance
from collafuse.learning.networks import num_parameters
from collafuse.learning.objective import denoising_loss
from collafuse.learning.training import to_float
from collafuse.nodes.client import Client
from collafuse.nodes.runfolder import RunFolder
from edge_client import Finisher
from export.writer import export_client

from .judge import noised

VARIANTS: dict[str, dict[str, Any]] = {
    "width-16": {"channels": 16, "multipliers": [1, 2], "blocks": 1},
    "width-32": {"channels": 32, "multipliers": [1, 2], "blocks": 1},
    "width-48": {"channels": 48, "multipliers": [1, 2], "blocks": 1},
    "blocks-2": {"channels": 32, "multipliers": [1, 2], "blocks": 2},
    "levels-3": {"channels": 32, "multipliers": [1, 2, 2], "blocks": 1},
    "attention": {"channels": 32, "multipliers": [1, 2], "blocks": 1, "attention": [8]},
    "no-norm": {"channels": 32, "multipliers": [1, 2], "blocks": 1, "norm": "none"},
}
"""Around the middle one (width-32), one thing changed at a time."""
CUT = {"t": 0.2, "schedule": "cosine"}
CALLS = 10
ROUNDS = 15
LEVELS = 8
SAMPLES = 2000


@dataclass(frozen=True)
class Row:
    """What one variant reached. loss and frechet: lower is better."""

    parameters: int
    loss: float
    frechet: float
    finisher: Finisher


def main(data: Path, out: Path, images: int, side: int, names: list[str]) -> None:
    """Train what is not trained yet, measure all, print the table."""
    config = _config(data, images, side)
    site = load_site(config, next(iter(config.clients)))
    half = len(site.held_out) // 2
    count = min(half, SAMPLES)
    given, reference = (site.held_out.take(np.arange(start, start + count)) for start in (0, half))
    classifier = train_classifier(site.train)
    floor = frechet_distance(classifier.features(given.pixels), classifier.features(reference.pixels))
    rows = {}
    for name in names:
        client = Client(config, name, site)
        rows[name] = _row(client, config, RunFolder(out), given, reference, classifier)
    latencies = _latencies({name: row.finisher for name, row in rows.items()})
    print(
        f"{images} training images of {side}x{side} each, cut at {config.clients[names[0]].cut.resolve().describe()}; "
        f"classifier right on {classifier.accuracy(site.held_out):.1%} of held-out images; Frechet distance of real "
        f"to real {floor:.2f} with {count} images on each side.\n"
    )
    print("| variant | parameters | held-out loss | Frechet | ms per call |\n|---|---|---|---|---|")
    for name, row in rows.items():
        print(f"| {name} | {row.parameters:,} | {row.loss:.4f} | {row.frechet:.2f} | {latencies[name]:.2f} |")


def _config(data: Path, images: int, side: int) -> Config:
    batch = 64
    training = {
        "steps": images // batch, "batch_size": batch, "warmup_steps": 100, "ema_halflife_images": images // 20,
        "sample_every": 10**9, "checkpoint_every": 200, "learning_rate": 1e-3,
    }  # fmt: skip
    return from_mapping(
        {
            "data": {
                "dataset": "folder", "image_size": side, "channels": 3, "held_out": 0.1,
                "horizontal_flip": True,
            },
            "client": {"cut": CUT, "training": training, "sampler": {"steps": 6, "sigma_low": 0.02}},
            "clients": {name: {"network": network, "path": str(data)} for name, network in VARIANTS.items()},
        }
    )  # fmt: skip


def _row(
    client: Client, config: Config, run: RunFolder, given: ImageSet, reference: ImageSet, classifier: Classifier
) -> Row:
    folder = run.client(client.name)
    with reporting() as reporter:
        model = client.train(folder, torch.device("cpu"), reporter.observer(client.name), resume=True)
    bundle = folder.path / "client.onnx"
    export_client(model, client.settings, client.name, bundle, overwrite=True)
    finisher = Finisher.load(bundle, threads=1)
    finished = finisher.finish(noised(given, client.settings.handover_sigma, np.random.default_rng(0))).transpose(
        0, 3, 1, 2
    )
    frechet = frechet_distance(classifier.features(finished), classifier.features(reference.pixels))
    loss = _held_out_loss(model.denoiser, given, client.settings.handover_sigma)
    return Row(num_parameters(model.denoiser), loss, frechet, finisher)


@torch.inference_mode()
def _held_out_loss(denoiser: torch.nn.Module, images: ImageSet, sigma_high: float) -> float:
    """The objective, averaged over levels evenly spaced in ln sigma from 0.02 to the cut."""
    generator = torch.Generator().manual_seed(0)
    conditions = torch.from_numpy(images.conditions())
    z, floor = to_float(torch.from_numpy(images.pixels)), torch.zeros(len(images))
    losses = []
    for level in np.geomspace(0.02, sigma_high, LEVELS):
        noise, sigma = torch.randn(z.shape, generator=generator), torch.full((len(z),), float(level))
        for rows in torch.arange(len(z)).split(200):
            part: NDArray[Any] | Any = conditions[rows]
            losses.append(
                denoising_loss(
                    lambda x, s, part=part: denoiser(x, s, part), z[rows], floor[rows], sigma[rows], noise[rows], 0.5
                )
            )
    return float(torch.cat(losses).mean())


def _latencies(finishers: Mapping[str, Finisher]) -> dict[str, float]:
    """Milliseconds per network evaluation of one image, one thread: medians of alternating rounds."""
    measured: dict[str, list[float]] = {name: [] for name in finishers}
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
    parser.add_argument("--images", type=int, default=64_000, help="training images per variant")
    parser.add_argument("--size", type=int, default=32, help="side in pixels")
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, default=list(VARIANTS), metavar="NAME")
    given = parser.parse_args()
    main(given.data, given.out, given.images, given.size, given.variants)
