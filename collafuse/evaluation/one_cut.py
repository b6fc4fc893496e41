"""One cut of one site, measured: what a server could learn there, what the images are worth, what a device pays."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..core.conditioning import ConditionSpace, one_label_each
from ..core.errors import DataError, RefusedError
from ..core.moments import Basis, default_coefficients
from ..core.pairing import conditions_for
from ..data.imageset import ImageSet
from ..learning.seeds import keyed_seed
from ..nodes.runfolder import NodeFolder
from ..nodes.server import Server
from ..nodes.sites import Site
from ..nodes.streams import start_noise
from .accounting import release_guarantee
from .attacks.attributes import infer, questions
from .attacks.exposure import Exposure, expose, most_attacked
from .attacks.reconstruction import GaussianPrior
from .attacks.reidentification import GALLERY, reidentified_at
from .budgets import site_statistics
from .measured import some
from .trial import AS_WELL, Trial, ratio_bounds
from .whole_run import added_up, gallery_of

FEWEST_OF_A_LABEL = 20
"""A label with fewer images shares the Gaussian of all."""


@dataclass(frozen=True)
class CutFigures:
    """One cut of one site. Fréchet distances are means over SETS sets of images with the held-out ones' mix of labels.

    reid: share of releases recognised in a gallery; attribute: balanced accuracy of the best inference, chance beside
    it, None where there is nothing to infer; epsilon: of one release's formal guarantee, at accounting.DELTA;
    frechet_statistics: where the intermediate was drawn from a Gaussian per label in place of the server's, which is
    statistics_low to statistics_high times as much, see :func:`ratio_bounds`; statistics_refused: why the site would
    not send exact ones, empty where it would; floor: of real images; nfe and ms: per image on this machine.
    """

    client: str
    sigma: float
    gallery: int
    reid: float
    reid_low: float
    reid_high: float
    attribute: float | None
    attribute_chance: float | None
    epsilon: float
    frechet: float
    frechet_spread: float
    frechet_statistics: float
    statistics_low: float
    statistics_high: float
    statistics_refused: str
    floor: float
    nfe: int
    ms: float

    @property
    def measured(self) -> dict[str, float]:
        """What stands against a limit, as :class:`.demands.Figures` says."""
        return {
            "recognition": self.reid_high,
            "inference": self.leak or 0.0,
            "guarantee": self.epsilon,
            "time": self.ms,
            "quality": self.frechet,
        }

    @property
    def refused(self) -> str:
        """Nothing: images can be sent at every cut."""
        return ""

    @property
    def leak(self) -> float | None:
        """How far inference gets from guessing (0) to certainty (1)."""
        if self.attribute is None or self.attribute_chance is None:
            return None
        return max(0.0, (self.attribute - self.attribute_chance) / (1 - self.attribute_chance))

    @property
    def statistics_suffice(self) -> bool:
        """Whether the Gaussians surely do as well as the server: then sending images buys nothing."""
        return self.statistics_high <= AS_WELL

    @property
    def images_pay(self) -> bool:
        """Whether the server surely does better than the Gaussians. Where neither is sure, it cannot be told."""
        return self.statistics_low > 1 and not self.statistics_suffice


class OneCut(Trial):
    """One cut of one site of images, while it is measured."""

    def figures(self) -> CutFigures:
        """Everything about this cut."""
        rng = np.random.default_rng(keyed_seed(self.seed, "plan", self.name, str(self.sigma)))
        exposure = expose(self.name, self.site.train, self.site.held_out, self.run.releases[self.name])
        attacked = some(len(exposure.images), GALLERY, rng)
        gallery = gallery_of(self.run, exposure, attacked)
        share = reidentified_at(gallery, len(attacked), self.sigma, rng)
        attribute, chance = self._attribute(exposure, rng)
        with tempfile.TemporaryDirectory(prefix="collafuse-plan-") as scratch:
            model = self.train(NodeFolder(Path(scratch) / "client"))
            nfe, ms = self.device_cost(model, Path(scratch) / "client.onnx")
        server = Server(self.config, self.run.server.model, self._sites(), self.run.device)
        planned = server.plan_like(self.name, self.count, self.reference, in_turn=True)
        delivered = server.deliver(self.name, self.count, planned=planned, seed=self.seed)
        by_server = self.distances(model, delivered.x, delivered)
        # From the noise that the server started from: then what is left of their difference is theirs.
        noise = start_noise(range(self.count), exposure.images.image_shape, self.seed)
        counted = added_up(self.run, self.name, most_attacked(exposure.images.image_shape), rng)
        drawn = self._drawn(counted, noise, conditions_for(delivered, model.space), model.space)
        by_statistics = self.distances(model, drawn, delivered)
        low, high = ratio_bounds(by_statistics, by_server)
        return CutFigures(
            client=self.name,
            sigma=self.sigma,
            gallery=len(gallery),
            reid=share.value,
            reid_low=share.interval[0],
            reid_high=share.interval[1],
            attribute=attribute,
            attribute_chance=chance,
            epsilon=release_guarantee(exposure.images.image_shape, self.sigma).epsilon,
            frechet=float(np.mean(by_server)),
            frechet_spread=float(np.std(by_server, ddof=1)),
            frechet_statistics=float(np.mean(by_statistics)),
            statistics_low=low,
            statistics_high=high,
            statistics_refused=self._statistics_refused(),
            floor=self.floor(),
            nfe=nfe,
            ms=ms,
        )

    def _statistics_refused(self) -> str:
        try:
            site_statistics(self.run, self.name, None, self.seed)
        except (DataError, RefusedError) as error:
            return str(error)
        return ""

    def _attribute(self, exposure: Exposure, rng: np.random.Generator) -> tuple[float | None, float | None]:
        """The inference that gets furthest from guessing."""
        x0 = exposure.images.x0()
        z = x0 + self.sigma * rng.standard_normal(x0.shape, dtype=np.float32)
        found = [infer(x0, z, answers, self.sigma, what, rng) for what, answers in questions(exposure.images)]
        inferences = [one for one in found if one is not None]
        if not inferences:
            return None, None
        best = max(inferences, key=lambda one: one.accuracy - one.chance)
        return best.accuracy, best.chance

    def _sites(self) -> dict[str, Site]:
        """What the server would know of its sites if this one had released here; others stay as they are."""
        return {**self.run.server.sites, self.name: replace(self.run.server.site(self.name), sigma_cut=self.sigma)}

    def _drawn(
        self, images: ImageSet, noise: NDArray[np.float32], conditions: NDArray[np.float32], space: ConditionSpace
    ) -> NDArray[np.float32]:
        """Intermediates without a server: draws from N(mu_y, C_y + sigma^2 I), one Gaussian per label of these images,
        of the frequencies that a release of statistics would hold."""
        shape, sigma = images.image_shape, self.settings.handover_sigma
        basis = Basis(shape, self.settings.statistics.coefficients or default_coefficients(shape))
        x0 = basis.images(basis.coefficients(images.x0()))
        whole = GaussianPrior.fit(x0)
        drawn = np.empty_like(noise)
        shown = conditions[:, space.label_columns]
        one_each = one_label_each(images.labels) and one_label_each(shown.astype(np.uint8))
        wanted = shown.argmax(axis=1) if one_each else np.full(len(conditions), -1)
        for label in np.unique(wanted):
            rows = wanted == label
            own = images.labels[:, images.label_names.index(space.label_names[label])] == 1 if label >= 0 else None
            prior = GaussianPrior.fit(x0[own]) if own is not None and own.sum() >= FEWEST_OF_A_LABEL else whole
            drawn[rows] = prior.draw(noise[rows], sigma)
        return drawn
