"""What a baseline is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ...config import Config
from ...nodes.sites import Site


@dataclass(frozen=True)
class Asked:
    """``count`` images for a client, of a trained baseline's models by node; the same seed makes the same.

    sites: each client's cut and labels, as a server knows them.
    """

    config: Config
    models: Mapping[str, Any]
    sites: Mapping[str, Site]
    client: str
    count: int
    seed: int
    device: torch.device

    @property
    def labels(self) -> tuple[str, ...]:
        """What the client shares: its images are dealt out over these."""
        return self.sites[self.client].label_names or ()
