"""A statistics server: it adds up what its sites said of their images. Nothing is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..config import Config, unknown_client
from ..core import statistics as files
from ..core.atomic import atomic_file
from ..core.errors import MismatchError
from ..core.moments import Basis, pool
from ..core.pictures import contact_sheet, to_uint8
from ..core.statistics import Statistics
from ..learning import gaussian
from ..learning.observer import Observer
from .runfolder import NodeFolder
from .server import SHEET_IMAGES, Server
from .sites import Site, by_client, check_names, refuse_simulated, write_sites

Found = Mapping[str, Sequence[Statistics]]


def read_statistics(folder: Path, *, accept_simulated: bool) -> dict[str, list[Statistics]]:
    """The statistics in a folder by client, as :func:`collafuse.nodes.sites.read_releases` finds images.

    Raises UsageError for an empty folder, FileFormatError for a damaged file, RefusedError for a simulated one unless
    accepted, MismatchError where they describe images of different shapes or by different coefficients.
    """
    found: dict[str, list[Statistics]] = {}
    for name, path in by_client(folder):
        one = files.read(path)
        refuse_simulated(path, one.simulated, accept_simulated)
        found.setdefault(name, []).append(one)
    bases = {name: (one.image_shape, one.about.coefficients) for name, several in found.items() for one in several}
    if len(set(bases.values())) > 1:
        listed = ", ".join(f"{name} {k} a channel of {list(shape)}" for name, (shape, k) in bases.items())
        raise MismatchError(
            f"the statistics in {folder} count different coefficients ({listed}), so they cannot be added up; let all "
            "sites set the same statistics.coefficients."
        )
    return found


def sites_of(config: Config, found: Found) -> dict[str, Site]:
    """What the statistics say of their clients; the cuts are the configuration's, since statistics stand at none.

    Raises ConfigError for a client that the configuration does not name.
    """
    sites = {}
    for name, several in found.items():
        if name not in config.clients:
            raise unknown_client(name, config.clients)
        shared = None
        if all(one.label_names is not None for one in several):
            shared = tuple(dict.fromkeys(label for one in several for label in one.label_names or ()))
        cut = config.clients[name].cut.resolve().sigma
        sites[name] = Site(cut, shared, any(one.simulated for one in several), statistics=True)
    return sites


def refuse_twice(found: Found) -> None:
    """Raise MismatchError where two files of a client are the same: its images would count twice."""
    for name, several in found.items():
        if len({files.to_bytes(one) for one in several}) < len(several):
            raise MismatchError(
                f"two files of {name} hold the same statistics, which would count twice; keep one of the files."
            )


def gaussians_of(found: Found, sites: Mapping[str, Site]) -> gaussian.TrainedGaussians:
    """One Gaussian per label that a site shares, and one of all images, of all sites' statistics together."""
    first = next(iter(found.values()))[0]
    every = [(one, row) for several in found.values() for one in several for row in range(len(one.counts))]
    label_names = tuple(sorted({label for site in sites.values() for label in site.label_names or ()}))
    shown = [(one, row, one.label_names[row]) for one, row in every if one.label_names is not None]
    parts = [[(one, row) for one, row, name in shown if name == label] for label in label_names]
    gaussians = [pool(part) for part in [*parts, every]]
    denoiser = gaussian.GaussianDenoiser(Basis(first.image_shape, first.about.coefficients), gaussians)
    return gaussian.TrainedGaussians(denoiser, label_names)


def add_up(
    config: Config,
    found: Found,
    folder: NodeFolder,
    device: torch.device,
    observer: Observer,
    *,
    overwrite: bool = False,
) -> Server:
    """Add up all sites' statistics, one Gaussian per label and one of all images, and write the server's folder.

    ``overwrite`` removes an older training, once nothing is left to refuse. Raises MismatchError for images of another
    shape than configured.
    """
    refuse_twice(found)
    sites = sites_of(config, found)
    check_names(config, sites, observer)
    first = next(iter(found.values()))[0]
    if first.image_shape != config.data.image_shape:
        raise MismatchError(
            f"the statistics are of images of shape {first.image_shape}, the configuration says "
            f"{config.data.image_shape}."
        )
    model = gaussians_of(found, sites)
    untold = Server(config, model, sites, device)
    drawn = [untold.deliver(name, SHEET_IMAGES, seed=config.server.training.seed).x for name in sites]
    if overwrite:
        folder.clear()
    folder.write_config(config.for_server())
    write_sites(folder.sites, sites)
    with atomic_file(folder.samples / "draws.png", overwrite=True) as file:
        sheet = contact_sheet(to_uint8(np.concatenate(drawn)), columns=SHEET_IMAGES)
        Image.fromarray(sheet[0]).save(file, format="PNG")
    gaussian.save(folder.weights, model)
    for label, one in zip((*model.label_names, "all images"), model.denoiser.gaussians, strict=True):
        left = int((one.eigenvalues > 0).sum())
        observer.note(f"{label}: {one.count:.0f} images, {left} of {len(one.mean)} directions above the noise.")
    return Server.load(folder, device)
