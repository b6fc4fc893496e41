"""Quality of the digits that the demo finishes, against real ones that nobody trained on.

Real against real, with the same number of images, stands beside every figure. ``collafuse evaluate`` measures any run;
what is here is what the demo has to reach, over three seeds and on the device's runtime.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from collafuse.core.errors import UsageError
from collafuse.evaluation.quality import nearest_distances
from collafuse.nodes.client import load_client
from collafuse.nodes.runfolder import RunFolder
from collafuse.nodes.server import Server
from edge_client import Finisher
from export.writer import export_client

from .judge import Judge, names_of

IMAGES_PER_LABEL = 180
SEEDS = (0, 1, 2)


def main(run: Path) -> None:
    """Print a table for one run folder."""
    server = Server.load(RunFolder(run).server, torch.device("cpu"))
    judge = Judge.of_run(run)
    train, held_out = judge.train, judge.held_out
    print(f"{judge.introduce()}\n")
    print(
        "| seed | images | read as asked | Frechet, finished | Frechet, real | ratio "
        "| nearest training digit, finished / held-out |"
    )
    print("|---|---|---|---|---|---|---|")
    to_nearest = nearest_distances(held_out.pixels, train.pixels).mean()
    for seed in SEEDS:
        pixels, asked = _finished(run, server, seed)
        rng = np.random.default_rng(seed)
        some = rng.choice(len(pixels), len(held_out), replace=False)
        real = rng.choice(len(judge.real), len(held_out), replace=False)
        ours, floor = (judge.frechet(p, held_out.pixels) for p in (pixels[some], judge.real.pixels[real]))
        nearest = nearest_distances(pixels, train.pixels).mean()
        print(
            f"| {seed} | {len(pixels)} | {judge.read_as(pixels, asked):.1%} | {ours:.1f} | {floor:.1f} "
            f"| {ours / floor:.2f} | {nearest / to_nearest:.2f} |"
        )


def _finished(run: Path, server: Server, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.str_]]:
    """Finished digits uint8 [N, 1, 8, 8] of every client, by onnxruntime, and what was asked for [N]."""
    pixels, asked = [], []
    for name in server.sites:
        folder = RunFolder(run).client(name)
        settings = folder.read_config().client(name)
        if not (labels := server.site(name).label_names):
            raise UsageError(f"{name} keeps its labels, so that none can be asked for; measure a run that shares them.")
        delivered = server.deliver(name, IMAGES_PER_LABEL * len(labels), seed=seed)
        with tempfile.TemporaryDirectory() as scratch:
            bundle = Path(scratch) / "client.onnx"
            export_client(load_client(folder, settings), settings, name, bundle)
            images = Finisher.load(bundle).finish(delivered, batch_size=64)
        pixels.append(images.transpose(0, 3, 1, 2))
        asked.append(names_of(delivered.labels, delivered.label_names))
    return np.concatenate(pixels), np.concatenate(asked)
