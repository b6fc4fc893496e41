"""The study's images: who trains on which, what the figures compare with, what the judge learns from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from collafuse.config import Config
from collafuse.data.datasets import load
from collafuse.data.dealing import SiteData, deal
from collafuse.data.imageset import ImageSet
from collafuse.evaluation.generated import Generated

REFERENCE = 10_000
JUDGE = 25_000
SEED = 0


@dataclass(frozen=True)
class Images:
    """Three parts of one set without an image in common. pool: what sites train on."""

    pool: ImageSet
    reference: ImageSet
    judge: ImageSet

    @classmethod
    def of(cls, config: Config) -> Images:
        """All images of a configuration's set, parted by one fixed shuffle."""
        images = load(config.data)
        order = np.random.default_rng(SEED).permutation(len(images))
        reference, judge, pool = np.split(order, [REFERENCE, REFERENCE + JUDGE])
        return cls(*(images.take(rows) for rows in (pool, reference, judge)))

    def unseen(self, config: Config, counts: Mapping[str, int]) -> dict[str, Generated]:
        """Real images of each site's labels that no site trains on, as if they had been generated."""
        mine = deal(self.pool, config, dict(config.clients))
        last = {
            name: mine[name].take(np.arange(len(mine[name]) - count, len(mine[name]))) for name, count in counts.items()
        }
        return {
            n: Generated(np.asarray(one.pixels).transpose(0, 2, 3, 1), one.labels, one.label_names)
            for n, one in last.items()
        }

    def sites(self, config: Config, per_site: int) -> dict[str, SiteData]:
        """Each site's images: so many of those that it chooses, and the reference images of its labels."""
        mine, theirs = (deal(part, config, dict(config.clients)) for part in (self.pool, self.reference))
        made = {}
        for name, settings in config.clients.items():
            labels = settings.labels if isinstance(settings.labels, tuple) else self.pool.label_names
            train = mine[name].take(np.arange(per_site)).with_labels(labels)
            made[name] = SiteData(train, theirs[name].with_labels(labels))
        return made
