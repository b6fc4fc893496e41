"""Every node of an experiment in one process, by the very functions that the separate commands call."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..config import Config
from ..core import intermediate as intermediates
from ..core.atomic import write_bytes
from ..core.errors import ConfigError, MismatchError, RefusedError, UsageError
from ..data.dealing import load_sites
from ..data.imageset import ImageSet
from ..data.listening import UNHEARD, Listener
from ..learning import weights
from ..learning.observer import Observer
from .client import Client
from .ledger import Ledger
from .metrics import check_trackers
from .runfolder import CONFIG, RunFolder
from .server import Server
from .server_training import train_server
from .sites import SUFFIX, read_releases
from .statistics import add_up, read_statistics

CALIBRATION = "calibration.safetensors"
"""In a client's folder: intermediates that the trained server delivered, for an export in reduced precision."""
CALIBRATION_IMAGES = 256
CALIBRATION_SEED = 0

FREE = re.compile(
    r"name$|data\.(path|cache|text\.encoder)$"
    r"|(server|clients\.[^.]+)\.(sampler\.|distillation\.|send_previous$|mixed_precision$|ledger$|path$"
    r"|training\.(accumulate|compile|recompute|shard)$)"
)
"""Settings that may be others when a run is resumed: neither a training nor a release depends on them. That the images
and what is shared of them are the same is checked by digests, see :func:`refuse_other_images`."""

ObserverOf = Callable[[str], Observer]
"""Makes an observer for a node by its name."""


@dataclass(frozen=True)
class Experiment:
    """What a run left: the server, the clients, and the model of each client."""

    server: Server
    clients: dict[str, Client]
    models: dict[str, weights.TrainedModel]


def run_experiment(
    config: Config,
    run: RunFolder,
    device: torch.device,
    observer_of: ObserverOf,
    *,
    resume: bool = False,
    overwrite: bool = False,
    warm_start: bool = False,
    trackers: Sequence[str] = (),
    listener: Listener = UNHEARD,
) -> Experiment:
    """Release, train the server, train each client. ``resume`` goes on where an interrupted run stopped,
    ``overwrite`` removes an older run first; without either a folder that holds something is refused.

    ``warm_start`` begins each client at the server's weights; it needs clients of the server's size.
    """
    config.refuse_baseline("a run of every node")
    if warm_start and config.server.kind == "statistics":
        raise UsageError("a statistics server has no network for a client to start from; leave out --warm-start.")
    check_trackers(trackers)
    run.check(resume=resume, overwrite=overwrite)
    if resume:
        refuse_another(run, config)
        refuse_no_early(run, config)
    clients = {name: Client(config, name, site) for name, site in load_sites(config, listener).items()}
    ledgers = {name: Ledger(run.client(name).ledger) for name in clients}
    if resume:
        refuse_other_images(run, clients, ledgers)
    if overwrite and not resume:
        run.clear()  # only now that configuration, device and data are known to be good
    for ledger in ledgers.values():
        ledger.begin()  # first, as the mark of a run
    run.write_config(config)  # before any release, of which it says by which settings it was made
    for name, client in clients.items():
        path = release_of(run, name)
        if not (resume and path.exists()):
            release = client.release_statistics if config.server.kind == "statistics" else client.release
            write_bytes(run.client(name).shared, client.shared_digest().encode(), overwrite=True)
            release(path, ledgers[name], simulated=True)
    if config.server.kind == "statistics":
        given = read_statistics(run.server.releases, accept_simulated=True)
        server = add_up(config, given, run.server, device, observer_of("server"))
    else:
        found = read_releases(run.server.releases, accept_simulated=True)
        server = train_server(
            config, found, run.server, device, observer_of("server"), resume=resume, trackers=trackers
        )
    init = weights.load(run.server.weights, "server") if warm_start else None
    models = {
        name: client.train(run.client(name), device, observer_of(name), resume=resume, init=init, trackers=trackers)
        for name, client in clients.items()
    }
    for name, client in clients.items():
        leave_calibration(server, name, client.site.train, run, observer_of(name))
    return Experiment(server, clients, models)


def release_of(run: RunFolder, client: str) -> Path:
    """Where a run keeps what one of its sites released."""
    return run.server.releases / f"{client}{SUFFIX}"


def refuse_another(run: RunFolder, config: Config) -> None:
    """Raise MismatchError, naming the first difference, when a run was trained with settings that a training or a
    release depends on, and they are others now. Before anything is changed, since nodes resume one by one."""
    if not (run.path / CONFIG).exists():
        return
    before, now = (_flat(one.model_dump(mode="json")) for one in (run.read_config(), config))
    for key in [*before, *now]:
        if not FREE.match(key) and before.get(key) != now.get(key):
            raise MismatchError(
                f"{run.path} was trained with {key}={before.get(key)}, the configuration says {now.get(key)}; "
                "restore it, or train into a new run folder."
            )


def refuse_no_early(run: RunFolder, config: Config) -> None:
    """Raise MismatchError where a node that is trained is to be guided by an earlier version that it does not have.
    Before anything is changed, as :func:`refuse_another`."""
    weights.check_early(run.server.weights, "server", config.server.sampler.autoguidance)
    for name, client in config.clients.items():
        weights.check_early(run.client(name).weights, "client", client.sampler.autoguidance)


def refuse_other_images(run: RunFolder, clients: Mapping[str, Client], ledgers: Mapping[str, Ledger]) -> None:
    """Raise MismatchError when a site has other images than it released, or shares other labels or captions of them:
    the server would have learned from images of which its client knows nothing, or that are held out now, or to be
    asked for what its client does not mean. Raises RefusedError where what it released is gone."""
    for name, client in clients.items():
        if not ledgers[name].path.exists():
            continue
        digests, shared = client.site.train.digests, run.client(name).shared
        if ledgers[name].released_others(digests):
            raise MismatchError(
                f"{name} has other images to train on than those that it released in this run; restore its data, or "
                "train into a new run folder."
            )
        released, path = bool(ledgers[name].spent(digests).any()), release_of(run, name)
        if released and not path.exists() and not ledgers[name].waits(path):
            raise RefusedError(
                f"{name} has released its images in this run, and {path} is gone, as a killed --overwrite leaves it; "
                "no image is released twice. Begin anew with train --overwrite, or train into a new run folder."
            )
        if released and shared.exists() and shared.read_text() != client.shared_digest():
            raise MismatchError(
                f"{name} shares other labels or captions of its images than when it released them in this run; restore "
                "them, or train into a new run folder."
            )


def _flat(values: Any, at: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names."""
    if not isinstance(values, dict):
        return {at: values}
    return {k: v for key, value in values.items() for k, v in _flat(value, f"{at}.{key}" if at else str(key)).items()}


def leave_calibration(server: Server, client: str, images: ImageSet, run: RunFolder, observer: Observer) -> None:
    """Write what a site would ask the server for before it exports in reduced precision, into the client's folder;
    with the text of these images, where the server takes text.

    Where the server cannot deliver to the client, the observer hears why and the run goes on: training does not
    depend on it.
    """
    try:
        planned = server.plan_like(client, CALIBRATION_IMAGES, images)
        delivered = server.deliver(client, CALIBRATION_IMAGES, planned=planned, seed=CALIBRATION_SEED)
    except (ConfigError, MismatchError, RefusedError) as error:
        observer.note(f"no intermediates to calibrate with: {error}")
        return
    write_bytes(run.client(client).path / CALIBRATION, intermediates.to_bytes(delivered), overwrite=True)
