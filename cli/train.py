"""collafuse train"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from . import options
from .console import emit, reporting, say

if TYPE_CHECKING:
    from collafuse.config import Config
    from collafuse.nodes.runfolder import RunFolder


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

    The sites are simulated: their releases are marked so and are refused elsewhere. With --set method=NAME the same
    networks, steps and data become a baseline: centralised, local, fedavg, reference, reference-repaired, pfdm.
    """
    from collafuse.config import load
    from collafuse.learning.device import choose_device
    from collafuse.nodes.experiment import run_experiment
    from collafuse.nodes.runfolder import RunFolder

    options.refuse_both(resume, overwrite)
    settings = load(config, overrides or ())
    run = RunFolder(out)
    if settings.method != "collafuse":
        _train_baseline(settings, run, device, resume, overwrite, warm_start, track, as_json)
        return
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


def _train_baseline(
    config: Config,
    run: RunFolder,
    device: str,
    resume: bool,
    overwrite: bool,
    warm_start: bool,
    track: list[str] | None,
    as_json: bool,
) -> None:
    """The same for a configuration whose method is a baseline."""
    from collafuse.core.errors import UsageError
    from collafuse.evaluation import baselines
    from collafuse.learning.device import choose_device

    if warm_start:
        raise UsageError(f"--warm-start is not part of the baseline {config.method!r}; leave it out.")
    with reporting() as reporter:
        names = baselines.train(
            config,
            run,
            choose_device(device),
            reporter.observer,
            resume=resume,
            overwrite=overwrite,
            trackers=track or (),
            listener=reporter,
        )
    say(f"Trained the baseline {config.method} in {run.path}: {', '.join(names)}. It is there to compare with.")
    if as_json:
        emit({"run": str(run.path), "method": config.method, "models": names})
