"""One cut of one site, measured: what a server could learn there, what the images are worth, what a device pays."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_client.bench import measure_speed
from edge_client.finisher import Finisher
from edge_client.providers import default_batch_size
from export.writer import export_client

from ..config import Config
from ..config.nodes import CutSettings
from ..core.conditioning import ConditionSpace, one_label_each
from ..core.intermediate import Intermediate
from ..core.moments import Basis, default_coefficients
from ..core.pairing import conditions_for
from ..core.pictures import Pixels
from ..data.imageset import ImageSet
from ..learning.observer import Observer
from ..learning.seeds import keyed_seed
from ..learning.weights import TrainedModel
from ..nodes.client import Client, finish_all
from ..nodes.runfolder import NodeFolder
from ..nodes.server import Server, start_noise
from ..nodes.sites import Site
from .attacks.attributes import infer, questions
from .attacks.exposure import Exposure, expose
from .attacks.reconstruction import GaussianPrior
from .attacks.reidentification import GALLERY, reidentified_at
from .features import Extractor
from .generated import Generated
from .measured import halves, some
from .mixing import mix_of
from .quality import frechet_distance
from .whole_run import WholeRun, gallery_of

SHARE_OF_STEPS = 4
FEWEST_STEPS = 100
"""A client is trained for a quarter of its configured steps, and for at least so many."""
SETS = 5
"""Sets of generated images at each cut, whose spread is shown."""
STUDENT = 2.132
"""Student's t that SETS - 1 degrees of freedom exceed once in 20."""
AS_WELL = 1.05
"""Statistics do as well as the server where their Fréchet distance is at most so many times the server's."""
MOST_IMAGES = 500
REPETITIONS = 10
FEWEST_OF_A_LABEL = 20
"""A label with fewer images shares the Gaussian of all."""


@dataclass(frozen=True)
class CutFigures:
    """One cut of one site. Fréchet distances are means over SETS sets of images with the held-out ones' mix of labels.

    reid: share of releases recognised in a gallery; attribute: balanced accuracy of the best inference, chance beside
    it, None where there is nothing to infer; frechet_statistics: where the intermediate was drawn from a Gaussian per
    label in place of the server's, which is statistics_low to statistics_high times as much, see :func:`ratio_bounds`;
    floor: of real images; nfe and ms: per image on this machine.
    """

    client: str
    sigma: float
    gallery: int
    reid: float
    reid_low: float
    reid_high: float
    attribute: float | None
    attribute_chance: float | None
    frechet: float
    frechet_spread: float
    frechet_statistics: float
    statistics_low: float
    statistics_high: float
    floor: float
    nfe: int
    ms: float

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


def ratio_bounds(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
    """How many times theirs our distances are, [SETS] each and set by set of the same noise: a lower and an upper
    bound, each wrong once in 20 times, of the mean logarithm of the ratio by Student's t."""
    logs = np.log(np.maximum(ours, 1e-12)) - np.log(np.maximum(theirs, 1e-12))
    half = STUDENT * float(logs.std(ddof=1)) / math.sqrt(SETS)
    return math.exp(logs.mean() - half), math.exp(logs.mean() + half)


def steps_for(config: Config, name: str, sigma: float) -> int:
    """Finishing steps from a cut: as dense in log sigma as the site's own."""
    settings = config.client(name)
    own, low = settings.handover_sigma, min(settings.sampler.sigma_low, settings.handover_sigma / 2)
    level = sigma * settings.handover
    return max(1, round(settings.sampler.steps * math.log(level / low) / math.log(own / low)))


def recut(config: Config, name: str, sigma: float, train_steps: int | None) -> Config:
    """A configuration in which one site cuts elsewhere and trains for so many steps."""
    client = config.client(name)
    steps = train_steps or max(FEWEST_STEPS, client.training.steps // SHARE_OF_STEPS)
    quiet = {"log_every": steps, "sample_every": steps + 1, "checkpoint_every": steps + 1}
    training = client.training.model_copy(
        update={"steps": steps, "warmup_steps": min(client.training.warmup_steps, steps // 5), **quiet}
    )
    sampler = client.sampler.model_copy(update={"steps": steps_for(config, name, sigma)})
    changed = client.model_copy(update={"cut": CutSettings(sigma=sigma), "training": training, "sampler": sampler})
    return config.model_copy(update={"clients": {**config.clients, name: changed}})


class OneCut:
    """One cut of one site, while it is measured."""

    def __init__(
        self, run: WholeRun, name: str, config: Config, extractor: Extractor, seed: int, observer: Observer
    ) -> None:
        """config: in which the site cuts there, see :func:`recut`."""
        self.run, self.name, self.config, self.extractor, self.observer = run, name, config, extractor, observer
        self.site, self.seed, self.settings = run.sites[name], seed, config.client(name)
        self.sigma = self.settings.cut.resolve().sigma
        self.rng = np.random.default_rng(keyed_seed(seed, "plan", name, str(self.sigma)))
        # The same beside every cut. In another order, since folders come label by label.
        self.fixed = np.random.default_rng(keyed_seed(self.seed, "reference", name))
        held_out, self.floor = run.measured[name].held_out, halves(run.measured[name].train)[1]
        self.reference = held_out.take(self.fixed.permutation(len(held_out))[:MOST_IMAGES])
        self.mix = mix_of(self.reference, self.floor, len(self.reference))
        self.real = extractor.features(self.reference.in_memory())

    def figures(self) -> CutFigures:
        """Everything about this cut."""
        exposure = expose(self.name, self.site.train, self.site.held_out, self.run.releases[self.name])
        attacked = some(len(exposure.images), GALLERY, self.rng)
        gallery = gallery_of(self.run, exposure, attacked)
        share = reidentified_at(gallery, len(attacked), self.sigma, self.rng)
        attribute, chance = self._attribute(exposure)
        with tempfile.TemporaryDirectory(prefix="collafuse-plan-") as scratch:
            model = self._train(NodeFolder(Path(scratch) / "client"))
            nfe, ms = self._device_cost(model, Path(scratch) / "client.onnx")
        server = Server(self.config, self.run.server.model, self._sites(), self.run.device)
        count = SETS * len(self.reference)
        planned = server.plan_like(self.name, count, self.reference, in_turn=True)
        delivered = server.deliver(self.name, count, planned=planned, seed=self.seed)
        conditions = conditions_for(delivered, model.space)
        by_server = self._distances(self._finished(model, delivered.x, conditions), delivered)
        # From the noise that the server started from: then what is left of their difference is theirs.
        noise = start_noise(range(count), exposure.images.image_shape, self.seed)
        drawn = self._drawn(exposure.images, noise, conditions, model.space)
        by_statistics = self._distances(self._finished(model, drawn, conditions), delivered)
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
            frechet=float(np.mean(by_server)),
            frechet_spread=float(np.std(by_server, ddof=1)),
            frechet_statistics=float(np.mean(by_statistics)),
            statistics_low=low,
            statistics_high=high,
            floor=float(np.mean([self._floor() for _ in range(SETS)])),
            nfe=nfe,
            ms=ms,
        )

    def _attribute(self, exposure: Exposure) -> tuple[float | None, float | None]:
        """The inference that gets furthest from guessing."""
        x0 = exposure.images.x0()
        z = x0 + self.sigma * self.rng.standard_normal(x0.shape, dtype=np.float32)
        found = [infer(x0, z, answers, self.sigma, what, self.rng) for what, answers in questions(exposure.images)]
        inferences = [one for one in found if one is not None]
        if not inferences:
            return None, None
        best = max(inferences, key=lambda one: one.accuracy - one.chance)
        return best.accuracy, best.chance

    def _sites(self) -> dict[str, Site]:
        """What the server would know of its sites if this one had released here; others stay as they are."""
        return {**self.run.server.sites, self.name: replace(self.run.server.site(self.name), sigma_cut=self.sigma)}

    def _train(self, folder: NodeFolder) -> TrainedModel:
        return Client(self.config, self.name, self.site).train(folder, self.run.device, self.observer)

    def _device_cost(self, model: TrainedModel, path: Path) -> tuple[int, float]:
        """Network evaluations and milliseconds per image, by onnxruntime as ``bench`` measures them."""
        export_client(model, self.settings, self.name, path)
        finisher = Finisher.load(path)
        batch = default_batch_size(finisher.provider, finisher.bundle.info.image_shape)
        speed = measure_speed(finisher, batch, REPETITIONS)
        return finisher.nfe, speed.per_image_ms

    def _finished(self, model: TrainedModel, x: NDArray[np.float32], conditions: NDArray[np.float32]) -> Pixels:
        """uint8 [N, H, W, C]."""
        return finish_all(model.denoiser, x, self.settings.handover_sigma, conditions, self.settings, self.run.device)

    def _drawn(
        self, images: ImageSet, noise: NDArray[np.float32], conditions: NDArray[np.float32], space: ConditionSpace
    ) -> NDArray[np.float32]:
        """Intermediates without a server: draws from N(mu_y, C_y + sigma^2 I), one Gaussian per label of the site, of
        the frequencies that a release of statistics would hold."""
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

    def _distances(self, pixels: Pixels, asked: Intermediate) -> list[float]:
        """Of each set: one after the other shows what the reference does."""
        found, size = [], len(self.reference)
        for start in range(0, len(pixels), size):
            rows = slice(start, start + size)
            labels = None if asked.labels is None else asked.labels[rows]
            found.append(self._distance(Generated(pixels[rows], labels, asked.label_names)))
        return found

    def _floor(self) -> float:
        images = self.floor.take(self.fixed.permutation(len(self.floor)))
        return self._distance(Generated(images.in_memory().transpose(0, 2, 3, 1), images.labels, images.label_names))

    def _distance(self, made: Generated) -> float:
        return frechet_distance(self.extractor.features(self.mix.take(made).channels_first), self.real)
