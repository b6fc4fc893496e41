"""The share of a training step that data takes: choosing rows, gathering images, moving them to the device.

Data is timed alone, one batch after another. What lies in a file is read ahead while a step is computed, so its share
is what it would be if nothing overlapped.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from collafuse.config import load
from collafuse.core.conditioning import ConditionSpace
from collafuse.core.noise import SIGMA_MAX
from collafuse.core.rows import FileRows
from collafuse.learning.denoiser import Denoiser
from collafuse.learning.device import choose_device
from collafuse.learning.examples import TrainingData, batch_rows
from collafuse.learning.feeding import feed
from collafuse.learning.training import Trainer

CONFIGS = Path(__file__).parents[1] / "configs"
STEPS = 12
EVERY = 3
"""Steps that are timed together; the first of them warm up and are not counted."""
BATCHES = 50
SPACE = ConditionSpace(tuple("0123456789"))
Shape = tuple[int, int, int]
CASES: dict[str, tuple[tuple[str, int, Shape], ...]] = {
    "cpu": (("digits.yaml", 1_400, (1, 8, 8)), ("cifar10-small.yaml", 50_000, (3, 16, 16))),
    "cuda": (("digits.yaml", 1_400, (1, 8, 8)), ("cifar10.yaml", 50_000, (3, 32, 32))),
}
"""For each kind of device the configurations that are meant for it, how many images there are, and their shape."""


def main(run: Path) -> None:
    """Print the table; ``run`` is not needed."""
    device = choose_device()
    print(f"On {device.type}, {torch.get_num_threads()} threads; medians of {BATCHES} batches.\n")
    print("| configuration | node | images | ms per step | ms of data | share |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, count, shape in CASES["cuda" if device.type == "cuda" else "cpu"]:
            for node in ("server", "client"):
                images = pixels(count, shape, released=node == "server")
                step = step_seconds(name, node, images, device, Path(folder))
                for where in ("in memory", "in a file"):
                    data = data_seconds(name, node, images, where, device, Path(folder))
                    row = f"{step * 1e3:.1f} | {data * 1e3:.3f} | {data / step:.2%}"
                    print(f"| {name} | {node} | {where} | {row} |", flush=True)


def pixels(count: int, shape: Shape, *, released: bool) -> NDArray[Any]:
    """Random images: grey levels, or as they come in a release."""
    levels = np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)
    return (levels.astype(np.float32) / 127.5 - 1).astype(np.float16) if released else levels


def step_seconds(name: str, node: str, images: NDArray[Any], device: torch.device, folder: Path) -> float:
    """Seconds of a whole training step with the images in memory."""
    settings, count = _node(name, node), len(images)
    floor, high = (0.5, SIGMA_MAX) if node == "server" else (0.0, 0.5)
    data = TrainingData(torch.from_numpy(images), torch.zeros(count, 11), torch.full((count,), floor), high)
    changes = {"steps": STEPS, "log_every": EVERY, "sample_every": STEPS, "checkpoint_every": STEPS}
    heard = _Rates()
    training = settings.training.model_copy(update=changes)
    Trainer(
        Denoiser(settings.network, images.shape[1:], SPACE),
        data,
        training,
        folder,
        device,
        heard,
    ).run()
    return settings.training.batch_size / statistics.median(heard.images_per_second[1:])


def data_seconds(name: str, node: str, images: NDArray[Any], where: str, device: torch.device, folder: Path) -> float:
    """Seconds that one batch takes until it lies on the device."""
    size = _node(name, node).training.batch_size
    source = torch.from_numpy(images).to(device) if where == "in memory" else in_file(images, folder)
    times = []

    def rows_of(step: int) -> torch.Tensor:
        return batch_rows(len(images), size, step, seed=0)

    with feed(source, rows_of, device) as feeding:
        for step in range(BATCHES):
            started = time.perf_counter()
            feeding.batch(step, rows_of(step).to(device))
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - started)
    return statistics.median(times)


def in_file(images: NDArray[Any], folder: Path) -> FileRows:
    """The images in a file."""
    with (folder / "images").open("wb+") as file:
        file.write(images.tobytes())
        file.flush()
        return FileRows(file, images.dtype, images.shape, source="images")


def _node(name: str, node: str) -> Any:
    config = load(CONFIGS / name)
    return config.server if node == "server" else next(iter(config.clients.values()))


class _Rates:
    """Hears how fast a training goes."""

    def __init__(self) -> None:
        self.images_per_second: list[float] = []

    def started(self, step: int, total: int) -> None: ...
    def note(self, text: str) -> None: ...
    def sampled(self, step: int, denoiser: Denoiser) -> None: ...
    def logged(self, record: dict[str, Any]) -> None:
        self.images_per_second.append(record["images_per_second"])


if __name__ == "__main__":
    main(Path())
