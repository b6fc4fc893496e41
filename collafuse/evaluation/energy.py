"""Energy per image on either side, read from the machine's own counters through codecarbon, where both are there."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from ..core.errors import RuntimeMissingError
from ..core.pairing import conditions_for
from ..nodes.client import finish
from .arms import SplitRun
from .tables import Table

SECONDS = 10.0
"""How long each side works: counters are read once a second."""
BATCH = 64
JOULES_PER_KWH = 3.6e6


def check_counters(device: torch.device) -> None:
    """Raise RuntimeMissingError unless codecarbon is installed and this machine counts the energy of what works here.

    Without counters codecarbon assumes a power for the processor, and an assumption is no measurement.
    """
    try:
        from codecarbon.core.cpu import is_rapl_available
        from codecarbon.core.gpu import is_gpu_details_available
    except ImportError as error:
        raise RuntimeMissingError("--energy needs codecarbon; pip install 'collafuse[metrics]'.") from error
    if not (is_gpu_details_available() if device.type == "cuda" else is_rapl_available()):
        needed = "NVML" if device.type == "cuda" else "RAPL, readable below /sys/class/powercap"
        raise RuntimeMissingError(
            f"this machine shows no energy counter for {device.type} ({needed}), so that energy could only be assumed; "
            "leave --energy out, or measure on a machine that has one."
        )


def energy_table(split: SplitRun) -> Table:
    """Joules per image on either side of every client, the whole machine's idle draw included.

    Raises RuntimeMissingError, see :func:`check_counters`.
    """
    check_counters(split.device)
    rows = []
    for name in split.models:
        delivered = split.from_server(name, BATCH, 0)
        x, conditions = torch.from_numpy(delivered.x), conditions_for(delivered, split.models[name].space)
        sides: dict[str, Callable[[], Any]] = {
            "server": partial(split.from_server, name, BATCH, 0),
            "client": partial(
                finish,
                split.models[name].denoiser,
                x,
                delivered.sigma,
                conditions,
                split.settings[name],
                split.device,
            ),
        }
        rows += [(name, side, *joules_per_image(call)) for side, call in sides.items()]
    return Table(
        "Energy",
        ("client", "side", "processor, J per image", "GPU, J per image"),
        tuple(rows),
        (f"Read from the machine's counters by codecarbon over {SECONDS:g} s of work in batches of {BATCH}; what else "
         "runs on the machine, and its idle draw, is in it.",),
    )  # fmt: skip


def joules_per_image(call: Callable[[], Any]) -> tuple[float | None, float | None]:
    """Energy of the processor and of the GPUs per image, while a call for BATCH images is repeated; None where the
    counter stood still."""
    from codecarbon import OfflineEmissionsTracker

    # The country only turns energy into emissions, which are not shown; offline, so that nobody is asked where we are.
    tracker = OfflineEmissionsTracker(
        country_iso_code="USA", output_methods=[], measure_power_secs=1, log_level="critical", allow_multiple_runs=True
    )
    tracker.start()
    images, started = 0, time.monotonic()
    try:
        while not images or time.monotonic() - started < SECONDS:
            call()
            images += BATCH
    finally:
        tracker.stop()
    if (used := getattr(tracker, "final_emissions_data", None)) is None:  # codecarbon keeps its own errors to itself
        raise RuntimeMissingError("codecarbon did not start on this machine; `codecarbon detect` may say why.")
    cpu, gpu = (JOULES_PER_KWH * kwh / images or None for kwh in (used.cpu_energy, used.gpu_energy))
    return cpu, gpu
