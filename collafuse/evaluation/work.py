"""What a run costs: multiply-accumulates, network evaluations, time and bytes, on either side of the cut."""

from __future__ import annotations

import copy
import itertools
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ..core import intermediate as intermediates
from ..core.noise import client_sigmas
from ..core.pairing import conditions_for
from ..core.samplers import evaluations
from ..learning.autoguidance import AutoGuided
from ..nodes.client import finish
from ..nodes.runfolder import RunFolder
from .arms import SplitRun
from .tables import Table

BATCH = 16
REPETITIONS = 3


def multiply_accumulates(call: Callable[[], Any]) -> int:
    """Multiply-accumulates of the convolutions and matrix products in a call: counted by torch as it runs, not
    estimated. An elementwise operation counts as nothing."""
    # The counter does not know the fused attention of a processor, so that is taken apart into its matrix products.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops()) // 2


def work_tables(split: SplitRun, folder: RunFolder) -> tuple[Table, Table]:
    """Work per image and in training on either side, and the bytes between them, for every client of a run."""
    work, traffic = [], []
    for name in split.models:
        delivered, server_ms = _timed(partial(split.from_server, name, BATCH, 0))
        conditions = conditions_for(delivered, split.models[name].space)
        x, settings = torch.from_numpy(delivered.x), split.settings[name]
        denoiser = split.models[name].denoiser
        _, client_ms = _timed(partial(finish, denoiser, x, delivered.sigma, conditions, settings, split.device))
        sampler = settings.sampler
        levels = client_sigmas(delivered.sigma, sampler.steps, sampler.sigma_low)
        client_nfe = evaluations(sampler.name, levels, guided=sampler.guidance != 1.0)
        training = settings.training
        work += [
            _work_row(name, "server", split.server.model.denoiser, delivered.nfe, server_ms),
            _work_row(name, "client", denoiser, client_nfe, client_ms, training.steps * training.batch_size),
        ]
        traffic.append(_traffic_row(name, folder, len(intermediates.to_bytes(delivered)) / BATCH))
    of_server = split.server.config.server.training
    trained = _training_macs(split.server.model.denoiser, of_server.steps * of_server.batch_size)
    counted = split.server.config.server.kind == "statistics"
    sent = (
        "Statistics are sent once, as many bytes for any number of images."
        if counted
        else "A release is sent once per image, however long the server trains."
    )
    notes = (
        "MACs are multiply-accumulates of convolutions and matrix products, counted on one image. NFE are network "
        "evaluations of one image, guidance included; with autoguidance each is one of two networks. Training counts "
        "forward and backward over every image seen.",
        f"Time is torch on {_machine(split.device)}, batches of {BATCH}, median of {REPETITIONS}; what a device takes, "
        "`collafuse bench` measures.",
        *(
            ()
            if trained is None
            else (f"The server's training took {trained:.3g} multiply-accumulates for all clients.",)
        ),
    )
    columns = ("client", "side", "parameters", "MACs per evaluation", "NFE", "MACs per image", "ms per image")
    return (
        Table("Work", (*columns, "MACs in training"), tuple(work), notes),
        Table(
            "Bytes between the sides",
            ("client", "release files (training, once)", "intermediate, per image", "bundle (once)"),
            tuple(traffic),
            (f"In bytes. {sent}",),
        ),
    )


def _work_row(
    name: str, side: str, denoiser: Any, nfe: int, milliseconds: float, images: int | None = None
) -> tuple[Any, ...]:
    parameters = sum(p.numel() for p in denoiser.parameters()) or None  # a closed form has none
    each = multiply_accumulates(torch.inference_mode()(_evaluation(denoiser)))
    trained = None if images is None else _training_macs(denoiser, images)
    return name, side, parameters, each, nfe, each * nfe, milliseconds / BATCH, trained


def _training_macs(denoiser: nn.Module, images: int) -> float | None:
    """Multiply-accumulates of training on so many images, from one counted step on one; None for a closed form."""
    if next(denoiser.parameters(), None) is None:
        return None
    learned = denoiser.trained if isinstance(denoiser, AutoGuided) else denoiser
    learning = copy.deepcopy(learned).requires_grad_()  # a loaded one does not learn
    return float(multiply_accumulates(lambda: _evaluation(learning)().sum().backward()) * images)


def _evaluation(denoiser: Any) -> Callable[[], torch.Tensor]:
    device = next(itertools.chain(denoiser.parameters(), denoiser.buffers())).device
    x = torch.zeros(1, *denoiser.image_shape, device=device)
    conditions = torch.zeros(1, denoiser.condition_width, device=device)
    return lambda: denoiser(x, 1.0, conditions)


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """What a call returns and the median of its times in milliseconds, after one to warm up."""
    result, times = call(), []
    for _ in range(REPETITIONS):
        started = time.perf_counter()
        result = call()
        times.append(1000 * (time.perf_counter() - started))
    return result, statistics.median(times)


def _traffic_row(name: str, folder: RunFolder, per_image: float) -> tuple[Any, ...]:
    releases = [p for p in folder.server.releases.glob("*.safetensors") if p.name.split(".")[0] == name]
    bundle = folder.path / f"{name}.onnx"
    return name, sum(map(_size, releases)) or None, round(per_image), _size(bundle) if bundle.is_file() else None


def _size(path: Path) -> int:
    return path.stat().st_size


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device.type} with {threads} thread{'s' if threads > 1 else ''}"
