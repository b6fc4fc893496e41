"""Training the server: on releases alone, in one process or on several ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from ..config import Config
from ..core import release as releases
from ..core.errors import MismatchError
from ..core.noise import SIGMA_MAX
from ..core.pictures import Pixels, contact_sheet, to_uint8
from ..learning import weights
from ..learning.denoiser import Denoiser
from ..learning.distributed import ALONE, Ranks
from ..learning.observer import Observer
from ..learning.training import Trainer, fresh_denoiser
from .metrics import check_trackers
from .planned import Planned
from .runfolder import NodeFolder
from .server import SHEET_IMAGES, Server
from .sites import check_names, mixture_warning, refuse_twice, sites_of, space_of, told, training_data, write_sites
from .watching import NodeObserver


def train_server(
    config: Config,
    found: Mapping[str, Sequence[releases.Release]],
    folder: NodeFolder,
    device: torch.device,
    observer: Observer,
    *,
    resume: bool = False,
    overwrite: bool = False,
    trackers: Sequence[str] = (),
    ranks: Ranks = ALONE,
) -> Server:
    """Train the high-noise denoiser on releases alone and write its weights; on several ranks the first one writes.

    ``overwrite`` removes an older training, once nothing is left to refuse.
    """
    refuse_twice(found)
    sites = sites_of(found)
    if (warning := mixture_warning(sites)) is not None:
        observer.note(f"warning: {warning}")
    check_names(config, sites, observer)
    space = space_of(found)
    data = training_data(found, space, config.data.horizontal_flip)
    settings, autoguidance = config.server.training, config.server.sampler.autoguidance
    shape = next(iter(found.values()))[0].image_shape
    if shape != config.data.image_shape:
        raise MismatchError(
            f"the releases hold images of shape {shape}, the configuration says {config.data.image_shape}."
        )
    denoiser = fresh_denoiser(config.server.network, shape, space, data, settings, "server")
    model = weights.TrainedModel(denoiser, "server", float(data.sigma_floor.min()), SIGMA_MAX, settings.steps)

    untrained = Server(config, model, sites, device)
    for name in sites:
        untrained.levels(name)  # what could not be delivered is refused now, not after the training
    if all(untrained.handover_sigma(name) >= SIGMA_MAX for name in sites):
        observer.note(
            f"warning: every client takes over at sigma {SIGMA_MAX:g}, where sampling begins: what this server learns "
            "is delivered to nobody. Lower the cut or the handover of some."
        )

    def shown(name: str) -> Planned | None:
        """As is dealt to a client; of one that shares text its first images, since text may never be left out."""
        release, rows = found[name][0], np.arange(SHEET_IMAGES)
        return told(name, sites[name], release, space).take(rows % len(release.z)) if sites[name].text else None

    def sheet(averaged: Denoiser) -> Pixels:
        server = Server(config, replace(model, denoiser=averaged), sites, device)
        parts = [server.deliver(name, SHEET_IMAGES, planned=shown(name), seed=settings.seed).x for name in sites]
        return contact_sheet(to_uint8(np.concatenate(parts)), columns=SHEET_IMAGES)

    def ready(step: int) -> None:
        folder.check_start(step, resume=resume)
        trainer.early_weights.check(step, autoguidance)
        # Not before a resume is accepted: both must stay those of the weights that lie there.
        folder.write_config(config.for_server())
        write_sites(folder.sites, sites)

    check_trackers(trackers)
    if overwrite and ranks.leads:
        folder.clear()
    watching = NodeObserver(folder.path, observer, trackers if ranks.leads else (), sheet)
    try:
        trainer = Trainer(denoiser, data, settings, folder.path, device, watching, ranks=ranks)
        trained = trainer.run(resume, ready)
    finally:
        watching.close()
    model = replace(model, denoiser=trained, steps=trainer.step_kept, early=trainer.early)
    if not ranks.leads:
        return Server(config, model, sites, device)
    weights.save(folder.weights, model)
    model = weights.load_trained(folder.weights, "server", autoguidance, observer)
    return Server(folder.read_config(), model, sites, device)
