"""collafuse train-server"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from collafuse.core.errors import UsageError
from collafuse.core.launched import processes_launched

from . import options
from .console import emit, reporting, say


def train_server(
    config: options.ConfigFile,
    releases: Annotated[
        Path, typer.Option("--releases", metavar="DIR", help="Folder with each client's release, NAME.safetensors.")
    ],
    out: options.OutRun,
    accept_simulated: Annotated[
        bool, typer.Option("--accept-simulated", help="Learn from releases that a simulation made.")
    ] = False,
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
    overrides: options.Overrides = None,
    device: options.Device = "auto",
    track: options.Trackers = None,
    as_json: options.Json = False,
) -> None:
    """At the server: train the high-noise half from releases alone, or add up statistics. Writes RUN/server.

    On several GPUs: torchrun --nproc-per-node N -m cli train-server CONFIG --releases DIR -o RUN.
    """
    from collafuse.config import load
    from collafuse.learning.device import choose_device
    from collafuse.learning.distributed import meeting
    from collafuse.learning.observer import UNWATCHED
    from collafuse.nodes.runfolder import RunFolder
    from collafuse.nodes.server_training import train_server as learn
    from collafuse.nodes.sites import read_releases
    from collafuse.nodes.statistics import add_up, read_statistics

    options.refuse_both(resume, overwrite)
    settings = load(config, overrides or ())
    settings.refuse_baseline("train-server")
    folder = RunFolder(out).server
    if settings.server.kind == "statistics":
        if processes_launched() > 1:
            raise UsageError("adding up statistics is work for one process; start train-server without torchrun.")
        given = read_statistics(releases, accept_simulated=accept_simulated)
        folder.check(resume=resume, overwrite=overwrite)
        with reporting() as reporter:
            bar = reporter.observer("server")
            server = add_up(settings, given, folder, choose_device(device), bar, overwrite=overwrite)
        say(f"Added up the statistics of {', '.join(given)} in {folder.path}. Next:")
    else:
        found = read_releases(releases, accept_simulated=accept_simulated)
        with meeting(choose_device(device)) as (ranks, device_here):
            if ranks.leads:
                folder.check(resume=resume, overwrite=overwrite)
            with reporting() as reporter:
                observer = reporter.observer("server") if ranks.leads else UNWATCHED
                server = learn(
                    settings,
                    found,
                    folder,
                    device_here,
                    observer,
                    resume=resume,
                    overwrite=overwrite,
                    trackers=track or (),
                    ranks=ranks,
                )
        if not ranks.leads:
            return
        images = sum(len(r.z) for rs in found.values() for r in rs)
        say(f"Trained the server with {images} images in {folder.path}. Next:")
    say(f"  collafuse deliver {out} --client {next(iter(server.sites))} -n 64 -o intermediates.safetensors")
    if as_json:
        emit({"run": str(out), "server_model": server.model.id, "clients": sorted(server.sites)})
