"""The audit of a run whose sites sent statistics: what the server learned from numbers in place of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from ..core.moments import Basis, pool
from ..data.imageset import ImageSet
from ..data.listening import Listener
from ..learning.seeds import keyed_seed
from . import statistics_tables as shown
from .attacks.finding import Finding
from .attacks.membership import Membership
from .attacks.memorisation import Nearest
from .attacks.statistics import (
    ALL,
    MOST_LINKED,
    Apart,
    Counted,
    NoiseRow,
    apart,
    broken_promises,
    counted,
    names_of,
    noise_rows,
    of_label,
    shared_noise,
)
from .attacks.tracing import Traced, trace
from .measured import halves, in_memory
from .models_attacked import FEWEST_OTHERS, memberships, memorised
from .picture import SHOWN, Pictures, beside
from .pooling import pooled
from .tables import Table
from .whole_run import WholeRun

ENOUGH_KNOWN, MOST_KNOWN = 20, 5_000
"""Of a label of which an attacker knows fewer held-out images, other sites' are known too; and at most so many."""
MOST_COMPARED = 5_000
"""Images of a site that its client's finished ones are held against."""


@dataclass(frozen=True)
class StatisticsSite:
    """What was found about one site. noise: how many times what its budget demands was measured, with the standard
    error; None where there is none."""

    counted: Counted
    noise: tuple[float, float] | None
    promises: tuple[Finding, ...]
    traced: tuple[Traced, ...]
    nearest: Nearest | None


@dataclass(frozen=True)
class StatisticsAudit:
    """sites: by client; membership: by model; picture: images, means that were sent, draws from what was sent."""

    sites: tuple[StatisticsSite, ...]
    membership: dict[str, Membership]
    picture: Image.Image
    notes: tuple[str, ...]
    picture_name: str = "statistics.png"

    @property
    def tables(self) -> list[Table]:
        """Every figure."""
        return shown.tables(self)

    @property
    def alarms(self) -> list[str]:
        """What nobody should have to read a table for: broken promises, and numbers or models that give images away."""
        return shown.alarms(self)

    @property
    def verdict(self) -> list[str]:
        """What the statistics do not protect, a paragraph a site."""
        return [shown.verdict(site) for site in self.sites]


def audit_statistics(run: WholeRun, seed: int, listener: Listener) -> StatisticsAudit:
    """Attack a run of statistics. The same seed makes the same attacks."""
    notes: list[str] = []
    bar = listener.bar("audit", len(run.sites) + 1)
    found: list[StatisticsSite] = []
    rows: list[Pictures] = []
    noise: list[NoiseRow] = []
    for name, own in run.sites.items():
        site, own_seed = counted(name, own.train, own.held_out, run.statistics[name]), keyed_seed(seed, "audit", name)
        far = apart(site)
        promises = broken_promises(site, far)
        noise += noise_rows(name, far)[: MOST_LINKED - len(noise)] if _are_of(promises) else []
        traced = _traced(run, site, far, own_seed)
        if not traced:
            notes.append(
                f"{name} holds out too few images of each label to ask whether its statistics tell them apart."
            )
        images = in_memory(site.images, MOST_COMPARED, own_seed)
        nearest, _ = memorised(run, name, images, site.held_out, seed)
        measured = None if far is None or far.deviations is None else far.measured_noise()
        found.append(StatisticsSite(site, measured, tuple(promises), tuple(traced), nearest))
        rows.append(_pictures(site, own_seed))
        bar.advance(1)
    shared = shared_noise(noise)
    membership = memberships(run, seed, notes.append)
    bar.advance(1)
    with_shared = [
        replace(site, promises=(*site.promises, *(one for one in shared if one.subject == site.counted.name)))
        for site in found
    ]
    return StatisticsAudit(tuple(with_shared), membership, beside(list(run.sites), rows), tuple(notes))


def _traced(run: WholeRun, site: Counted, far: Apart | None, seed: int) -> list[Traced]:
    """Every attack on who was counted; none where too few images are held out."""
    if len(site.held_out) < FEWEST_OTHERS:
        return []
    others, known = _split(site.held_out)
    return trace(site, others, _known(run, site, known, seed), far, seed)


def _are_of(promises: Sequence[Finding]) -> bool:
    """Whether numbers are those of the site's images, and noise: other images, which are alike, would pass for noise
    that is shared."""
    return not any(found.alarm and found.attack == "numbers" for found in promises)


def _split(held_out: ImageSet) -> tuple[ImageSet, ImageSet]:
    """Held-out images that are asked about, and those that an attacker knows: half each, groups whole, since images of
    one patient that stand on both sides would be known for what they are."""
    if held_out.groups is None:
        return halves(held_out)
    _, of_image = np.unique(held_out.groups, return_inverse=True)
    known = of_image.reshape(-1) % 2 == 1
    return held_out.take(np.flatnonzero(~known)), held_out.take(np.flatnonzero(known))


def _known(run: WholeRun, site: Counted, known: ImageSet, seed: int) -> dict[str, ImageSet]:
    """What an attacker knows of each label: held-out images, and where those are few other sites' images of it."""
    found = {}
    for name in dict.fromkeys(name for file in site.files for name in names_of(file)):
        own = of_label(known, name)
        if name != ALL and len(own) < ENOUGH_KNOWN:
            elsewhere = {
                f"{other} {i}": of_label(part, name)
                for other, data in run.measured.items()
                if other != site.name
                for i, part in enumerate(data.parts)
            }
            own = pooled({"own": own, **elsewhere})
        found[name] = in_memory(own, MOST_KNOWN, seed)
    return found


def _pictures(site: Counted, seed: int) -> Pictures:
    """Images of the site, one label after the other in turn, beside the mean that was sent of each one's label and a
    draw from the Gaussian that the server makes of it."""
    file = site.files[0]
    names, rng = names_of(file)[:SHOWN], np.random.default_rng(seed)
    basis = Basis(file.about.image_shape, file.about.coefficients)
    gaussians = [pool([(file, row)]) for row in range(len(names))]
    rows = [i % len(names) for i in range(SHOWN)]
    means = basis.images(file.means[rows].astype(np.float64))
    alongs = [np.sqrt(one.eigenvalues) * rng.standard_normal(len(one.mean)) for one in (gaussians[i] for i in rows)]
    draws = [gaussians[i].mean + gaussians[i].eigenvectors @ along for i, along in zip(rows, alongs, strict=True)]
    images = np.ones(means.shape)
    for i, row in enumerate(rows):
        if len(own := of_label(site.images, names[row])):
            images[i] = own.take(np.array([i // len(names) % len(own)])).x0()[0]
    return {"an image": images, "mean as sent": means, "draw from it": basis.images(np.stack(draws))}
