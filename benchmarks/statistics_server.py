"""What images buy over statistics: pictures begun by a network and by Gaussians, finished by the same client.

``python -m benchmarks.statistics_server [--images FOLDER --size 16]``; scikit-learn's digits without a folder. One
denoiser is trained on all levels of all images and serves as a network that a server could have at best (it saw clean
images) and, below the cut, as the client. What begins above the cut is that network, one Gaussian per label, or real
images truly noised; and, as a trial, a small mixture of Gaussians per label (``benchmarks.mixtures``). Fréchet
distances are in the features of a classifier trained on the same images, to held-out ones.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from collafuse.config import DataSettings, NetworkSettings, TrainingSettings
from collafuse.core.conditioning import Conditions, guided
from collafuse.core.mechanism import Budget
from collafuse.core.moments import Basis, default_coefficients, moments_of, noised, pool, statistics_of
from collafuse.core.noise import SIGMA_MAX, client_sigmas, server_sigmas
from collafuse.core.pictures import contact_sheet, to_uint8
from collafuse.core.samplers import STEPS, run
from collafuse.core.statistics import Statement
from collafuse.data.datasets import load
from collafuse.data.imageset import ImageSet
from collafuse.evaluation.classifier import Classifier, train_classifier
from collafuse.evaluation.quality import frechet_distance
from collafuse.learning.denoiser import Denoiser
from collafuse.learning.examples import TrainingData
from collafuse.learning.gaussian import GaussianDenoiser
from collafuse.learning.training import Trainer, fresh_denoiser
from collafuse.nodes.summary import blocks

from .mixtures.fit import LEAST, best_shrinkage, mixture
from .mixtures.model import MixtureDenoiser

CUTS = (0.25, 0.5, 1.0, 2.0, 4.0)
BUDGET_CUTS = (1.0, 2.0, 4.0)
EPSILONS = (100.0, 32.0, 8.0, 1.0)
DELTA = 1e-5
SERVER_STEPS, CLIENT_STEPS, SIGMA_LOW = 12, 8, 0.03
BATCH = 250
SHOWN = 10


@dataclass(frozen=True)
class Bench:
    """One data set, its judge, and the denoiser that begins and finishes."""

    train: ImageSet
    held_out: ImageSet
    judge: Classifier
    denoiser: Denoiser
    asked: NDArray[np.int64]

    @property
    def conditions(self) -> Conditions:
        """One label for each picture, [N, W]."""
        labels = np.eye(len(self.train.label_names), dtype=np.uint8)[self.asked]
        return self.train.space.conditions(len(labels), labels)

    def noise(self, seed: int = 0) -> NDArray[np.float32]:
        """Standard normal, one image per picture that is asked for; the same for every row of a table."""
        shape = (len(self.asked), *self.train.pixels.shape[1:])
        return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)

    @torch.inference_mode()
    def walk(self, x: NDArray[np.float32], sigmas: list[float]) -> NDArray[np.float32]:
        """The network's pictures, from the first of these levels to the last."""
        parts, conditions = [], torch.from_numpy(self.conditions)
        for start in range(0, len(x), BATCH):
            rows = slice(start, start + BATCH)
            denoise = guided(self.denoiser, conditions[rows], 1.0)
            parts.append(run(STEPS["dpmpp_2m"], denoise, torch.from_numpy(x[rows]), sigmas)[0].numpy())
        return np.concatenate(parts)

    def finish(self, x: NDArray[np.float32], cut: float) -> NDArray[np.uint8]:
        """What the client makes of images at the cut: uint8 [N, C, H, W]."""
        finished = self.walk(x, client_sigmas(cut, CLIENT_STEPS, SIGMA_LOW))
        return to_uint8(finished).transpose(0, 3, 1, 2)

    def figures(self, pixels: NDArray[np.uint8]) -> str:
        """Fréchet distance to held-out images, and the share that is read as asked for."""
        distance = frechet_distance(self.judge.features(pixels), self.judge.features(self.held_out.pixels))
        return f"{distance:.2f} ({(self.judge.read(pixels) == self.asked).mean():.0%})"


def prepare(images: ImageSet, steps: int, channels: int, scratch: Path) -> Bench:
    """Train the judge and the denoiser on four fifths, resuming in ``scratch``; the others set what is asked for."""
    order = np.random.default_rng(0).permutation(len(images))
    held_out, train = images.take(order[: len(images) // 5]), images.take(order[len(images) // 5 :])
    conditions = train.conditions()
    data = TrainingData(
        images=torch.from_numpy(train.pixels),
        conditions=torch.from_numpy(conditions),
        sigma_floor=torch.zeros(len(train)),
        sigma_high=SIGMA_MAX,
    )
    settings = TrainingSettings(steps=steps, batch_size=64, warmup_steps=100, ema_halflife_images=10_000)
    network = NetworkSettings(channels=channels, multipliers=(1, 2), blocks=1)
    fresh = fresh_denoiser(network, train.pixels.shape[1:], train.space, data, settings, "whole")
    denoiser = Trainer(fresh, data, settings, scratch, torch.device("cpu"), Silent()).run(
        (scratch / "checkpoints").is_dir()
    )
    asked = held_out.labels.argmax(axis=1)
    return Bench(train, held_out, train_classifier(train, steps=1500), denoiser.eval(), asked)


class Silent:
    """An observer that says nothing."""

    def started(self, step: int, total: int) -> None: ...
    def note(self, text: str) -> None: ...
    def logged(self, record: object) -> None: ...
    def sampled(self, step: int, denoiser: object) -> None: ...


def gaussians(bench: Bench, coefficients: int, epsilon: float | None, clip: float, seed: int = 0) -> GaussianDenoiser:
    """One site's statistics of all training images, as a server adds them up; repeatable noise, for a measurement."""
    shape = bench.train.pixels.shape[1:]
    budget = None if epsilon is None else Budget(epsilon, DELTA)
    about = Statement(shape, coefficients, budget, None if budget is None else clip)
    labels = bench.train.labels.argmax(axis=1)
    moments = moments_of(blocks(bench.train, labels), about, len(bench.train.label_names))
    if budget is not None:
        moments = noised(moments, about, np.random.default_rng(seed).standard_normal)
        moments.counts[:] = np.maximum(moments.counts, 50)  # a label that would be left out stays, for the table
    file = statistics_of(moments, about, bench.train.label_names, simulated=True)
    every = [(file, row) for row in range(len(file.counts))]
    return GaussianDenoiser(Basis(shape, coefficients), [pool(part) for part in [*([one] for one in every), every]])


def mixtures(bench: Bench, components: list[int]) -> dict[int, MixtureDenoiser]:
    """A mixture of at most so many Gaussians per label, for each number that every label has the images for."""
    coefficients = default_coefficients(bench.train.image_shape)
    made = {}
    for most in components:
        if bench.train.labels.sum(axis=0).min() < most * LEAST:
            print(f"No mixture of {most}: a label has too few images for {LEAST} in each part.\n")
            continue
        shrinkage = best_shrinkage(bench.train, coefficients, most)
        made[most] = mixture(bench.train, coefficients, most, shrinkage)
        sizes = [round(one.count) for one in made[most].gaussians[:-1]]
        print(
            f"Mixture of at most {most}: {len(sizes)} parts of {min(sizes)} to {max(sizes)} images, shrinkage "
            f"{shrinkage:g}.\n"
        )
    return made


def over_cuts(bench: Bench, components: list[int], pictures: list[NDArray[np.uint8]]) -> None:
    """The first table: who begins, over cuts."""
    known = gaussians(bench, default_coefficients(bench.train.image_shape), None, 1.0)
    mixed = mixtures(bench, components)
    names = ["network", "Gaussian per label", *(f"{most} per label" for most in mixed)]
    print(f"| cut | {' | '.join(names)} | one Gaussian of all | real images, noised |")
    print(f"|---|{'---|' * (len(names) + 2)}")
    blank = bench.train.space.conditions(len(bench.asked), None)
    real = bench.train.take(_one_of_each(bench))
    for cut in CUTS:
        noise = bench.noise()
        begun = [
            bench.walk(noise * SIGMA_MAX, server_sigmas(cut, SERVER_STEPS)),
            *(one.draw(noise, cut, bench.conditions) for one in (known, *mixed.values())),
            known.draw(noise, cut, blank),
            (real.x0() + cut * noise).astype(np.float32),
        ]
        finished = [bench.finish(x, cut) for x in begun]
        pictures += [one[_shown(bench)] for one in finished[: len(names)]]
        print(f"| {cut:g} | {' | '.join(map(bench.figures, finished))} |", flush=True)


def over_budgets(bench: Bench, choices: list[int], clip: float, pictures: list[NDArray[np.uint8]]) -> None:
    """The second table: the noise of a budget, over cuts and coefficients."""
    print(f"| coefficients per channel, epsilon | {' | '.join(f'cut {cut:g}' for cut in BUDGET_CUTS)} |")
    print(f"|---|{'---|' * len(BUDGET_CUTS)}")
    for coefficients in choices:
        for epsilon in (None, *EPSILONS):
            known = gaussians(bench, coefficients, epsilon, clip)
            cells = []
            for cut in BUDGET_CUTS:
                pixels = bench.finish(known.draw(bench.noise(), cut, bench.conditions), cut)
                cells.append(bench.figures(pixels))
                if cut == 4.0:
                    pictures.append(pixels[_shown(bench)])
            print(f"| {coefficients}, {epsilon or 'none'} | {' | '.join(cells)} |", flush=True)


def _one_of_each(bench: Bench) -> NDArray[np.int64]:
    """A real training image of each label that is asked for."""
    rng, labels = np.random.default_rng(1), bench.train.labels.argmax(axis=1)
    return np.array([rng.choice(np.flatnonzero(labels == label)) for label in bench.asked])


def _shown(bench: Bench) -> NDArray[np.int64]:
    """The first picture of each of some labels."""
    return np.array([int(np.argmax(bench.asked == label)) for label in np.unique(bench.asked)[:SHOWN]])


def main() -> None:
    """Print both tables and write a sheet of pictures, a row per begin."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.statistics_server", description=__doc__)
    parser.add_argument("--images", type=Path, help="a folder of images, one sub-folder per label")
    parser.add_argument("--size", type=int, default=16)
    parser.add_argument("--count", type=int, default=10_000, help="images that are used, at most")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--channels", type=int, default=24)
    parser.add_argument("--components", type=int, nargs="*", default=[4, 16], help="Gaussians per label of mixtures")
    parser.add_argument("--coefficients", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--clip", type=float, default=0.9)
    parser.add_argument("-o", "--out", type=Path, required=True, help="a folder for the pictures")
    arguments = parser.parse_args()
    settings = DataSettings(dataset="digits")
    if arguments.images is not None:
        settings = DataSettings(dataset="folder", path=arguments.images, image_size=arguments.size, channels=3)
    images = load(settings)
    images = images.take(np.random.default_rng(0).permutation(len(images))[: arguments.count])
    began = time.monotonic()
    bench = prepare(images, arguments.steps, arguments.channels, arguments.out / "training")
    floor = bench.figures(bench.train.take(_one_of_each(bench)).pixels)
    print(
        f"{len(bench.train)} images trained on, {len(bench.held_out)} held out and as many pictures in each cell: "
        f"Frechet distance (read as asked). Real training images: {floor}. Training took "
        f"{time.monotonic() - began:.0f} s.\n"
    )
    pictures: list[NDArray[np.uint8]] = []
    over_cuts(bench, arguments.components, pictures)
    print()
    over_budgets(bench, arguments.coefficients, arguments.clip, pictures)
    sheet = contact_sheet(np.concatenate(pictures).transpose(0, 2, 3, 1), columns=SHOWN)
    Image.fromarray(sheet[0]).save(arguments.out / "begun.png")


if __name__ == "__main__":
    main()
