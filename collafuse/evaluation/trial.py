"""A client tried at one cut: trained briefly for it, what a device pays, and how far its pictures are from real ones.

What stands in front of it, a server of images or one of statistics, is the caller's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_client.bench import measure_speed
from edge_client.finisher import Finisher
from edge_client.providers import default_batch_size
from export.writer import export_client

from ..config import Config
from ..config.nodes import CutSettings
from ..core.intermediate import Intermediate
from ..core.noise import SIGMA_MAX
from ..core.pairing import conditions_for
from ..core.pictures import Pixels
from ..learning.observer import Observer
from ..learning.seeds import keyed_seed
from ..learning.weights import TrainedModel
from ..nodes.client import Client, finish_all
from ..nodes.runfolder import NodeFolder
from .features import Extractor
from .generated import Generated
from .measured import halves
from .mixing import mix_of
from .quality import frechet_distance
from .whole_run import WholeRun

SHARE_OF_STEPS = 4
FEWEST_STEPS = 100
"""A client is trained for a quarter of its configured steps, and for at least so many."""
SETS = 5
"""Sets of generated images at each cut, whose spread is shown."""
STUDENT = 2.132
"""Student's t that SETS - 1 degrees of freedom exceed once in 20."""
AS_WELL = 1.05
"""One way does as well as another where its Fréchet distance is at most so many times the other's."""
MOST_IMAGES = 500
REPETITIONS = 10


def steps_for(config: Config, name: str, sigma: float) -> int:
    """Finishing steps from a cut: as dense in log sigma as the site's own."""
    settings = config.client(name)
    own, low = settings.handover_sigma, min(settings.sampler.sigma_low, settings.handover_sigma / 2)
    level = min(sigma * settings.handover, SIGMA_MAX)
    return max(1, round(settings.sampler.steps * math.log(level / low) / math.log(own / low)))


def recut(config: Config, name: str, sigma: float, train_steps: int | None) -> Config:
    """A configuration in which one site cuts elsewhere and trains for so many steps."""
    client = config.client(name)
    steps = train_steps or max(FEWEST_STEPS, client.training.steps // SHARE_OF_STEPS)
    quiet = {"log_every": steps, "sample_every": steps + 1, "checkpoint_every": steps + 1, "validation": 0.0}
    training = client.training.model_copy(
        update={"steps": steps, "warmup_steps": min(client.training.warmup_steps, steps // 5), **quiet}
    )
    sampler = client.sampler.model_copy(update={"steps": steps_for(config, name, sigma)})
    changed = client.model_copy(update={"cut": CutSettings(sigma=sigma), "training": training, "sampler": sampler})
    return config.model_copy(update={"clients": {**config.clients, name: changed}})


def ratio_bounds(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
    """How many times theirs our distances are, [SETS] each and set by set of the same noise: a lower and an upper
    bound, each wrong once in 20 times, of the mean logarithm of the ratio by Student's t."""
    logs = np.log(np.maximum(ours, 1e-12)) - np.log(np.maximum(theirs, 1e-12))
    half = STUDENT * float(logs.std(ddof=1)) / math.sqrt(SETS)
    return math.exp(logs.mean() - half), math.exp(logs.mean() + half)


class Trial:
    """One cut of one site, while it is measured."""

    def __init__(
        self, run: WholeRun, name: str, config: Config, extractor: Extractor, seed: int, observer: Observer
    ) -> None:
        """config: in which the site cuts there, see :func:`recut`."""
        self.run, self.name, self.config, self.extractor, self.observer = run, name, config, extractor, observer
        self.site, self.seed, self.settings = run.sites[name], seed, config.client(name)
        self.sigma = self.settings.cut.resolve().sigma
        # The same beside every cut. In another order, since folders come label by label.
        self.fixed = np.random.default_rng(keyed_seed(self.seed, "reference", name))
        held_out, self._floor_images = run.measured[name].held_out, halves(run.measured[name].train)[1]
        self.reference = held_out.take(self.fixed.permutation(len(held_out))[:MOST_IMAGES])
        self.mix = mix_of(self.reference, self._floor_images, len(self.reference))
        self.real = extractor.features(self.reference.in_memory())

    @property
    def count(self) -> int:
        """Images of all SETS sets together."""
        return SETS * len(self.reference)

    def train(self, folder: NodeFolder) -> TrainedModel:
        """The client, trained from its images for the steps that the configuration says."""
        return Client(self.config, self.name, self.site).train(folder, self.run.device, self.observer)

    def device_cost(self, model: TrainedModel, path: Path) -> tuple[int, float]:
        """Network evaluations and milliseconds per image, by onnxruntime as ``bench`` measures them."""
        export_client(model, self.settings, self.name, path)
        finisher = Finisher.load(path)
        batch = default_batch_size(finisher.provider, finisher.bundle.info.image_shape)
        speed = measure_speed(finisher, batch, REPETITIONS)
        return finisher.nfe, speed.per_image_ms

    def distances(self, model: TrainedModel, x: NDArray[np.float32], asked: Intermediate) -> list[float]:
        """Fréchet distances of the sets that a client makes of x [count, C, H, W], where this was ``asked`` for.

        Where x is what was delivered, the server's last step comes with it if the run sends that.
        """
        conditions = conditions_for(asked, model.space)
        level, settings, device = self.settings.handover_sigma, self.settings, self.run.device
        history = asked.history(slice(None)) if x is asked.x else None
        made = finish_all(model.denoiser, x, level, conditions, settings, device, history=history)
        return self.distances_of(made, asked)

    def distances_of(self, pixels: Pixels, asked: Intermediate) -> list[float]:
        """The same of finished images, uint8 [count, H, W, C]: each set shows what the reference does."""
        found, size = [], len(self.reference)
        for start in range(0, len(pixels), size):
            rows = slice(start, start + size)
            labels = None if asked.labels is None else asked.labels[rows]
            found.append(self._distance(Generated(pixels[rows], labels, asked.label_names)))
        return found

    def floor(self) -> float:
        """Of real images, the mean over SETS draws of them."""
        return float(np.mean([self._one_floor() for _ in range(SETS)]))

    def _one_floor(self) -> float:
        images = self._floor_images.take(self.fixed.permutation(len(self._floor_images)))
        return self._distance(Generated(images.in_memory().transpose(0, 2, 3, 1), images.labels, images.label_names))

    def _distance(self, made: Generated) -> float:
        return frechet_distance(self.extractor.features(self.mix.take(made).channels_first), self.real)
