"""What each process of a training in several does, for test_distributed: torchrun starts this file twice.

    torchrun --standalone --nproc-per-node 2 two_ranks.py FOLDER

It trains into FOLDER/two and, with a magnitude-preserving network, into FOLDER/magnitude; and it goes on with the
training of one process that lies half done in FOLDER/one.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from collafuse.learning.distributed import ALONE, Ranks, meeting
from collafuse.learning.examples import TrainingData
from collafuse.learning.training import Trainer
from collafuse.nodes.metrics import MetricsLog
from tests.tiny import CPU, NETWORK, Recorder, denoiser, training_settings

SETTINGS = {"steps": 100, "batch_size": 8, "learning_rate": 3e-3, "checkpoint_every": 50, "log_every": 1}


def data() -> TrainingData:
    """Releases of twenty images at two cuts; one epoch ends within a batch."""
    generator = torch.Generator().manual_seed(0)
    floors = torch.tensor([0.3, 0.6]).repeat(10)
    z = torch.rand(20, 1, 4, 4, generator=generator) + floors.reshape(-1, 1, 1, 1) * torch.randn(
        20, 1, 4, 4, generator=generator
    )
    return TrainingData(z.half(), torch.eye(3)[torch.arange(20) % 2], floors, 80.0, horizontal_flip=True)


def trainer(folder: Path, observer: Recorder, ranks: Ranks = ALONE, **changes: int) -> Trainer:
    """A training in float64, in which only rounding can tell one rank from two; of the design that its folder names."""
    settings = training_settings(**(SETTINGS | changes))
    network = NETWORK.model_copy(update={"norm": "magnitude"}) if folder.name == "magnitude" else NETWORK
    return Trainer(denoiser(network).double(), data(), settings, folder, CPU, observer, ranks=ranks)


def main() -> None:
    folder = Path(sys.argv[1])
    with meeting(CPU) as (ranks, _):
        for name, resume in (("two", False), ("one", True), ("magnitude", False)):
            observer = Recorder()
            trainer(folder / name, observer, ranks).run(resume=resume)
            log = MetricsLog(folder / f"{name}-on-{ranks.rank}")
            for record in observer.records:
                log.write(record)


if __name__ == "__main__":
    main()
