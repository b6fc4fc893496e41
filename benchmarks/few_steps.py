"""How few evaluations finish a picture: solvers, spacings and warm starts, on a trained run.

All rows finish the same intermediates, delivered by the run's server, with the run's exported clients. The distance
to many steps says how far a row is from solving the same equation well; the Fréchet distance says whether a person
would mind. A row of distilled clients comes where every client of the run has been distilled.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from collafuse.core.conditioning import guided
from collafuse.core.intermediate import Intermediate
from collafuse.core.noise import client_sigmas
from collafuse.core.pairing import conditions_for
from collafuse.core.pictures import to_uint8
from collafuse.core.samplers import EVALUATES_AT_END, STEPS, run
from collafuse.nodes.client import load_client
from collafuse.nodes.runfolder import NodeFolder, RunFolder
from collafuse.nodes.server import Server
from edge_client import Finisher
from export.writer import export_client

from .judge import Judge

EVALUATIONS = (1, 2, 3, 4, 5, 6, 8)
MANY = 40
SEED = 0
IMAGES_PER_CLIENT = 500

Spacing = Callable[[float, int, float], list[float]]


def even_in_log_snr(handover: float, num_steps: int, sigma_low: float) -> list[float]:
    """As ``client_sigmas``, with even steps of ln sigma in place of Karras' rho = 7."""
    if num_steps == 1:
        return [handover, 0.0]
    return [float(s) for s in np.geomspace(handover, sigma_low, num_steps)] + [0.0]


@dataclass(frozen=True)
class Way:
    """A row: how the client walks from where it takes over to an image."""

    name: str
    solver: str
    spacing: Spacing = client_sigmas
    warm: bool = False
    sigma_low: float | None = None
    """Times the configured one."""


WAYS = (
    Way("euler", "euler"),
    Way("heun", "heun"),
    Way("dpmpp_2m", "dpmpp_2m"),
    Way("dpmpp_2m, warm", "dpmpp_2m", warm=True),
    Way("dpmpp_2m, even in log-SNR", "dpmpp_2m", even_in_log_snr),
    Way("dpmpp_2m, sigma_low doubled", "dpmpp_2m", sigma_low=2.0),
    Way("dpmpp_2m, sigma_low halved", "dpmpp_2m", sigma_low=0.5),
)


DISTILLED = Way("distilled, euler", "euler")


class Part(NamedTuple):
    """A client's bundle, loaded; what the server delivers to it, with its last estimate; its distilled bundle."""

    finisher: Finisher
    given: Intermediate
    distilled: Finisher | None


def main(folder: Path) -> None:
    """Print a table for one run folder."""
    judge = Judge.of_run(folder)
    parts = _clients(folder)
    best = _pooled(parts, Way("", "dpmpp_2m"), MANY)
    count = min(len(best), len(judge.held_out))
    chosen = np.random.default_rng(SEED).choice(len(best), count, replace=False)
    real = np.random.default_rng(SEED).choice(len(judge.real), count, replace=False)

    def frechet(images: NDArray[np.uint8]) -> float:
        return judge.frechet(images[chosen], judge.held_out.pixels)

    floor = judge.frechet(judge.real.pixels[real], judge.held_out.pixels)
    print(
        f"{judge.introduce()} Real to real {floor:.2f}; {MANY} steps of dpmpp_2m {frechet(best):.2f}. "
        f"Each cell: Frechet distance (grey levels, root mean square, to {MANY} steps)."
    )
    print(f"\n| evaluations | {' | '.join(map(str, EVALUATIONS))} |\n|---|{'---|' * len(EVALUATIONS)}")
    for way in (*WAYS, *([DISTILLED] if all(distilled for *_, distilled in parts) else [])):
        cells = []
        for evaluations in EVALUATIONS:
            steps = _steps_for(way, evaluations)
            if steps is None:
                cells.append("-")
                continue
            images = _pooled(parts, way, steps)
            apart = np.sqrt(np.mean((images.astype(float) - best) ** 2))
            cells.append(f"{frechet(images):.2f} ({apart:.2f})")
        print(f"| {way.name} | {' | '.join(cells)} |")


def _steps_for(way: Way, evaluations: int) -> int | None:
    """Steps that cost this many evaluations; None where no number does. Heun's last step, to 0, costs one."""
    if way.solver not in EVALUATES_AT_END:
        return evaluations
    return (evaluations + 1) // 2 if evaluations % 2 else None


def _clients(folder: Path) -> list[Part]:
    server = Server.load(RunFolder(folder).server, torch.device("cpu"))
    settings = server.config.server
    remembers = settings.sampler.name == "dpmpp_2m"
    server.config = server.config.model_copy(
        update={"server": settings.model_copy(update={"send_previous": remembers})}
    )
    parts = []
    for name in server.sites:
        node = RunFolder(folder).client(name)
        distilled = _exported(node.distilled, name) if node.distilled.weights.exists() else None
        parts.append(Part(_exported(node, name), server.deliver(name, IMAGES_PER_CLIENT, seed=SEED), distilled))
    return parts


def _exported(node: NodeFolder, name: str) -> Finisher:
    with tempfile.TemporaryDirectory() as scratch:
        bundle = Path(scratch) / "client.onnx"
        settings = node.read_config().client(name)
        export_client(load_client(node, settings), settings, name, bundle)
        return Finisher.load(bundle)


def _pooled(parts: list[Part], way: Way, steps: int) -> NDArray[np.uint8]:
    """What all clients make of their intermediates: uint8 [N, C, H, W]."""
    return np.concatenate([_finish(part, way, steps) for part in parts]).transpose(0, 3, 1, 2)


def _finish(part: Part, way: Way, steps: int) -> NDArray[np.uint8]:
    given, finisher = part.given, part.distilled if way is DISTILLED else part.finisher
    assert finisher is not None  # there is a row of distilled clients only where all are
    info = finisher.bundle.info
    sigmas = way.spacing(given.sigma, steps, info.sigma_low * (way.sigma_low or 1.0))
    history = given.history(slice(None)) if way.warm else None
    conditions = conditions_for(given, info.space)
    denoise = guided(finisher.model, conditions, info.guidance)
    x, _ = run(STEPS[way.solver], denoise, given.x.astype(np.float32), sigmas, history)
    return to_uint8(x)
