"""A run from inside: server, clients and everybody's images at once. Only whoever played all the nodes has that."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ..config import Config
from ..core.conditioning import Conditions, ConditionSpace, check_same_text
from ..core.errors import DataError, UsageError
from ..core.pairing import conditions_for
from ..core.pictures import Pixels
from ..core.release import Release
from ..data.dealing import SiteData, load_sites
from ..data.imageset import ImageSet
from ..data.listening import UNHEARD, Listener
from ..learning.weights import TrainedModel, load
from ..nodes.client import finish_all
from ..nodes.runfolder import CONFIG, RunFolder
from ..nodes.server import Server
from ..nodes.sites import read_releases
from .attacks.exposure import Exposure
from .attacks.membership import Denoise
from .attacks.reidentification import GALLERY
from .pooling import pooled

BATCH = 256


@dataclass(frozen=True)
class WholeRun:
    """A trained run. models: of the clients that were trained, by name; releases: what the server has of each site."""

    folder: RunFolder
    config: Config
    sites: dict[str, SiteData]
    releases: dict[str, list[Release]]
    server: Server
    models: dict[str, TrainedModel]
    device: torch.device

    @classmethod
    def open(cls, folder: RunFolder, device: torch.device, listener: Listener = UNHEARD) -> WholeRun:
        """Everything of a run of ``train`` or ``demo``, whose data lies where it lay.

        Raises DataError for a folder that holds one node alone, UsageError for a server of statistics, FileFormatError
        for what is damaged or not trained.
        """
        if not (folder.path / CONFIG).is_file() and (folder.path / "server").is_dir():
            raise DataError(
                f"{folder.path} holds a server without its sites' images; what a server learns can only be measured "
                "against these. Run this on a run of train or demo with the same settings, where all nodes are at "
                "hand, or let each site simulate its own part there."
            )
        config = folder.read_config()
        if config.server.kind == "statistics":
            raise UsageError(
                f"the server of {folder.path} adds up statistics: no image was released to it, so there is none to "
                "attack and no cut to move. What its sites gave away, collafuse inspect says of each release; "
                "audit and plan are for a run with server.kind=images."
            )
        server = Server.load(folder.server, device)
        sites = load_sites(config, listener)
        found = read_releases(folder.server.releases, accept_simulated=True)
        names = [name for name in sites if name in found]
        models = {n: load(folder.client(n).weights, "client") for n in names if folder.client(n).weights.is_file()}
        return cls(folder, config, {n: sites[n] for n in names}, found, server, models, device)

    def known(self) -> ImageSet:
        """Every second training image of each site, all together: what the measurements' classifier learns from."""
        return pooled({n: site.train.take(np.arange(0, len(site.train), 2)) for n, site in self.sites.items()})

    def generate(self, client: str, count: int, seed: int) -> tuple[NDArray[np.float32], Pixels]:
        """What the server delivers to a client, x [N, C, H, W], and what the client makes of it, uint8 [N, H, W, C]."""
        planned = self.server.plan_like(client, count, self.sites[client].train)
        delivered = self.server.deliver(client, count, planned=planned, seed=seed)
        model, settings = self.models[client], self.config.client(client)
        conditions = conditions_for(delivered, model.space)
        pixels = finish_all(model.denoiser, delivered.x, delivered.sigma, conditions, settings, self.device)
        return delivered.x, pixels


def asked(model: TrainedModel, device: torch.device) -> Denoise:
    """A model as a function of arrays, a batch at a time."""
    denoiser = model.denoiser.to(device)

    @torch.inference_mode()
    def denoise(x: NDArray[np.float32], sigma: float, conditions: Conditions) -> NDArray[np.float32]:
        parts = [
            denoiser(
                torch.from_numpy(x[i : i + BATCH]).to(device),
                sigma,
                torch.from_numpy(conditions[i : i + BATCH]).to(device),
            )
            for i in range(0, len(x), BATCH)
        ]
        return torch.cat(parts).float().cpu().numpy()

    return denoise


def conditions_of(images: ImageSet, space: ConditionSpace) -> Conditions:
    """Images' labels and text as a model takes them; "no condition" where it knows nothing of what an image has.

    Raises MismatchError for text of another encoder than the model's.
    """
    known = space.label_names
    labels = np.zeros((len(images), len(known)), dtype=np.uint8)
    for column, name in enumerate(images.label_names):
        if name in known:
            labels[:, known.index(name)] = images.labels[:, column]
    if images.text is not None and space.text is not None:
        check_same_text(images.text.space, space.text, "the data")
        return space.conditions(len(images), labels, images.text.rows)
    conditions = space.conditions(len(images), labels)
    unknown = images.labels.any(axis=1) & ~labels.any(axis=1) if len(known) else np.ones(len(images), dtype=bool)
    conditions[unknown] = space.conditions(int(unknown.sum()), None)
    return conditions


def some(count: int, most: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """At most so many rows of count, in their order."""
    return np.sort(rng.choice(count, min(count, most), replace=False))


def gallery_of(run: WholeRun, exposure: Exposure, attacked: NDArray[np.int64]) -> NDArray[np.float32]:
    """The attacked images, then as many others of the same size as make a gallery: the site's own first."""
    others = [exposure.images.x0()[np.setdiff1d(np.arange(len(exposure.images)), attacked)], exposure.held_out.x0()]
    others += [part.x0() for name, site in run.sites.items() if name != exposure.name for part in site.parts]
    everything = np.concatenate([exposure.images.x0()[attacked], *others])
    _, first = np.unique(everything.reshape(len(everything), -1), axis=0, return_index=True)
    return everything[np.union1d(np.arange(len(attacked)), np.sort(first))][:GALLERY]
