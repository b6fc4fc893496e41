"""The demonstration: the whole path on real digits, from training to pictures finished without torch."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from collafuse.config import Config, load
from collafuse.core import intermediate as intermediates
from collafuse.core.atomic import write_bytes
from collafuse.core.errors import CollaFuseError
from collafuse.core.intermediate import Intermediate
from collafuse.core.noise import SIGMA_MAX
from collafuse.core.pairing import conditions_for
from collafuse.core.pictures import Pixels, contact_sheet, side_by_side, to_uint8
from collafuse.data.dealing import load_sites
from collafuse.data.listening import UNHEARD, Listener
from collafuse.nodes.client import finish
from collafuse.nodes.experiment import Experiment, ObserverOf, run_experiment
from collafuse.nodes.runfolder import RunFolder
from collafuse.nodes.streams import start_noise
from edge_client.child import HOME, environment
from edge_client.pictures import labelled_table, to_image, write_png
from export.writer import Exported, export_client

CONFIG = "digits.yaml"
IMAGES_PER_CLIENT = 120
SHOWN_PER_CLIENT = 24
FIGURE_COLUMN_PIXELS = 420
BLOCKED = ("torch", "torchvision", "onnx", "onnxscript")
DEVICE_PROGRAM = (
    "import sys; sys.modules.update(dict.fromkeys(sys.argv.pop(1).split(',')));from cli.app import main; main()"
)
"""Run by a fresh interpreter: importing any of BLOCKED raises ImportError there, as on a device."""


@dataclass(frozen=True)
class ClientResult:
    """What the demonstration shows of one client."""

    name: str
    labels: tuple[str, ...]
    cut_sigma: float
    release_bytes: int
    server_nfe: int
    client_nfe: int
    bundle: Exported
    device_milliseconds: float
    read_as_asked: float | None


@dataclass(frozen=True)
class DemoResult:
    """Where everything lies and what happened. Times in seconds."""

    training_seconds: float
    total_seconds: float
    clients: tuple[ClientResult, ...]
    figure: Path
    sheets: tuple[Path, ...]


def run_demo(
    folder: Path,
    overrides: Sequence[str],
    device: torch.device,
    observer_of: ObserverOf,
    say: Callable[[str], None],
    *,
    overwrite: bool = False,
    listener: Listener = UNHEARD,
) -> DemoResult:
    """Train a server and three clients, export, deliver, and finish in a process that cannot import torch."""
    started = time.monotonic()
    config = load(CONFIG, overrides)
    run = RunFolder(folder)
    say("Training one server and three sites on handwritten digits ...")
    experiment = run_experiment(config, run, device, observer_of, overwrite=overwrite, listener=listener)
    training_seconds = time.monotonic() - started
    read = _digit_reader(config)
    results, columns, sheets = [], [], []
    for name in experiment.clients:
        say(f"{name}: exporting to ONNX, delivering, finishing without torch ...")
        result, delivered, finished = _one_client(experiment, name, folder, read)
        shown = np.linspace(0, len(delivered) - 1, SHOWN_PER_CLIENT).astype(int)
        before, after = to_uint8(delivered.x[shown]), finished[shown]
        sheets.append(folder / "pictures" / f"{name}-server-beside-finished.png")
        write_png(sheets[-1], to_image(contact_sheet(side_by_side(before, after), columns=6)))
        columns.append([_sheet(p) for p in (_client_alone(experiment, name, device), before, after)])
        results.append(result)
    figure = folder / "pictures" / "cuts.png"
    _draw_figure(figure, columns, results)
    return DemoResult(training_seconds, time.monotonic() - started, tuple(results), figure, tuple(sheets))


def _one_client(
    experiment: Experiment, name: str, folder: Path, read: Callable[[Pixels], np.ndarray]
) -> tuple[ClientResult, Intermediate, Pixels]:
    """Export, deliver and finish for one client; returns its figures, the intermediates, the finished images."""
    settings = experiment.clients[name].settings
    bundle, handed, pictures = (folder / part for part in (f"{name}.onnx", f"{name}.safetensors", f"finished/{name}"))
    exported = export_client(experiment.models[name], settings, name, bundle)
    delivered = experiment.server.deliver(name, IMAGES_PER_CLIENT)
    write_bytes(handed, intermediates.to_bytes(delivered))
    report = finish_as_device(bundle, handed, pictures)
    files = sorted(pictures.glob("[0-9]*.png"))
    finished = np.stack([np.asarray(Image.open(file)) for file in files])[..., None]
    asked = [delivered.label_names[i] for i in delivered.labels.argmax(axis=1)] if delivered.labels is not None else []
    result = ClientResult(
        name=name,
        labels=experiment.models[name].label_names,
        cut_sigma=settings.cut.resolve().sigma,
        release_bytes=RunFolder(folder).server.releases.joinpath(f"{name}.safetensors").stat().st_size,
        server_nfe=delivered.nfe,
        client_nfe=report["nfe"],
        bundle=exported,
        device_milliseconds=report["milliseconds_per_image"],
        read_as_asked=float(np.mean(read(finished) == np.asarray(asked))) if asked else None,
    )
    return result, delivered, finished


def finish_as_device(bundle: Path, handed: Path, pictures: Path) -> dict[str, Any]:
    """``collafuse finish`` in a fresh interpreter that cannot import torch or onnx; returns its report."""
    arguments = ["finish", str(bundle.resolve()), str(handed.resolve()), "-o", str(pictures.resolve()), "--json"]
    done = subprocess.run(
        [sys.executable, "-c", DEVICE_PROGRAM, ",".join(BLOCKED), *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=HOME,  # not the user's folder, whose modules would come before ours
        env=environment(),
    )
    if done.returncode:
        failed = CollaFuseError(f"finishing in a process without torch failed: {done.stderr.strip()}")
        failed.exit_code = done.returncode
        raise failed
    return dict(json.loads(done.stdout))


def _client_alone(experiment: Experiment, name: str, device: torch.device) -> Pixels:
    """The client's denoiser run from pure noise: the failure that a low-noise denoiser is without a server."""
    model, settings = experiment.models[name], experiment.clients[name].settings
    asked = experiment.server.deliver(name, SHOWN_PER_CLIENT, seed=0)
    x = torch.from_numpy(start_noise(range(SHOWN_PER_CLIENT), model.denoiser.image_shape, 0)) * SIGMA_MAX
    conditions = conditions_for(asked, model.space)
    return to_uint8(finish(model.denoiser, x, SIGMA_MAX, conditions, settings, device).numpy())


def _digit_reader(config: Config) -> Callable[[Pixels], np.ndarray]:
    """A support vector classifier trained on the sites' real digits: pixels [N, H, W, C] to digit names [N]."""
    from sklearn.svm import SVC

    sites = load_sites(config).values()
    pixels = np.concatenate([s.train.in_memory().reshape(len(s.train), -1) for s in sites])
    names = np.concatenate([np.asarray(s.train.label_names)[s.train.labels.argmax(axis=1)] for s in sites])
    classifier = SVC(gamma="scale").fit(pixels / 255.0, names)
    return lambda images: classifier.predict(images.reshape(len(images), -1) / 255.0)


def _sheet(pixels: Pixels) -> Image.Image:
    return to_image(contact_sheet(pixels, columns=6, width=FIGURE_COLUMN_PIXELS))


def _draw_figure(path: Path, columns: list[list[Image.Image]], results: list[ClientResult]) -> None:
    """Rows: client alone, server as it delivers, client after server. Columns: clients by their cut."""
    order = sorted(range(len(results)), key=lambda i: results[i].cut_sigma)
    rows = [[columns[i][row] for i in order] for row in range(3)]
    names = [f"{results[i].name}: cut at sigma {results[i].cut_sigma:.2f}" for i in order]
    write_png(
        path, labelled_table(rows, ("client alone\n(from noise)", "server\n(delivered)", "client\n(finished)"), names)
    )
