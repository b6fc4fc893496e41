"""The baselines by name: training one as a run, and generating with it.

    RUN/config.yaml            what it was trained with, its method among it
        models/NODE/           each model: "server" and clients, "whole", or one per site
        models/sites.json      each client's cut and labels
        models/releases/       pfdm: the simulated releases of clipped images, and models/guarantee.json

There is no ``server/`` and no ``clients/``: what a baseline trains is not a server or client of the method, and
``deliver``, ``serve`` and ``export-client`` refuse it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ...config import Config
from ...core.errors import ConfigError, FileFormatError, UsageError
from ...data.dealing import SiteData, load_sites
from ...data.imageset import ImageSet
from ...data.listening import UNHEARD, Listener
from ...learning import weights
from ...nodes.experiment import ObserverOf, refuse_another
from ...nodes.metrics import check_trackers
from ...nodes.runfolder import NodeFolder, RunFolder
from ...nodes.sites import Site, read_sites, write_sites
from ..generated import Generated
from . import centralised, fedavg, halves, local, pfdm, reference, whole
from .asked import Asked
from .part import Part, used_names

Parts = Callable[[Config, Mapping[str, SiteData], Path], list[Part]]
Sample = Callable[[Asked], Generated]


@dataclass(frozen=True)
class Method:
    """parts: what is trained, given the sites' data and a folder for what must be kept; sample: how it is used; shared:
    the model that all clients have, if any; own: whether each has one of its own; kept: the folder of what else is kept
    beside the models, if anything is."""

    parts: Parts
    sample: Sample
    shared: str | None
    own: bool
    kept: str | None = None

    def nodes(self, client: str) -> list[str]:
        """The models that make a client's images."""
        return [*([] if self.shared is None else [self.shared]), *([client] if self.own else [])]


METHODS = {
    "centralised": Method(centralised.parts, whole.sample, whole.WHOLE, own=False),
    "local": Method(local.parts, local.sample, None, own=True),
    "fedavg": Method(fedavg.parts, whole.sample, whole.WHOLE, own=False),
    "reference": Method(reference.parts, reference.sample, halves.SERVER, own=True),
    "reference-repaired": Method(reference.repaired_parts, reference.repaired_sample, halves.SERVER, own=True),
    "pfdm": Method(pfdm.parts, halves.sample, halves.SERVER, own=True, kept=pfdm.RELEASES),
}


def train(
    config: Config,
    run: RunFolder,
    device: torch.device,
    observer_of: ObserverOf,
    *,
    resume: bool = False,
    overwrite: bool = False,
    trackers: Sequence[str] = (),
    listener: Listener = UNHEARD,
) -> list[str]:
    """Train the baseline that the configuration names, and return its models' names; the twin of ``run_experiment``."""
    method = _method(config)
    if config.server.kind != "images":
        raise ConfigError(
            f"method={config.method} trains the server's network, and server.kind={config.server.kind} has none; "
            "leave server.kind out."
        )
    _check_names(config, method)
    check_trackers(trackers)
    run.check(resume=resume, overwrite=overwrite)
    if resume:
        refuse_another(run, config)
    sites = load_sites(config, listener)
    if overwrite and not resume:
        run.clear()
    run.models.mkdir(parents=True, exist_ok=True)
    write_sites(run.models / SITES, sites_of(config, sites))
    run.write_config(config)
    parts = method.parts(config, sites, run.models)
    for part in parts:
        folder = NodeFolder(run.models / part.node)
        part.train(folder, device, observer_of(part.node), resume=resume, trackers=trackers)
    return [part.node for part in parts]


def _check_names(config: Config, method: Method) -> None:
    """Raise ConfigError for a client whose model would lie in the folder of something else."""
    for name in config.clients:
        if method.own and name in (method.shared, method.kept):
            raise ConfigError(
                f"clients.{name}: method={config.method} keeps its {name} in a folder of that name beside the clients' "
                "models, and one would be written over the other; give the client another name."
            )


SITES = "sites.json"


def sites_of(config: Config, sites: Mapping[str, SiteData]) -> dict[str, Site]:
    """Each client's cut, the labels that it shares and that really occur, and whether it shares text."""
    found = {}
    for name, site in sites.items():
        client = config.client(name)
        text = site.train.text is not None and client.share_text
        labels = used_names(site) if client.share_labels and site.train.label_names else None
        found[name] = Site(client.cut.resolve().sigma, labels, simulated=True, text=text)
    return found


def generate(
    run: RunFolder, client: str, count: int, seed: int, device: torch.device, like: ImageSet | None = None
) -> Generated:
    """``count`` images of a trained baseline for a client, its labels dealt out evenly; ``like``: images that they are
    to stand beside, see :func:`~collafuse.nodes.planned.planned_like`.

    From the starting noise of a server with this seed and with as many network evaluations as server and client take
    together. Raises UsageError for a run that is no baseline, ConfigError for a client that is not in it,
    FileFormatError for one that is not trained.
    """
    config = run.read_config()
    method = _method(config)
    config.client(client)
    check_trained(run, [client])
    samplers = (config.server.sampler, *(one.sampler for one in config.clients.values()))
    guided = any(sampler.autoguidance != 1.0 for sampler in samplers)
    read = weights.load_with_early if guided else weights.load
    models = {path.parent.name: read(path) for path in sorted(run.models.glob("*/weights.safetensors"))}
    return method.sample(Asked(config, models, read_sites(run.models / SITES), client, count, seed, device, like))


def check_trained(run: RunFolder, clients: Sequence[str]) -> None:
    """Raise FileFormatError unless every model that makes these clients' images was trained to its end."""
    method = _method(run.read_config())
    for node in dict.fromkeys(node for client in clients for node in method.nodes(client)):
        if not (path := NodeFolder(run.models / node).weights).is_file():
            raise FileFormatError(
                f"{run.path} is not trained to its end: {path} is missing; go on with train --resume, or name another "
                "run."
            )


def _method(config: Config) -> Method:
    if config.method not in METHODS:
        raise UsageError(f"method {config.method!r} is no baseline; known are {', '.join(METHODS)}.")
    return METHODS[config.method]
