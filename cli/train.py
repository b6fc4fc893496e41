"""collafuse train"""

from __future__ import annotations

from typing import Annotated

import typer

from . import options
from .console import emit, reporting, say


def train(
    config: options.ConfigFile,
    out: options.OutRun,
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
    overrides: options.Overrides = None,
    warm_start: Annotated[
        bool, typer.Option("--warm-start", help="Start each client from the server's weights (same size needed).")
    ] = False,
    device: options.Device = "auto",
    track: options.Trackers = None,
    as_json: options.Json = False,
) -> None:
    """Train every node of an experiment in one process: release, train the server, train each client.

    The sites are simulated: their releases are marked so and are refused elsewhere.
    """
    from collafuse.config import load
    from collafuse.learning.training import choose_device
    from collafuse.nodes.experiment import run_experiment
    from collafuse.nodes.runfolder import RunFolder

    options.refuse_both(resume, overwrite)
    settings = load(config, overrides or ())
    run = RunFolder(out)
    with reporting() as reporter:
        experiment = run_experiment(
            settings,
            run,
            choose_device(device),
            reporter.observer,
            resume=resume,
            overwrite=overwrite,
            warm_start=warm_start,
            trackers=track or (),
            listener=reporter,
        )
    say(f"Trained the server and {len(experiment.clients)} clients in {out}. Next:")
    name = next(iter(experiment.clients))
    say(f"  collafuse export-client {out} --client {name} -o {name}.onnx")
    say(f"  collafuse deliver {out} --client {name} -n 64 -o {name}.safetensors")
    say(f"  collafuse finish {name}.onnx {name}.safetensors -o pictures")
    if as_json:
        emit({"run": str(out), "server_model": experiment.server.model.id, "clients": list(experiment.clients)})
