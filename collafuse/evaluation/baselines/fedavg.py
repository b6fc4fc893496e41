"""fedavg: one model of the whole noise range, averaged over the sites' own steps (McMahan et al. 2017).

In each round every site takes LOCAL_STEPS steps on its clean images from the common state; then weights, averaged
weights and the optimiser's moments become their mean over the sites, each counted by its images. There are as many
rounds as the server has steps for, so that each site does the work of one whole model.

Images never leave a site here, not even noised. Weights do, in every round, and what they say of images is known to
be much (arXiv 2405.20380); no noise is added to them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from ...config import Config
from ...data.dealing import SiteData
from ...learning.early import EarlyWeights
from ...learning.observer import Observer
from ...learning.seeds import keyed_seed
from ...learning.training import Trainer
from ...nodes.runfolder import NodeFolder
from .part import Part, clean_data, clean_space
from .whole import WHOLE

LOCAL_STEPS = 100


def parts(config: Config, sites: Mapping[str, SiteData], folder: Path) -> list[Part]:
    """The server's network, and the server's steps at every site."""
    settings = config.server.training
    # A state that all sites share exists at the end of a round alone.
    ends = {"checkpoint_every": settings.checkpoint_every}
    if settings.validation:  # is measured when the loss is logged
        ends["log_every"] = settings.log_every
    rounds = {name: max(1, round(steps / LOCAL_STEPS)) * LOCAL_STEPS for name, steps in ends.items()}
    settings = settings.model_copy(update=rounds)
    data, space = clean_data(sites, config), clean_space(sites)
    counts = {name: len(site.train) for name, site in sites.items()}
    return [Federated(WHOLE, "whole", config.server.network, settings, space, data, counts=counts)]


@dataclass(frozen=True)
class Federated(Part):
    """A model trained in rounds. counts: how many of its images, in order, lie at each site."""

    counts: Mapping[str, int] = field(default_factory=dict)

    @property
    def start(self) -> str:
        """Who holds what belongs to the training."""
        held = ", ".join(f"{name} {count}" for name, count in self.counts.items())
        return f"fresh, averaged every {LOCAL_STEPS} steps over {held}"

    def trainer_in(self, folder: NodeFolder, device: torch.device, observer: Observer) -> Trainer:
        common = Trainer(self.denoiser(), self.data, self.settings, folder.path, device, observer, self.start)
        return FederatedTrainer(common, self.counts)


class FederatedTrainer(Trainer):
    """The training loop with a step at every site for each of its own; it holds what the last average left."""

    def __init__(self, common: Trainer, counts: Mapping[str, int]) -> None:
        """``common`` trains on the images of all sites, one site after the other, ``counts`` of each."""
        vars(self).update(vars(common))
        ends = torch.tensor(list(counts.values())).cumsum(0).tolist()
        rows = {
            name: self.learned[(self.learned >= end - counts[name]) & (self.learned < end)]
            for name, end in zip(counts, ends, strict=True)
        }
        self.shares = [len(own) / len(self.learned) for own in rows.values() if len(own)]
        self.sites = [self._site(name, own) for name, own in rows.items() if len(own)]
        # What all sites share is of the end of a round, see parts().
        self.early_weights = EarlyWeights(self.early_weights.step // LOCAL_STEPS * LOCAL_STEPS)

    def _site(self, name: str, rows: Tensor) -> Trainer:
        """A site's own loop on its own images; it draws other batches and noise than the others."""
        data = self.data
        images, conditions, floor = (of[rows] for of in (data.images, data.conditions, data.sigma_floor))
        own = replace(data, images=images, conditions=conditions, sigma_floor=floor, groups=None)
        seed = keyed_seed(self.settings.seed, "site", name)
        settings = self.settings.model_copy(update={"seed": seed, "validation": 0.0})  # the common one measures
        return Trainer(copy.deepcopy(self.model), own, settings, self.folder, self.device, self.observer)

    def take_step(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """One step at every site; a round ends with the average."""
        if step % LOCAL_STEPS == 0:
            self._hand_out()
        done = [site.take_step(step) for site in self.sites]
        if (step + 1) % LOCAL_STEPS == 0 or step + 1 == self.settings.steps:
            self._average()
        sigma, losses, least = (torch.cat(parts) for parts in zip(*done, strict=True))
        return sigma, losses, least

    def _hand_out(self) -> None:
        for site in self.sites:
            site.model.load_state_dict(self.model.state_dict())
            site.ema.load_state_dict(self.ema.state_dict())
            # A copy, since the optimiser would go on in the very tensors that it is given.
            site.optimizer.load_state_dict(copy.deepcopy(self.optimizer.state_dict()))
            site.model.train()

    def _average(self) -> None:
        for name in ("model", "ema"):
            states = [getattr(site, name).state_dict() for site in self.sites]
            getattr(self, name).load_state_dict(
                {key: self._mean([state[key] for state in states]) for key in states[0]}
            )
        states = [site.optimizer.state_dict()["state"] for site in self.sites]
        moments = {
            index: {key: self._mean([state[index][key] for state in states]) for key in states[0][index]}
            for index in states[0]
        }
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})

    def _mean(self, values: Sequence[Tensor]) -> Tensor:
        """The mean over the sites, each counted by its images."""
        return sum(
            (share * value for share, value in zip(self.shares, values, strict=True)), torch.zeros_like(values[0])
        )
