"""A cell of the study, and the list of them in ``cells.yaml``."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from collafuse.config import Config, from_mapping
from collafuse.config.learning import SamplerSettings, TrainingSettings

REAL = "real"
"""In place of a method: as many real images as a method generates, which nobody trained on. No figure can be better."""
WHOLE = "centralised"
"""The method that all others are compared with."""
CELLS = Path(__file__).with_name("cells.yaml")


@dataclass(frozen=True)
class Cell:
    """One training and its figures. cut: None for real images; a whole model has that whose levels it walks."""

    data: str
    method: str
    cut: float | None = None
    variant: str | None = None
    seed: int = 0

    @property
    def key(self) -> str:
        """A name for people and for finding its line."""
        cut = None if self.cut is None else f"sigma {self.cut:g}"
        return ", ".join(part for part in (self.data, self.method, cut, self.variant, f"seed {self.seed}") if part)

    def to_json(self) -> dict[str, Any]:
        """As it stands in a line of results."""
        return asdict(self)


@dataclass(frozen=True)
class Study:
    """What ``cells.yaml`` holds."""

    config: Mapping[str, Any]
    data: Mapping[str, Any]
    variants: Mapping[str, Any]
    cells: tuple[Cell, ...]

    @classmethod
    def read(cls, path: Path = CELLS) -> Study:
        """The list of cells."""
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        return cls(values["config"], values["data"], values["variants"], tuple(Cell(**c) for c in values["cells"]))

    def images_per_site(self, cell: Cell) -> int:
        """How many images each site trains on."""
        return int(self.data[cell.data]["images_per_site"])

    def config_of(self, cell: Cell, images: Path, cache: Path) -> Config:
        """A cell's configuration: what ``collafuse train`` would be given."""
        values = copy.deepcopy(dict(self.config))
        values["method"] = "collafuse" if cell.method == REAL else cell.method
        values["data"] |= {"path": str(images), "cache": str(cache)}
        values["clients"] = copy.deepcopy(self.data[cell.data]["clients"])
        if cell.cut is not None:
            values["client"]["cut"] = {"sigma": cell.cut}
        for node in ("server", "client"):
            values[node]["training"]["seed"] = cell.seed
        values = _onto(values, self.data[cell.data].get("config", {}))
        return from_mapping(_onto(values, self.variants[cell.variant] if cell.variant else {}))

    def beside(self, cell: Cell) -> Cell | None:
        """The whole model that walks the levels of a cell, by its samplers, and trains as its clients do; None for
        real images.

        Where evaluations lie changes a figure as much as methods do (``steps.py``), so that each is compared with one
        model along its own. A server and a client that meet elsewhere than at the default have a variant of that name,
        and those that sample or train otherwise their own.
        """
        if cell.cut is None:
            return None
        own, usual = (self._ways(one) for one in (cell, replace(cell, method="collafuse", variant=None)))
        if own[1:] != usual[1:]:
            return replace(cell, method=WHOLE)
        return Cell(cell.data, WHOLE, cell.cut, None if own == usual else f"handover-{own[0]:g}", cell.seed)

    def _ways(self, cell: Cell) -> tuple[float, SamplerSettings, SamplerSettings, TrainingSettings]:
        """Where the client takes over, over the cut; how server and client sample; how the client trains."""
        config = self.config_of(cell, Path(), Path())
        client = next(iter(config.clients.values()))
        return client.handover, config.server.sampler, client.sampler, client.training


def _onto(base: Any, over: Any) -> Any:
    """``over`` on top of ``base``, section by section."""
    if not isinstance(over, Mapping) or not isinstance(base, Mapping):
        return over
    return {**base, **{key: _onto(base[key], value) if key in base else value for key, value in over.items()}}
