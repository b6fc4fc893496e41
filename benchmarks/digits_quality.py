"""Quality of the digits that the demo finishes, against real ones that nobody trained on.

Features are those of a small classifier trained on the sites' real training digits. Real against real, with
the same number of images, stands beside every figure.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch

from collafuse.data.dealing import SiteData, load_sites
from collafuse.data.imageset import ImageSet
from collafuse.evaluation.classifier import train_classifier
from collafuse.evaluation.quality import frechet_distance, nearest_distances
from collafuse.learning import weights
from collafuse.nodes.runfolder import RunFolder
from collafuse.nodes.server import Server
from edge_client import Finisher
from export.writer import export_client

IMAGES_PER_LABEL = 180
SEEDS = (0, 1, 2)
DIGITS = tuple("0123456789")


def main(run: Path) -> None:
    """Print a table for one run folder."""
    server = Server.load(RunFolder(run).server, torch.device("cpu"))
    sites = load_sites(RunFolder(run).read_config())
    train, held_out = (_pooled(sites, part) for part in ("train", "held_out"))
    classifier = train_classifier(train)
    print(
        f"a classifier trained on {len(train)} real digits reads {classifier.accuracy(held_out):.1%} "
        f"of {len(held_out)} held-out ones\n"
    )
    print(
        "| seed | images | read as asked | Frechet, finished | Frechet, real | ratio "
        "| nearest training digit, finished / held-out |"
    )
    print("|---|---|---|---|---|---|---|")
    held_features, real_features = classifier.features(held_out.pixels), classifier.features(train.pixels)
    to_nearest = nearest_distances(held_out.pixels, train.pixels).mean()
    for seed in SEEDS:
        pixels, asked = _finished(run, server, seed)
        rng = np.random.default_rng(seed)
        some = rng.choice(len(pixels), len(held_out), replace=False)
        real = rng.choice(len(train), len(held_out), replace=False)
        ours = frechet_distance(classifier.features(pixels[some]), held_features)
        floor = frechet_distance(real_features[real], held_features)
        nearest = nearest_distances(pixels, train.pixels).mean()
        print(
            f"| {seed} | {len(pixels)} | {(classifier.read(pixels) == asked).mean():.1%} | {ours:.1f} | {floor:.1f} "
            f"| {ours / floor:.2f} | {nearest / to_nearest:.2f} |"
        )


def _pooled(sites: dict[str, SiteData], part: str) -> ImageSet:
    """All sites' images of one part, labelled by the ten digits."""
    pixels, digits, digests = [], [], []
    for site in sites.values():
        images: ImageSet = getattr(site, part)
        names = np.asarray(images.label_names)[images.labels.argmax(axis=1)]
        pixels.append(images.pixels)
        digests.append(images.digests)
        digits.append(names.astype(int))
    labels = np.eye(len(DIGITS), dtype=np.uint8)[np.concatenate(digits)]
    return ImageSet(np.concatenate(pixels), labels, DIGITS, np.concatenate(digests))


def _finished(run: Path, server: Server, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Finished digits uint8 [N, 1, 8, 8] of every client, by onnxruntime, and what was asked for [N]."""
    pixels, asked = [], []
    for name in server.sites:
        folder = RunFolder(run).client(name)
        settings = folder.read_config().client(name)
        delivered = server.deliver(name, IMAGES_PER_LABEL * len(server.site(name).label_names or ()), seed=seed)
        with tempfile.TemporaryDirectory() as scratch:
            bundle = Path(scratch) / "client.onnx"
            export_client(weights.load(folder.weights, "client"), settings, name, bundle)
            images = Finisher.load(bundle).finish(delivered, batch_size=64)
        pixels.append(images.transpose(0, 3, 1, 2))
        names = np.asarray(delivered.label_names)[delivered.labels.argmax(axis=1)]
        asked.append(names.astype(int))
    return np.concatenate(pixels), np.concatenate(asked)
