"""collafuse train-client"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options
from .console import emit, reporting, say


def train_client(
    config: options.ConfigFile,
    client: options.ClientOption,
    out: options.OutRun,
    init: Annotated[
        Path | None,
        typer.Option("--init", metavar="WEIGHTS", help="Start from a server's weights.safetensors (same size needed)."),
    ] = None,
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
    overrides: options.Overrides = None,
    device: options.Device = "auto",
    track: options.Trackers = None,
    as_json: options.Json = False,
) -> None:
    """At a site: train the low-noise half on its own images. Writes RUN/clients/NAME."""
    from collafuse.config import load
    from collafuse.data.dealing import load_site
    from collafuse.learning import weights
    from collafuse.learning.training import choose_device
    from collafuse.nodes.client import Client
    from collafuse.nodes.runfolder import RunFolder

    options.refuse_both(resume, overwrite)
    settings = load(config, overrides or ())
    with reporting() as reporter:
        site = Client(settings, client, load_site(settings, client, reporter))
    teacher = weights.load(init, "server") if init is not None else None
    folder = RunFolder(out).client(client)
    folder.prepare(resume=resume, overwrite=overwrite)
    with reporting() as reporter:
        model = site.train(
            folder,
            choose_device(device),
            reporter.observer(client),
            resume=resume,
            init=teacher,
            trackers=track or (),
        )
    say(f"Trained {client} in {folder.path}. Next:")
    say(f"  collafuse export-client {out} --client {client} -o {client}.onnx")
    if as_json:
        emit({"run": str(out), "client": client, "weights": model.id})
