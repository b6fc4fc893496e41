"""What each process of a training in several does, for test_distributed: torchrun starts this file twice.

    torchrun --standalone --nproc-per-node 2 two_ranks.py FOLDER

It trains into folders named by what is special: a magnitude-preserving network, images kept back to choose a step by,
weights in parts on the ranks, float32.
In FOLDER/one and FOLDER/parts-one the training of one process lies half done, and it goes on with that.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from collafuse.learning.checkpoint import digest_of_tensors
from collafuse.learning.distributed import ALONE, Ranks, meeting
from collafuse.learning.examples import TrainingData
from collafuse.learning.training import Trainer
from collafuse.nodes.metrics import MetricsLog
from tests.tiny import CPU, NETWORK, Recorder, denoiser, training_settings

SETTINGS = {"steps": 40, "batch_size": 8, "learning_rate": 3e-3, "checkpoint_every": 20, "log_every": 1}
KINDS = ("two", "one", "magnitude", "validation", "parts", "parts-one", "parts-magnitude", "parts-float32",
         "parts-validation")  # fmt: skip
SHORT = {"steps": 8, "checkpoint_every": 4, "sample_every": 4}


def data() -> TrainingData:
    """Releases of twenty images at two cuts; one epoch ends within a batch."""
    generator = torch.Generator().manual_seed(0)
    floors = torch.tensor([0.3, 0.6]).repeat(10)
    z = torch.rand(20, 1, 4, 4, generator=generator) + floors.reshape(-1, 1, 1, 1) * torch.randn(
        20, 1, 4, 4, generator=generator
    )
    return TrainingData(z.half(), torch.eye(3)[torch.arange(20) % 2], floors, 80.0, horizontal_flip=True)


def trainer(folder: Path, observer: Recorder, ranks: Ranks = ALONE, **changes: int) -> Trainer:
    """A training of the kind that its folder names; in float64, in which only rounding can tell one rank from two."""
    kinds = folder.name.split("-")
    in_parts = SHORT | {"shard": True, "recompute": True, "accumulate": 2} if "parts" in kinds else {}
    kept_back = {"validation": 0.3, "learning_rate": 0.3} if "validation" in kinds else {}  # too fast to end best
    settings = training_settings(**(SETTINGS | in_parts | kept_back | changes))
    network = NETWORK.model_copy(update={"norm": "magnitude"}) if "magnitude" in kinds else NETWORK
    model = denoiser(network) if "float32" in kinds else denoiser(network).double()
    return Trainer(model, data(), settings, folder, CPU, observer, ranks=ranks)


def held(training: Trainer) -> float:
    """The share of the weights, their averages and Adam's moments that this process holds."""
    state = training.optimizer.state_dict()["state"].values()
    moments = [tensor for one in state for name, tensor in one.items() if name != "step"]
    tensors = [*training.model.parameters(), *training.ema.parameters(), *moments]
    return sum(getattr(one, "to_local", lambda one=one: one)().numel() for one in tensors) / sum(
        one.numel() for one in tensors
    )


def early_of(training: Trainer) -> tuple[int, float] | None:
    """The step of the early version that this process has, and how large its weights are."""
    if training.early is None:
        return None
    weights = torch.cat([one.flatten() for one in training.early.denoiser.parameters()])
    return training.early.steps, float(weights.double().norm())


def main() -> None:
    folder = Path(sys.argv[1])
    with meeting(CPU) as (ranks, _):
        for name in KINDS:
            observer = Recorder()
            training = trainer(folder / name, observer, ranks)
            trained = training.run(resume=name.endswith("one"))
            log = MetricsLog(folder / f"{name}-on-{ranks.rank}")
            for record in observer.records:
                log.write(record)
            about = {
                "held": held(training),
                "sheets": observer.sheets,
                "weights": digest_of_tensors(*trained.parameters()),
                "step_kept": training.step_kept,
                "early": early_of(training),
            }
            (folder / f"{name}-on-{ranks.rank}.json").write_text(json.dumps(about))


if __name__ == "__main__":
    main()
