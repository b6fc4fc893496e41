"""``python -m benchmarks.train``: images per second of a training step and of server sampling, ours against peers.

    --config FILE      whose server network and batch size are measured (cifar10-small.yaml)
    --batch N          another batch size
    --threads N        of the CPU
    --ranks N          also: N processes of one thread against one, by torchrun
    --ways             instead: where a step's time goes, and other ways to compute it
    --sizes            instead: parameters, FLOPs, memory and images per second of each configuration's server

All take turns in one run; rows are medians. Beside the clock stands processor time, which other work on the machine
disturbs less; processes that a peer starts to read files are not in it. MFU is the share of the matrix peak that the
counted FLOPs of a step reach, all operators, forwards and backwards.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from collafuse.config import Config, load
from collafuse.core.conditioning import ConditionSpace
from collafuse.core.noise import SIGMA_MAX, server_sigmas
from collafuse.core.samplers import run
from collafuse.learning.compiled import SamplingDenoiser
from collafuse.learning.denoiser import Denoiser
from collafuse.learning.device import choose_device
from collafuse.learning.examples import TrainingData
from collafuse.learning.networks import num_parameters
from collafuse.learning.observer import UNWATCHED
from collafuse.learning.training import Trainer
from collafuse.nodes.streams import server_step, streams

from .peers import convolution_flops, denoiser_call
from .train_peers import TrainPeer, diffusers_peer, trainer_peer
from .train_ranks import ranks_table
from .train_ways import profile_table, sampling_ways, ways

SPACE = ConditionSpace(tuple("0123456789"))
IMAGES = 4096
CUT = 0.5
SAMPLING_ROUNDS = 3
SIZES = ("digits", "cifar10-small", "cifar10", "celeba", "celeba128")


def main() -> None:
    """Measure and print Markdown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train", description=__doc__)
    parser.add_argument("--config", type=Path, default=Path("cifar10-small.yaml"), help="whose server is measured")
    parser.add_argument("--batch", type=int, help="batch size; the configuration's by default")
    parser.add_argument("--threads", type=int, default=1, help="threads of the CPU")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--ranks", type=int, help="also: this many processes against one")
    parser.add_argument("--ways", action="store_true", help="where a step's time goes instead, and other ways")
    parser.add_argument("--sizes", action="store_true", help="a table of the configurations instead")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    device = choose_device(given.device)
    if given.sizes:
        sizes_table(device, given.batch, given.rounds)
        return
    config = load(given.config)
    batch = given.batch or config.server.training.batch_size
    if given.ways:
        ways_tables(config, batch, device, given.rounds)
        return
    peers_table(config, batch, device, given.threads, given.rounds)
    if given.ranks:
        print(f"\n## {given.ranks} processes against one, one thread each\n")
        ranks_table(given.ranks, given.config, batch, given.rounds)


def our_trainer(config: Config, batch: int, device: torch.device, folder: Path, **changes: Any) -> Trainer:
    """A server's training on random releases of the configuration's shape."""
    shape, generator = config.data.image_shape, torch.Generator().manual_seed(0)
    data = TrainingData(
        (0.7 * torch.randn(min(IMAGES, 32 * batch), *shape, generator=generator)).half(),
        torch.eye(SPACE.width)[torch.arange(min(IMAGES, 32 * batch)) % len(SPACE.label_names)],
        torch.full((min(IMAGES, 32 * batch),), CUT),
        SIGMA_MAX,
    )
    settings = config.server.training.model_copy(update={"batch_size": batch, **changes})
    trainer = Trainer(Denoiser(config.server.network, shape, SPACE), data, settings, folder, device, UNWATCHED)
    trainer.model.train()
    return trainer


def our_sampling(trainer: Trainer, config: Config, batch: int) -> Callable[..., Any]:
    """The server's half for a batch of one label, as it is delivered; another denoiser may stand in."""
    sampler, device = config.server.sampler, trainer.device
    sigmas = server_sigmas(CUT, sampler.steps)
    conditions = torch.from_numpy(SPACE.conditions(batch, None)).to(device)

    @torch.inference_mode()
    def sample(denoiser: SamplingDenoiser = trainer.ema) -> None:
        x = SIGMA_MAX * torch.randn(batch, *config.data.image_shape, device=device)
        run(
            server_step(sampler.name, streams(range(batch), 0)),
            lambda x, sigma: denoiser(x, sigma, conditions),
            x,
            sigmas,
        )

    return sample


@dataclass(frozen=True)
class Turn:
    """Median seconds of a call, by the clock and of the processor."""

    clock: float
    processor: float


def turns(calls: dict[str, Callable[[], Any]], rounds: int, device: torch.device) -> dict[str, Turn]:
    """Each call in turn, so often; the first turn warms up and does not count."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            clock, processor = time.perf_counter(), time.process_time()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if number:
                seconds[name].append((time.perf_counter() - clock, time.process_time() - processor))
    return {n: Turn(*(statistics.median(column) for column in zip(*s, strict=True))) for n, s in seconds.items()}


def peers_table(config: Config, batch: int, device: torch.device, threads: int, rounds: int) -> None:
    """Ours and both peers: a training step, then sampling."""
    shape, network = config.data.image_shape, config.server.network
    with tempfile.TemporaryDirectory() as scratch:
        trainer = our_trainer(config, batch, device, Path(scratch) / "ours")
        flops = convolution_flops(denoiser_call(Denoiser(network, shape, SPACE).eval()))
        steps = iter(range(1 << 30))
        ours = TrainPeer("ours", flops, lambda: trainer.take_step(next(steps)), our_sampling(trainer, config, batch))
        evaluations = len(server_sigmas(CUT, config.server.sampler.steps)) - 1
        peers = [
            ours,
            diffusers_peer(network, shape, flops, batch, evaluations, device),
            trainer_peer(network, shape, flops, batch, evaluations, device, Path(scratch)),
        ]
        peak = matrix_gflops(device)
        step_flops = counted_flops(lambda: trainer.take_step(0))
        print(f"{config.name}, {'x'.join(map(str, shape))}, batch {batch}, {where(device, threads)}.\n")
        train = turns({p.name: p.train for p in peers}, rounds, device)
        print_rows("training step", peers, train, batch)
        print_rows(
            f"sampling, {evaluations} evaluations",
            peers,
            turns({p.name: p.sample for p in peers}, SAMPLING_ROUNDS, device),
            batch,
        )
        here = turns({"batch": lambda: trainer._batch(next(steps))}, rounds, device)["batch"]
        used = train["ours"].processor if device.type == "cpu" else train["ours"].clock
        prepared = here.processor if device.type == "cpu" else here.clock
        print(
            f"\nA step of ours: {step_flops / 1e9:.1f} GFLOP counted, at {step_flops / used / 1e9:.0f} GFLOP/s", end=" "
        )
        print(f"{step_flops / used / peak / 1e7:.0f} % of the matrix peak ({peak:.0f} GFLOP/s) by processor time.")
        print(f"Preparing a batch takes {1e2 * prepared / used:.2f} % of a step.")


def print_rows(what: str, peers: list[TrainPeer], seconds: dict[str, Turn], batch: int) -> None:
    """A table of images per second, by the clock and by processor time."""
    columns = (what, "convolution MFLOP", "images/s", "times", "images per processor second", "times")
    print(f"\n| {' | '.join(columns)} |")
    print("|---|---|---|---|---|---|")
    ours = seconds["ours"]
    for peer in peers:
        took = seconds[peer.name]
        print(
            f"| {peer.name} | {peer.flops / 1e6:.1f} | {batch / took.clock:.1f} | {took.clock / ours.clock:.2f} | "
            f"{batch / took.processor:.1f} | {took.processor / ours.processor:.2f} |",
            flush=True,
        )


def ways_tables(config: Config, batch: int, device: torch.device, rounds: int) -> None:
    """Where a step's time goes, and what other ways to compute it take."""
    with tempfile.TemporaryDirectory() as scratch:
        profile_table(our_trainer(config, batch, device, Path(scratch)))
    print_ways("training step", turns(ways(partial(our_trainer, config, batch, device)), rounds, device))
    with tempfile.TemporaryDirectory() as scratch:
        trainer = our_trainer(config, batch, device, Path(scratch))
        calls = sampling_ways(trainer, our_sampling(trainer, config, batch), batch)
        print_ways("sampling a batch", turns(calls, SAMPLING_ROUNDS, device))


def print_ways(what: str, took: dict[str, Turn]) -> None:
    """A table of ways, against the first of them."""
    print(f"\n| {what} | ms | times | ms of processor time | times |\n|---|---|---|---|---|")
    usual = next(iter(took.values()))
    for name, turn in took.items():
        print(
            f"| {name} | {1e3 * turn.clock:.0f} | {turn.clock / usual.clock:.2f} | "
            f"{1e3 * turn.processor:.0f} | {turn.processor / usual.processor:.2f} |"
        )


def sizes_table(device: torch.device, batch: int | None, rounds: int) -> None:
    """Parameters, FLOPs, memory and images per second of the server of each configuration."""
    columns = (
        *("server of", "image", "parameters (M)", "GFLOP per evaluation", "GB of a step"),
        *("batch", "images/s", "per processor second"),
    )
    print(f"| {' | '.join(columns)} |")
    print("|---|---|---|---|---|---|---|---|")
    for name in SIZES:
        config = load(f"{name}.yaml")
        size = batch or config.server.training.batch_size
        with tempfile.TemporaryDirectory() as scratch:
            trainer = our_trainer(config, size, device, Path(scratch))
            memory = step_memory(trainer)
            took = turns({"step": partial(trainer.take_step, 0)}, rounds, device)["step"]
        one = Denoiser(config.server.network, config.data.image_shape, SPACE).eval()
        gflop = counted_flops(denoiser_call(one)) / 1e9
        shape = "x".join(map(str, config.data.image_shape))
        print(
            f"| {name} | {shape} | {num_parameters(one) / 1e6:.1f} | {gflop:.2f} | "
            f"{memory / 1e9:.2f} | {size} | {size / took.clock:.1f} | {size / took.processor:.1f} |",
            flush=True,
        )


def step_memory(trainer: Trainer) -> int:
    """Bytes that a step needs: weights, average, gradients and moments, and what is kept on the way to the loss."""
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        trainer.take_step(0)
    parameters = sum(p.nbytes for p in trainer.model.parameters())
    return 5 * parameters + sum(kept.values())


def counted_flops(call: Callable[[], Any]) -> int:
    """Every counted FLOP of a call, two for a multiplication and an addition."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def matrix_gflops(device: torch.device, rounds: int = 9) -> float:
    """What torch's matrix product reaches here, in the precision that training multiplies in: the better of a plain
    product and the same one as a convolution of 1x1, since a CPU has two libraries."""
    size, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (1024, torch.float32)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    image, kernel = a.T.reshape(1, size, 32, -1).contiguous(), b.reshape(size, size, 1, 1)
    calls = {"product": lambda: a @ b, "convolution": lambda: torch.nn.functional.conv2d(image, kernel)}
    took = turns(calls, rounds, device)
    best = min(t.processor if device.type == "cpu" else t.clock for t in took.values())
    return 2 * size**3 / best / 1e9


def where(device: torch.device, threads: int) -> str:
    """The device in words."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, bfloat16"
    return f"CPU, {threads} thread{'s' if threads > 1 else ''}, fp32"


if __name__ == "__main__":
    main()
