"""The audit of a run: what its server learned from what it received, and what its models give away.

Every attack is made for every site; figures go into tables, what chance does not explain into alarms, and both into a
verdict in plain language: what a given cut does not protect.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ..core.conditioning import one_label_each, translate_labels
from ..core.noise import Cut
from ..core.pictures import to_uint8
from ..data.listening import UNHEARD, Listener
from ..learning.seeds import keyed_seed
from ..nodes.runfolder import RunFolder
from . import audit_tables as shown
from .attacks.attributes import Inference, infer, questions
from .attacks.exposure import Exposure, broken_promises, expose
from .attacks.finding import Finding, Share
from .attacks.membership import Membership
from .attacks.memorisation import Nearest, Repeated
from .attacks.reconstruction import Features, Reconstruction, compare, wiener
from .attacks.reidentification import COPIES, GALLERY, reidentified, reidentified_at
from .features import classifier_of
from .measured import some
from .models_attacked import memberships, memorised
from .picture import SHOWN, Pictures, beside
from .pooling import pooled
from .statistics_audit import StatisticsAudit, audit_statistics
from .tables import FOLDER, Table
from .whole_run import WholeRun, asked, gallery_of

MOST_RECONSTRUCTED, FEWEST_RECONSTRUCTED = 256, 4
"""Images of a site that are reconstructed, with at least as many others to know the kind from."""
MOST_KNOWN = 5_000
"""Images that an attacker has of the same kind, at most."""


@dataclass(frozen=True)
class SiteAudit:
    """What was found about one site."""

    exposure: Exposure
    promises: tuple[Finding, ...]
    gallery: int
    from_stored: bool
    reidentified: dict[int, Share]
    reconstructions: tuple[Reconstruction, ...]
    inferences: tuple[Inference, ...]
    nearest: Nearest | None
    repeated: Repeated | None


@dataclass(frozen=True)
class Audit:
    """sites: by client; membership: by model; picture: originals, releases and reconstructions."""

    sites: tuple[SiteAudit, ...]
    membership: dict[str, Membership]
    picture: Image.Image
    notes: tuple[str, ...]
    picture_name: str = "reconstruction.png"

    @property
    def tables(self) -> list[Table]:
        """Every figure."""
        return shown.tables(self)

    @property
    def alarms(self) -> list[str]:
        """What nobody should have to read a table for: broken promises and models that remember."""
        return shown.alarms(self)

    @property
    def verdict(self) -> list[str]:
        """What each cut does not protect, a paragraph a site."""
        return [shown.verdict(site) for site in self.sites]


def audit(
    folder: RunFolder, device: torch.device, *, seed: int = 0, listener: Listener = UNHEARD
) -> Audit | StatisticsAudit:
    """Attack a run of ``train`` or ``demo``. The same seed makes the same attacks. Raises what opening it raises."""
    run = WholeRun.open(folder, device, listener)
    return audit_statistics(run, seed, listener) if run.statistics else _audit_releases(run, seed, listener)


def _audit_releases(run: WholeRun, seed: int, listener: Listener) -> Audit:
    features = _features(run)
    sites: list[SiteAudit] = []
    rows: list[Pictures] = []
    notes: list[str] = []
    bar = listener.bar("audit", len(run.sites) + 1)
    for name in run.sites:
        rng = np.random.default_rng(keyed_seed(seed, "audit", name))
        site, pictures = _audit_site(run, name, features, rng, seed)
        sites.append(site)
        rows.append(pictures)
        bar.advance(1)
    membership = memberships(run, seed, notes.append)
    bar.advance(1)
    return Audit(tuple(sites), membership, beside(list(run.sites), rows), tuple(notes))


def _audit_site(
    run: WholeRun, name: str, features: Features | None, rng: np.random.Generator, seed: int
) -> tuple[SiteAudit, Pictures]:
    exposure = expose(name, run.sites[name].train, run.sites[name].held_out, run.releases[name])
    promises = tuple(broken_promises(exposure, rng))
    stored = exposure.aligned
    images, x0 = exposure.images, exposure.images.x0()
    z = exposure.z if stored else x0 + exposure.sigma * rng.standard_normal(x0.shape, dtype=np.float32)
    attacked = some(len(x0), GALLERY, rng)
    gallery = gallery_of(run, exposure, attacked)
    shares = {1: reidentified(z[attacked], np.arange(len(attacked)), gallery)}
    for copies in COPIES[1:]:
        shares[copies] = reidentified_at(gallery, len(attacked), exposure.sigma, rng, copies)
    reconstructions: list[Reconstruction] = []
    pictures: Pictures = {}
    if len(images) >= 2 * FEWEST_RECONSTRUCTED:
        reconstructions, pictures = _reconstruct(run, exposure, z, features, rng)
    asked_about = [infer(x0, z, answers, exposure.sigma, what, rng) for what, answers in questions(images)]
    nearest, repeated = memorised(run, name, images, exposure.held_out, seed, exposure.z if stored else None)
    site = SiteAudit(
        exposure,
        promises,
        len(gallery),
        stored,
        shares,
        tuple(reconstructions),
        tuple(one for one in asked_about if one is not None),
        nearest,
        repeated,
    )
    return site, pictures


def _reconstruct(
    run: WholeRun, exposure: Exposure, z: NDArray[np.floating], features: Features | None, rng: np.random.Generator
) -> tuple[list[Reconstruction], Pictures]:
    """The estimates' figures, and the first images beside the release and each estimate."""
    rows = some(len(exposure.images), min(MOST_RECONSTRUCTED, len(exposure.images) // 2), rng)
    images, rest = exposure.images.take(rows), np.setdiff1d(np.arange(len(exposure.images)), rows)
    known = pooled({"own": exposure.images.take(rest[:MOST_KNOWN]), "held out": exposure.held_out})
    grouped = exposure.labels_shared and one_label_each(exposure.images.labels)
    names = known.label_names  # in another order than the site's own
    groups, known_groups = (
        translate_labels(i.labels, i.label_names, names).argmax(axis=1) if grouped else np.zeros(len(i), np.int64)
        for i in (images, known)
    )
    noisy, sigma = z[rows].astype(np.float32), exposure.sigma
    estimate, mean = wiener(noisy, sigma, known.x0(), known_groups, groups)
    estimates, blind = {"Wiener filter": estimate}, {}
    server, model = run.server_model, run.models.get(exposure.name)
    assert server is not None
    asked_about = [(shown.BY_SERVER, server, max(sigma, Cut(server.sigma_low).lowest_trained))]
    if model is not None:
        asked_about.append((shown.BY_CLIENT, model, sigma))
    for by, asked_one, level in asked_about:
        denoise, told = asked(asked_one, run.device), run.told(exposure.name, images, asked_one.space)
        estimates[by] = denoise(noisy, level, told)
        blind[by] = denoise(np.roll(noisy, 1, axis=0), level, told)  # of another image's release
    pictures = {"original": images.x0(), "release": noisy, **estimates}
    step = np.linspace(0, len(rows) - 1, min(SHOWN, len(rows))).astype(int)
    return compare(images.x0(), estimates, mean, features, blind), {k: v[step] for k, v in pictures.items()}


def _features(run: WholeRun) -> Features | None:
    """Features of a classifier trained on half of all sites' images, which ``evaluate`` uses too; None without labels.

    It is kept in the run's folder, so that whichever command comes first trains it.
    """
    classifier = classifier_of(run.known(), run.folder.path / FOLDER)
    if classifier is None:
        return None
    return lambda x: classifier.features(to_uint8(x).transpose(0, 3, 1, 2).copy())
