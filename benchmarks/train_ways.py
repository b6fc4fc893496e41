"""Where a training step's time goes, and what other ways to compute it would cost or win."""

from __future__ import annotations

import copy
import tempfile
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from collafuse.config import MixedPrecision
from collafuse.learning.compiled import CompiledDenoiser
from collafuse.learning.training import Trainer

STEPS = 5
GROUPS = {
    "convolutions, forwards": ("mkldnn_convolution", "cudnn_convolution", "aten::_convolution"),
    "convolutions, backwards": ("convolution_backward",),
    "attention": ("bmm", "softmax", "scaled_dot_product"),
    "group norm": ("group_norm",),
    "SiLU": ("silu",),
    "linear layers": ("addmm", "aten::mm"),
    "optimiser": ("Optimizer", "_fused_adam"),
    "average of the weights": ("lerp",),
    "sums, copies, joining, resizing": ("add", "mul", "copy", "cat", "sum", "upsample", "pool", "fill", "div"),
}
"""Operators by a part of their names; the first group that fits counts."""


def profile_table(trainer: Trainer) -> None:
    """Share of each group of operators in the time of some steps, as torch's profiler sees it."""
    trainer.take_step(0)
    with torch.profiler.profile() as profile:
        for step in range(STEPS):
            trainer.take_step(step)
    cuda = trainer.device.type == "cuda"
    shares: dict[str, float] = defaultdict(float)
    for event in profile.key_averages():
        took = event.self_device_time_total if cuda else event.self_cpu_time_total
        group = next((g for g, names in GROUPS.items() if any(n in event.key for n in names)), "everything else")
        shares[group] += took
    total = sum(shares.values())
    print("| part of a step | share of its time |\n|---|---|")
    for group, took in sorted(shares.items(), key=lambda one: -one[1]):
        print(f"| {group} | {100 * took / total:.1f} % |")


def ways(make: Callable[..., Trainer]) -> dict[str, Callable[[], Any]]:
    """One step of a training per way to compute it; ``make(folder, **settings)`` builds one."""
    made: dict[str, Callable[[], Any]] = {}

    def add(name: str, change: Callable[[Trainer], None] = lambda trainer: None, **settings: Any) -> Trainer:
        trainer = make(Path(tempfile.mkdtemp()), **settings)
        change(trainer)
        made[name] = partial(trainer.take_step, 0)
        return trainer

    add("as it is")
    add("Adam without its fused kernel", _unfused)
    add("channels-last", _channels_last)
    add("accumulate: 2", accumulate=2)
    add("recompute: true", recompute=True)
    add("mixed_precision: cpu", mixed_precision="cpu")
    for name, how in (("compile: true", True), ("compile: graphs", "graphs")):
        compiled = add(name, compile=how)
        compiled._denoise = compiled._fastest()
    return made


def sampling_ways(trainer: Trainer, sample: Callable[..., Any], batch: int) -> dict[str, Callable[[], Any]]:
    """Sampling a batch in each precision, as it is and compiled."""
    bfloat16: MixedPrecision = "cpu" if trainer.device.type == "cpu" else True
    made: dict[str, Callable[[], Any]] = {}
    for name, precision in (("float32", False), (f"mixed_precision: {bfloat16}".lower(), bfloat16)):
        denoiser = copy.deepcopy(trainer.ema)
        denoiser.mixed_precision = precision
        made[name] = partial(sample, denoiser)
        made[f"{name}, --compile"] = partial(sample, CompiledDenoiser(denoiser, batch, print))
    return made


def _unfused(trainer: Trainer) -> None:
    for group in trainer.optimizer.param_groups:
        group["fused"] = False


def _channels_last(trainer: Trainer) -> None:
    trainer.model.to(memory_format=torch.channels_last)
    trainer.ema.to(memory_format=torch.channels_last)
