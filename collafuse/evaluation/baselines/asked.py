"""What a baseline is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ...config import Config, SamplerSettings
from ...core.conditioning import ConditionSpace
from ...data.imageset import ImageSet
from ...nodes.planned import Planned, planned_like
from ...nodes.sites import Site


@dataclass(frozen=True)
class Asked:
    """``count`` images for a client, of a trained baseline's models by node; the same seed makes the same.

    sites: each client's cut, labels and text, as a server knows them. like: images that what is made stands beside.
    """

    config: Config
    models: Mapping[str, Any]
    sites: Mapping[str, Site]
    client: str
    count: int
    seed: int
    device: torch.device
    like: ImageSet | None = None

    def model(self, node: str, sampler: SamplerSettings) -> Any:
        """A node's model as this sampler evaluates it. Raises MismatchError as ``TrainedModel.autoguided``."""
        model = self.models[node]
        # Gaussians, which a server of statistics has, cannot be guided, and are not asked to be.
        return model if sampler.autoguidance == 1.0 else model.autoguided(sampler.autoguidance)

    def planned(self, space: ConditionSpace) -> Planned:
        """What each image shows, of what the client shares, for a model of this space."""
        site = self.sites[self.client]
        text = site.text and space.text is not None
        return planned_like(self.count, site.label_names, space.label_names, self.like, text=text)
