"""Several processes against one: the training command itself, by torchrun, on releases of random images."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from collafuse.config import load
from collafuse.core import release as releases
from collafuse.core.atomic import write_bytes
from collafuse.core.noise import Cut

IMAGES = 1024


def ranks_table(ranks: int, config: Path, batch: int, rounds: int) -> None:
    """Images per second that the command logs, of so many processes of one thread each and of one, as a table."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        _write_release(folder / "releases", load(config).data.image_shape)
        rates: dict[int, list[float]] = {}
        for turn in range(3):
            for processes in (1, ranks):
                run = folder / f"{processes}-{turn}"
                _train(processes, config, batch, rounds, folder / "releases", run)
                lines = (run / "server" / "metrics.jsonl").read_text().splitlines()
                # The first step loads what is loaded once.
                logged = [json.loads(line)["images_per_second"] for line in lines[1:]]
                rates.setdefault(processes, []).append(statistics.median(logged))
        one = statistics.median(rates[1])
        print("| processes | images/s | times one |\n|---|---|---|")
        for processes, each in rates.items():
            print(f"| {processes} | {statistics.median(each):.1f} | {statistics.median(each) / one:.2f} |")


def _train(processes: int, config: Path, batch: int, steps: int, found: Path, run: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    settings = {"steps": steps + 1, "batch_size": batch, "log_every": 1, "warmup_steps": 1}
    overrides = [part for name, value in settings.items() for part in ("--set", f"server.training.{name}={value}")]
    arguments = ["-m", "cli", "train-server", str(config), "--releases", str(found), "-o", str(run), *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    accepted = ["--set", "server.sampler.steps=1"]  # the sheet at the end is not what is measured
    subprocess.run([*command, *arguments, *accepted], env=environment, check=True, capture_output=True)


def _write_release(folder: Path, shape: tuple[int, int, int]) -> None:
    generator = np.random.default_rng(0)
    images = generator.uniform(-1, 1, (IMAGES, *shape)).astype(np.float32)
    made = releases.make([images], Cut(0.5), generator.standard_normal, labels=None, label_names=(), simulated=False)
    write_bytes(folder / "north.safetensors", releases.to_bytes(made))
