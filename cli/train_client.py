"""collafuse train-client"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from collafuse.core.errors import UsageError

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
    distill: Annotated[
        bool,
        typer.Option(
            "--distill", help="Afterwards: distil the trained client in RUN into one that needs one evaluation."
        ),
    ] = False,
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
    overrides: options.Overrides = None,
    device: options.Device = "auto",
    track: options.Trackers = None,
    as_json: options.Json = False,
) -> None:
    """At a site: train the low-noise half on its own images. Writes RUN/clients/NAME.

    With --distill the client trained there before is the teacher of one that finishes in a single evaluation
    (client.distillation); it goes into RUN/clients/NAME/distilled.
    """
    from collafuse.config import load
    from collafuse.data.dealing import load_site
    from collafuse.learning import weights
    from collafuse.learning.device import choose_device
    from collafuse.nodes.client import Client
    from collafuse.nodes.distilling import distill as distilled
    from collafuse.nodes.runfolder import RunFolder

    options.refuse_both(resume, overwrite)
    if distill and init is not None:
        raise UsageError("--distill starts from the trained client in RUN, and --init from a server; give one of them.")
    settings = load(config, overrides or ())
    settings.refuse_baseline("train-client")
    with reporting() as reporter:
        site = Client(settings, client, load_site(settings, client, reporter))
    run = RunFolder(out)
    before = run.trained_client(client) if distill else None
    teacher = weights.load(init, "server") if init is not None else None
    folder = run.client(client)
    target = folder.distilled if distill else folder
    target.check(resume=resume, overwrite=overwrite)
    chosen = choose_device(device)
    asked: dict[str, Any] = {"resume": resume, "overwrite": overwrite, "trackers": track or ()}
    with reporting() as reporter:
        if before is not None:
            model = distilled(site, before, target, chosen, reporter.observer(f"{client}, distilled"), **asked)
        else:
            model = site.train(target, chosen, reporter.observer(client), init=teacher, **asked)
    say(f"Trained {client} in {target.path}. Next:")
    say(f"  collafuse export-client {out} --client {client}{' --distilled' if distill else ''} -o {client}.onnx")
    if as_json:
        emit({"run": str(out), "client": client, "weights": model.id})
