"""A part of a baseline: one model, what it learns from, and how.

Every baseline trains with the project's own loop, loss and networks; what makes it another method is its data and, for
some, what a step learns from (see :mod:`.noising`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ...config import Config, NetworkSettings, TrainingSettings
from ...core.conditioning import Conditions, ConditionSpace, translate_labels
from ...core.noise import SIGMA_MAX, SIGMA_MIN, karras_sigmas
from ...core.pictures import Pixels, contact_sheet, to_uint8
from ...core.samplers import euler
from ...data.dealing import SiteData, group_numbers
from ...data.imageset import ImageSet
from ...learning import weights
from ...learning.checkpoint import digest_of_settings, settings_that_count
from ...learning.denoiser import Denoiser
from ...learning.examples import TrainingData
from ...learning.objective import OBJECTIVE
from ...learning.observer import Observer
from ...learning.seeds import keyed_seed
from ...learning.training import Trainer, fresh_denoiser
from ...nodes.runfolder import NodeFolder
from ...nodes.watching import NodeObserver

SHEET_IMAGES, SHEET_STEPS = 16, 18


@dataclass(frozen=True)
class Part:
    """One model that a baseline trains.

    node: its name, by which its folder and its first weights go. role: see ``weights.ROLES``. space: what its
    conditions mean. sigma_low: the lowest level it learns. trainer: the loop, or a variant of it.
    """

    node: str
    role: str
    network: NetworkSettings
    settings: TrainingSettings
    space: ConditionSpace
    data: TrainingData
    sigma_low: float = SIGMA_MIN
    trainer: Callable[..., Trainer] = Trainer

    @property
    def digest(self) -> str:
        """Identifies what comes out: two parts of one digest are the same training."""
        plain = {
            "node": self.node,
            "role": self.role,
            "network": self.network.model_dump(mode="json"),
            "settings": settings_that_count(self.settings),
            "labels": self.space.label_names,
            "objective": OBJECTIVE,
            "start": self.start,
        }
        if self.space.text is not None:
            plain["text"] = self.space.text.encoder
        return digest_of_settings(plain | {"data": self.data.digest()})

    @property
    def start(self) -> str:
        """What a resumed training must have in common beside settings and data."""
        return "fresh" if self.trainer is Trainer else f"fresh, {self.trainer.__name__}"

    def denoiser(self) -> Denoiser:
        """With its first weights."""
        channels, height, width = self.data.images.shape[1:]
        shape = (channels, height, width)
        return fresh_denoiser(self.network, shape, self.space, self.data, self.settings, self.node)

    def trainer_in(self, folder: NodeFolder, device: torch.device, observer: Observer) -> Trainer:
        """The training, ready to start or go on in this folder."""
        return self.trainer(self.denoiser(), self.data, self.settings, folder.path, device, observer, self.start)

    def train(
        self,
        folder: NodeFolder,
        device: torch.device,
        observer: Observer,
        *,
        resume: bool = False,
        trackers: Sequence[str] = (),
    ) -> weights.TrainedModel:
        """Train it and write its weights, metrics and sample sheets into the folder."""
        watching = NodeObserver(folder.path, observer, trackers, lambda denoiser: self._sheet(denoiser, device))
        try:
            trainer = self.trainer_in(folder, device, watching)
            trained = trainer.run(resume, lambda step: folder.check_start(step, resume=resume))
        finally:
            watching.close()
        return self.keep(trained, trainer, folder)

    def keep(self, trained: Denoiser, trainer: Trainer, folder: NodeFolder) -> weights.TrainedModel:
        """Write what a training has made; returns it as it was read back, with its earlier version."""
        done = (self.sigma_low, self.data.sigma_high, trainer.step_kept)
        weights.save(folder.weights, weights.TrainedModel(trained, self.role, *done, early=trainer.early))
        return weights.load_with_early(folder.weights, self.role)

    @torch.inference_mode()
    def _sheet(self, denoiser: Denoiser, device: torch.device) -> Pixels:
        """Pure noise at the top of its range, denoised to the bottom: pictures for a whole model."""
        shape = (SHEET_IMAGES, *self.data.images.shape[1:])
        generator = torch.Generator().manual_seed(keyed_seed(self.settings.seed, "sheet"))
        x = self.data.sigma_high * torch.randn(shape, generator=generator).to(device)
        rows = torch.arange(SHEET_IMAGES) % len(self.data)
        conditions = self.data.conditions[rows].to(device)
        sigmas = karras_sigmas(self.data.sigma_high, max(self.sigma_low, SIGMA_MIN), SHEET_STEPS)
        return contact_sheet(to_uint8(euler(lambda x, s: denoiser(x, s, conditions), x, sigmas).cpu().numpy()))


def clean_data(sites: Mapping[str, SiteData], config: Config, sigma_high: float = SIGMA_MAX) -> TrainingData:
    """The clean training images of these sites as one set, with labels and text as :func:`clean_space` has them.

    The data of what no site would allow: a baseline that pools images, or simulates what sites would send.
    """
    space, images = clean_space(sites), [site.train for site in sites.values()]
    conditions = np.concatenate([_conditions(one, space) for one in images])
    return TrainingData(
        images=torch.from_numpy(np.concatenate([one.in_memory() for one in images])),
        conditions=torch.from_numpy(conditions),
        sigma_floor=torch.zeros(len(conditions)),
        sigma_high=sigma_high,
        horizontal_flip=config.data.horizontal_flip,
        groups=torch.from_numpy(_groups(images)),
    )


def _groups(sites: Sequence[ImageSet]) -> NDArray[np.int64]:
    """Groups of all sites' images; those of two sites are never one."""
    parts, before = [], 0
    for images in sites:
        parts.append(before + group_numbers(images))
        before += len(images)
    return np.concatenate(parts)


def _conditions(images: ImageSet, space: ConditionSpace) -> Conditions:
    """What a site's images show, in the space of all; where it has no labels, nothing is said of any."""
    labels = translate_labels(images.labels, images.label_names, space.label_names) if images.label_names else None
    return space.conditions(len(images), labels, None if images.text is None else images.text.rows)


def clean_space(sites: Mapping[str, SiteData]) -> ConditionSpace:
    """Every label that an image of these sites carries, in alphabetical order, as a server has them, and their text."""
    names = tuple(sorted({name for site in sites.values() for name in used_names(site)}))
    return ConditionSpace(names, next((one.train.space.text for one in sites.values()), None))


def used_names(site: SiteData) -> tuple[str, ...]:
    """The labels that really occur among a site's training images."""
    return tuple(n for i, n in enumerate(site.train.label_names) if site.train.labels[:, i].any())
