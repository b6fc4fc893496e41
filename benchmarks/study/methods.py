"""How a cell is trained: each model once, however many cells have it in common.

A training is kept in the work folder under a digest of everything that it depends on: network, settings, seed, labels
and the data themselves. Two cells that would train the same model share it, and no others do: a client serves every
server of its cut, a server every handover level.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from cli.console import Reporter
from collafuse.config import Config
from collafuse.core.moments import default_coefficients
from collafuse.data.dealing import SiteData
from collafuse.evaluation.baselines import METHODS, halves, reference
from collafuse.evaluation.baselines.noising import FreshReleases
from collafuse.evaluation.baselines.part import Part, clean_data
from collafuse.learning import weights
from collafuse.learning.examples import estimate_sigma_data
from collafuse.learning.gaussian import TrainedGaussians
from collafuse.learning.observer import UNWATCHED
from collafuse.learning.training import Trainer
from collafuse.nodes.client import Client
from collafuse.nodes.ledger import Ledger
from collafuse.nodes.runfolder import NodeFolder
from collafuse.nodes.server import ServerModel
from collafuse.nodes.sites import SUFFIX, read_releases
from collafuse.nodes.statistics import add_up, read_statistics

from ..mixtures.fit import best_shrinkage, mixture
from .cells import Cell
from .turns import alone

MIXTURES = {"mixture-4": 4, "mixture-16": 16}
"""Variants whose server has so many Gaussians for a label at most."""
UNTRAINED = {"statistics", *MIXTURES}
"""Variants whose server trains nothing."""


class CleanWeight(Trainer):
    """Our objective with the weight that clean images have, 1 / c_out^2, as it was at first.

    What a level says of D then counts by (1 - k)^2 in place of 1 - k: less near the release.
    """

    def losses(
        self, denoise: Callable[[Tensor, Tensor], Tensor], z: Tensor, floor: Tensor, sigma: Tensor, noise: Tensor
    ) -> Tensor:
        return self._share_of(floor, sigma) * super().losses(denoise, z, floor, sigma, noise)

    def least_losses(self, floor: Tensor, sigma: Tensor) -> Tensor:
        return self._share_of(floor, sigma) * super().least_losses(floor, sigma)

    @staticmethod
    def _share_of(floor: Tensor, sigma: Tensor) -> Tensor:
        return 1 - (floor / sigma).square()


def parts_of(cell: Cell, config: Config, sites: Mapping[str, SiteData], work: Path) -> list[Part]:
    """What a cell trains. Release files are kept by data and cut, and shared by seeds and variants."""
    cut = "" if cell.cut is None else f"-{cell.cut:g}"
    releases = work / "releases" / f"{cell.data}{cut}"
    if cell.method != "collafuse":
        return METHODS[cell.method].parts(config, sites, releases.with_name(f"{releases.name}-{cell.method}"))
    clients = [halves.client_part(config, name, site) for name, site in sites.items()]
    if cell.variant in UNTRAINED:
        return clients
    server = fresh_server(config, sites) if cell.variant == "fresh" else released_server(config, sites, releases)
    if cell.variant == "clean-weight":
        server = replace(server, trainer=CleanWeight)
    return [server, *clients]


def statistics_server(cell: Cell, config: Config, sites: Mapping[str, SiteData], work: Path) -> ServerModel:
    """The server that adds up statistics, which every cut and seed of a data set shares."""
    folder = work / "releases" / f"{cell.data}-statistics"
    for name, site in sites.items():
        path = folder / f"{name}{SUFFIX}"
        if not path.exists():
            ledger = Ledger(folder / "ledgers" / f"{name}.sqlite")
            Client(config, name, site).release_statistics(path, ledger, simulated=True)
    found = read_statistics(folder, accept_simulated=True)
    return add_up(config, found, NodeFolder(folder / "server"), torch.device("cpu"), UNWATCHED).model


def mixture_server(site: SiteData, components: int) -> TrainedGaussians:
    """What the server would have of a site that sent statistics of groups of its labels; nothing is released."""
    coefficients = default_coefficients(site.train.image_shape)
    shrinkage = best_shrinkage(site.train, coefficients, components)
    denoiser = mixture(site.train, coefficients, components, shrinkage)
    return TrainedGaussians(denoiser.eval(), site.train.label_names)


def released_server(config: Config, sites: Mapping[str, SiteData], folder: Path) -> Part:
    """The server on one release of each site, made here once."""
    for name, site in sites.items():
        path = folder / f"{name}{SUFFIX}"
        if not path.exists():
            Client(config, name, site).release(path, Ledger(folder / "ledgers" / f"{name}.sqlite"), simulated=True)
    return halves.server_part(config, read_releases(folder, accept_simulated=True))


def fresh_server(config: Config, sites: Mapping[str, SiteData]) -> Part:
    """The server on a fresh noisy copy of each image at every step, all else as with releases."""
    like = reference.server_part(config, sites)
    training = config.server.training.model_copy(update={"sigma_data": estimate_sigma_data(clean_data(sites, config))})
    return replace(like, settings=training, trainer=FreshReleases)


def folder_of(part: Part, work: Path) -> NodeFolder:
    """Where a part's training is kept in a work folder."""
    return NodeFolder(work / "parts" / f"{part.node}-{part.digest[:16]}")


def trained(part: Part, work: Path) -> weights.TrainedModel | None:
    """What a part has become; None where its training has not ended in this work folder."""
    kept = folder_of(part, work).weights
    return weights.load_with_early(kept, part.role) if kept.exists() else None


def train(parts: list[Part], work: Path, reporter: Reporter) -> dict[str, weights.TrainedModel]:
    """Train what is not trained yet; an interrupted training goes on, one of another study is waited for."""
    models = {}
    for part in parts:
        folder = folder_of(part, work)
        with alone(folder.path.with_name(f"{folder.path.name}.lock")):
            model = trained(part, work)
            if model is None:
                model = part.train(folder, torch.device("cpu"), reporter.observer(part.node), resume=True)
            models[part.node] = model
    return models
