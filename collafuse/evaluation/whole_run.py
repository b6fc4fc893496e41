"""A run from inside: server, clients and everybody's images at once. Only whoever played all the nodes has that."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..config import Config
from ..core.conditioning import Conditions, ConditionSpace, check_same_text, one_label_each
from ..core.errors import DataError
from ..core.pairing import conditions_for
from ..core.pictures import Pixels
from ..core.release import Release
from ..core.statistics import Statistics
from ..data.dealing import SiteData, load_sites
from ..data.imageset import ImageSet, x0_of
from ..data.listening import UNHEARD, Listener
from ..learning.checkpoint import digest_of_tensors
from ..learning.weights import TrainedModel
from ..nodes.client import finish_all, load_client
from ..nodes.runfolder import CONFIG, RunFolder
from ..nodes.server import Server
from ..nodes.sites import read_releases
from ..nodes.statistics import read_statistics
from .attacks.exposure import Exposure
from .attacks.membership import Denoise
from .attacks.reidentification import GALLERY
from .measured import halves, measured, some
from .pooling import pooled

BATCH = 256


@dataclass(frozen=True)
class WholeRun:
    """A trained run. sites: their images, of which a large set may lie in files; measured: those that measurements look
    at, see :mod:`.measured`. releases, statistics: what the server has of each site, images or statistics; the other is
    empty. server_model: the server's network, None where it adds up statistics. models: of the clients that were
    trained, by name."""

    folder: RunFolder
    config: Config
    sites: dict[str, SiteData]
    measured: dict[str, SiteData]
    releases: dict[str, list[Release]]
    statistics: dict[str, list[Statistics]]
    server: Server
    server_model: TrainedModel | None
    models: dict[str, TrainedModel]
    device: torch.device

    @classmethod
    def open(cls, folder: RunFolder, device: torch.device, listener: Listener = UNHEARD) -> WholeRun:
        """Everything of a run of ``train`` or ``demo``, whose data lies where it lay.

        Raises DataError for a folder that holds one node alone, RefusedError for a baseline, FileFormatError for what
        is damaged or not trained.
        """
        folder.refuse_baseline("an audit or a plan")
        if not (folder.path / CONFIG).is_file() and (folder.path / "server").is_dir():
            raise DataError(
                f"{folder.path} holds a server without its sites' images; what a server learns can only be measured "
                "against these. Run this on a run of train or demo with the same settings, where all nodes are at "
                "hand, or let each site simulate its own part there."
            )
        config, server = folder.read_config(), Server.load(folder.server, device)
        sites = load_sites(config, listener)
        network = server.model if isinstance(server.model, TrainedModel) else None
        given, counted = {}, {}
        if network is not None:
            given = read_releases(folder.server.releases, accept_simulated=True)
        else:
            counted = read_statistics(folder.server.releases, accept_simulated=True)
        names = [name for name in sites if name in given or name in counted]
        trained = (n for n in names if folder.client(n).weights.is_file())
        models = {n: load_client(folder.client(n), config.client(n)) for n in trained}
        looked_at = {n: measured(n, sites[n], listener) for n in names}
        own = {n: sites[n] for n in names}
        return cls(folder, config, own, looked_at, given, counted, server, network, models, device)

    @cached_property
    def images_digest(self) -> str:
        """Identifies the images of all sites, with what is known of each: others' stand in a site's gallery, and the
        measurements' classifier learns from everybody's."""
        parts = [part for site in self.sites.values() for part in site.parts]
        arrays: list[NDArray[Any]] = [array for part in parts for array in (part.digests, part.labels)]
        arrays += [part.text.rows for part in parts if part.text is not None]
        return digest_of_tensors(*(torch.from_numpy(array) for array in arrays))

    def known(self) -> ImageSet:
        """Half of the training images of each site, all together: what the measurements' classifier learns from."""
        return pooled({n: halves(site.train)[0] for n, site in self.measured.items()})

    def told(self, client: str, images: ImageSet, space: ConditionSpace | None = None) -> Conditions:
        """What the server was told that a site's images show, as a model of this space takes it, its own unless named:
        what the site keeps is no condition."""
        site, space = self.server.site(client), space or self.server.model.space
        text = images.text if site.text and space.text is not None else None
        if site.label_names is None:
            return space.conditions(len(images), None, None if text is None else text.rows)
        return conditions_of(replace(images, text=text), space)

    def generate(self, client: str, count: int, seed: int) -> tuple[NDArray[np.float32], Pixels]:
        """What the server delivers to a client, x [N, C, H, W], and what the client makes of it, uint8 [N, H, W, C]."""
        planned = self.server.plan_like(client, count, self.sites[client].train)
        delivered = self.server.deliver(client, count, planned=planned, seed=seed)
        model, settings = self.models[client], self.config.client(client)
        conditions = conditions_for(delivered, model.space)
        x, sigma, history = delivered.x, delivered.sigma, delivered.history(slice(None))
        pixels = finish_all(model.denoiser, x, sigma, conditions, settings, self.device, history=history)
        return delivered.x, pixels


def asked(model: TrainedModel, device: torch.device) -> Denoise:
    """A model as a function of arrays, a batch at a time; one that is guided without what guides it, which knows images
    best."""
    denoiser = model.learned.to(device)

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
    named = bool(known and images.label_names)
    unknown = images.labels.any(axis=1) & ~labels.any(axis=1) if named else np.ones(len(images), dtype=bool)
    conditions[unknown] = space.conditions(int(unknown.sum()), None)
    return conditions


def added_up(run: WholeRun, name: str, most: int, rng: np.random.Generator) -> ImageSet:
    """The different images of which a server's statistics for a site would be, at most so many: of a site that shares
    one label of each image those of all such sites that show its labels, of any other everybody's."""

    def by_label(client: str) -> bool:
        shared = run.server.site(client).label_names is not None
        return shared and one_label_each(run.measured[client].train.labels)

    labelled, own = by_label(name), run.measured[name].train.label_names
    counted: dict[str, NDArray[np.int64]] = {}
    for one, site in run.measured.items():
        if by_label(one) or not labelled:
            _, first = np.unique(site.train.digests, axis=0, return_index=True)
            columns = [column for column, label in enumerate(site.train.label_names) if label in own]
            shown = site.train.labels[first][:, columns].any(axis=1)
            counted[one] = np.sort(first[shown] if labelled else first)
    # Drawn before they are put together: of large sites all would fill the memory.
    of, rows = np.repeat(np.arange(len(counted)), list(map(len, counted.values()))), [*counted.values()]
    chosen = some(len(of), most, rng)
    of, drawn = of[chosen], np.concatenate(rows)[chosen]
    return pooled({one: run.measured[one].train.take(drawn[of == i]) for i, one in enumerate(counted)})


def gallery_of(run: WholeRun, exposure: Exposure, attacked: NDArray[np.int64]) -> NDArray[np.float32]:
    """The attacked images, then as many others of the same size as make a gallery, each once: the site's own first."""
    images, others = exposure.images, np.setdiff1d(np.arange(len(exposure.images)), attacked)
    sources = [images.take(others), exposure.held_out]
    sources += [part for name, site in run.measured.items() if name != exposure.name for part in site.parts]
    gallery = list(images.take(attacked).in_memory())
    seen = {one.tobytes() for one in gallery}
    for one in (one for source in sources for one in source.in_memory()):
        if len(gallery) >= GALLERY:
            break
        if one.tobytes() not in seen:
            seen.add(one.tobytes())
            gallery.append(one)
    return x0_of(np.stack(gallery))
