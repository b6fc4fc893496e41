"""Where to cut: for a grid of cuts what the server could learn, what the images are worth, and what a device pays.

One server serves every cut above the one it was trained at: it is a denoiser of all levels from there on. For each cut
and client a short client is trained, the same number of steps for all, so that cuts can be compared with each other
(with ``evaluate``'s figures of the run's own clients they cannot). Each finished cut is kept and not made again.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from edge_client.bench import measure_speed
from edge_client.finisher import Finisher
from edge_client.providers import default_batch_size
from export.writer import export_client

from ..config import Config
from ..config.settings import CutSettings
from ..core.atomic import write_bytes
from ..core.conditioning import ConditionSpace, one_label_each
from ..core.errors import DataError, UsageError
from ..core.noise import SIGMA_MAX
from ..core.pairing import conditions_for
from ..data.listening import UNHEARD, Listener
from ..learning.observer import Observer
from ..learning.seeds import keyed_seed
from ..learning.weights import TrainedModel
from ..nodes.client import Client, finish_all
from ..nodes.runfolder import NodeFolder, RunFolder
from ..nodes.server import Server
from ..nodes.sites import Site
from .attacks.attributes import infer, questions
from .attacks.exposure import Exposure, expose
from .attacks.reconstruction import GaussianPrior
from .attacks.reidentification import GALLERY, reidentified_at
from .features import Extractor, choose, classifier_of
from .quality import frechet_distance
from .tables import FOLDER
from .whole_run import WholeRun, gallery_of, some

LADDER = (0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0)
"""Cuts that are tried where none are named, from a site's own on."""
CUTS_PER_SITE = 5
SHARE_OF_STEPS = 4
FEWEST_STEPS = 100
"""A client is trained for a quarter of its configured steps, and for at least so many."""
SETS = 3
"""Sets of generated images at each cut, whose spread is shown."""
MOST_IMAGES = 500
REPETITIONS = 10
ENOUGH = 20
"""Held-out images without which no distance is measured."""


@dataclass(frozen=True)
class CutFigures:
    """One cut of one site. Fréchet distances are means over SETS sets of as many images as are held out.

    reid: share of releases recognised in a gallery; attribute: balanced accuracy of the best inference, chance beside
    it, None where there is nothing to infer; frechet_statistics: where the intermediate was drawn from a Gaussian per
    label in place of the server's; floor: of real images; nfe and ms: per image on this machine.
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
        """Whether the Gaussians do as well as the server: then sending images buys nothing."""
        return self.frechet_statistics <= self.frechet + max(2 * self.frechet_spread, 0.05 * self.frechet)


@dataclass(frozen=True)
class Demands:
    """What a user asks of a cut; None asks nothing. Shares and leaks from 0 to 1. Raises UsageError."""

    max_reid: float | None = None
    max_leak: float | None = None
    max_ms: float | None = None
    max_frechet: float | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not (value >= 0 and math.isfinite(value)):
                raise UsageError(f"{name}={value}; expected a number of at least 0.")

    def unmet(self, figures: CutFigures) -> list[str]:
        """What of it a cut does not meet, as names of figures."""
        found = {
            "recognition": (figures.reid, self.max_reid),
            "inference": (figures.leak or 0.0, self.max_leak),
            "time": (figures.ms, self.max_ms),
            "quality": (figures.frechet, self.max_frechet),
        }
        return [name for name, (value, most) in found.items() if most is not None and value > most]

    @property
    def any(self) -> bool:
        """Whether anything is asked."""
        return any(value is not None for value in vars(self).values())


def best_cut(rows: Sequence[CutFigures], demands: Demands) -> CutFigures | None:
    """Of the cuts that meet all demands the one with the best images; None where none does."""
    fitting = [row for row in rows if not demands.unmet(row)]
    return min(fitting, key=lambda row: row.frechet) if fitting else None


@dataclass(frozen=True)
class Plan:
    """rows: of every cut and client; note: what the distances are measured in."""

    rows: tuple[CutFigures, ...]
    note: str


@dataclass(frozen=True)
class Settings:
    """cuts: sigmas to try, None for a ladder from each site's own; train_steps: of each client, None for a quarter of
    what is configured."""

    cuts: tuple[float, ...] | None = None
    train_steps: int | None = None
    seed: int = 0


def plan(
    folder: RunFolder,
    settings: Settings,
    device: torch.device,
    observer_of: Callable[[str], Observer],
    listener: Listener = UNHEARD,
) -> Plan:
    """The figures of every cut of every site, made where they are not kept from before.

    Raises DataError for a site that holds out too few images, UsageError for a cut below every site's own, and what
    opening the run raises.
    """
    run = WholeRun.open(folder, device, listener)
    classifier = classifier_of(run.known(), folder.path / FOLDER)
    extractor = choose("auto", None, run.known(), classifier, device)
    planned = [(name, cut) for name in run.sites for cut in cuts_for(run, name, settings.cuts)]
    if not planned:
        raise UsageError(
            f"no cut of {list(settings.cuts or ())} lies at or above a site's own; the server has learned nothing "
            "below. Name higher ones, or train a run with lower cuts."
        )
    found = []
    bar = listener.bar("cuts", len(planned))
    for name, sigma in planned:
        path = folder.path / FOLDER / "plan" / f"{name}-{sigma:.4g}.json"
        key = _key(run, name, sigma, settings, extractor.name)
        row = _kept(path, key)
        if row is None:
            row = _Cut(run, name, sigma, settings, extractor, observer_of(f"{name} {sigma:.3g}")).figures()
            write_bytes(path, json.dumps({"key": key, "figures": asdict(row)}, indent=1).encode(), overwrite=True)
        found.append(row)
        bar.advance(1)
    return Plan(tuple(found), f"Fréchet distances are in features of {extractor.name}.")


def cuts_for(run: WholeRun, name: str, cuts: Sequence[float] | None) -> list[float]:
    """The cuts that a run can tell of for a site: from its own, below which the server learned nothing of it."""
    own = run.server.site(name).sigma_cut
    if cuts is None:
        above = [sigma for sigma in LADDER if sigma > own * 1.1]
        kept = np.unique(np.linspace(0, len(above) - 1, CUTS_PER_SITE - 1).round().astype(int)) if above else ()
        return [own, *(above[i] for i in kept)]
    return sorted({sigma for sigma in cuts if own * 0.999 <= sigma < SIGMA_MAX})


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


class _Cut:
    """One cut of one site, while it is measured."""

    def __init__(
        self, run: WholeRun, name: str, sigma: float, settings: Settings, extractor: Extractor, observer: Observer
    ) -> None:
        self.run, self.name, self.sigma, self.extractor, self.observer = run, name, sigma, extractor, observer
        self.site, self.seed = run.sites[name], settings.seed
        self.config = recut(run.config, name, sigma, settings.train_steps)
        self.settings = self.config.client(name)
        self.rng = np.random.default_rng(keyed_seed(settings.seed, "plan", name, str(sigma)))
        if len(self.site.held_out) < ENOUGH:
            raise DataError(
                f"{name} holds out {len(self.site.held_out)} images; at least {ENOUGH} are needed to compare with. "
                "Raise data.held_out and train again."
            )
        self.count = min(len(self.site.held_out), len(self.site.train) // 2, MOST_IMAGES)

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
        level = self.settings.handover_sigma
        servers = Server(self.config, self.run.server.model, self._sites(), self.run.device)
        delivered = servers.deliver(self.name, self.count * SETS, seed=self.seed)
        conditions = conditions_for(delivered, model.space)
        reference = self.site.held_out.pixels[: self.count]
        by_server = self._distances(self._finished(model, delivered.x, conditions), reference)
        drawn = self._drawn(conditions, model.space, level)
        by_statistics = self._distances(self._finished(model, drawn, conditions), reference)
        apart = self.site.train.pixels[1::2]
        fixed = np.random.default_rng(keyed_seed(self.seed, "floor", self.name))  # the same beside every cut
        floors = [apart[some(len(apart), self.count, fixed)] for _ in range(SETS)]
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
            floor=float(np.mean([self._distance(pixels, reference) for pixels in floors])),
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

    def _finished(
        self, model: TrainedModel, x: NDArray[np.float32], conditions: NDArray[np.float32]
    ) -> NDArray[np.uint8]:
        """uint8 [N, C, H, W]."""
        level = self.settings.handover_sigma
        pixels = finish_all(model.denoiser, x, level, conditions, self.settings, self.run.device)
        return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))

    def _drawn(self, conditions: NDArray[np.float32], space: ConditionSpace, sigma: float) -> NDArray[np.float32]:
        """Intermediates without a server: draws from N(mu_y, C_y + sigma^2 I), one Gaussian per label of the site."""
        images = self.site.train
        x0 = images.x0()
        whole = GaussianPrior.fit(x0)
        drawn = np.empty((len(conditions), *x0.shape[1:]), np.float32)
        shown = conditions[:, space.label_columns]
        wanted = shown.argmax(axis=1) if one_label_each(images.labels) else np.full(len(conditions), -1)
        for label in np.unique(wanted):
            rows = wanted == label
            own = images.labels[:, images.label_names.index(space.label_names[label])] == 1 if label >= 0 else None
            prior = GaussianPrior.fit(x0[own]) if own is not None and own.sum() >= ENOUGH else whole
            drawn[rows] = prior.draw(int(rows.sum()), x0.shape[1:], sigma, self.rng)
        return drawn

    def _distances(self, pixels: NDArray[np.uint8], reference: NDArray[np.uint8]) -> list[float]:
        # Every third image, since labels are dealt in blocks.
        return [self._distance(pixels[part::SETS], reference) for part in range(SETS)]

    def _distance(self, pixels: NDArray[np.uint8], reference: NDArray[np.uint8]) -> float:
        return frechet_distance(self.extractor.features(pixels), self.extractor.features(reference))


def _key(run: WholeRun, name: str, sigma: float, settings: Settings, extractor: str) -> dict[str, object]:
    """What a kept row depends on, as it stands in its file."""
    config = recut(run.config, name, sigma, settings.train_steps).client(name)
    plain = json.loads(config.model_dump_json())
    return {"server": run.server.model.id, "client": plain, "seed": settings.seed, "features": extractor}


def _kept(path: Path, key: dict[str, object]) -> CutFigures | None:
    """The row of an earlier call, if it is of the same things; anything else is made again."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return CutFigures(**values["figures"]) if values["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
