"""What a user asks of a cut, and which cut meets it best."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from ..core.errors import UsageError

ASKED = {
    "recognition": "max_reid",
    "inference": "max_leak",
    "guarantee": "max_epsilon",
    "time": "max_ms",
    "quality": "max_frechet",
}
"""What can be asked of a cut, and the limit that asks it."""


class Figures(Protocol):
    """One row of a plan: a cut of a client, and of statistics the budget of a release too."""

    @property
    def client(self) -> str:
        """Whose cut it is."""

    @property
    def sigma(self) -> float:
        """The cut."""

    @property
    def measured(self) -> Mapping[str, float]:
        """What stands against a limit, by names of ASKED; what the row does not know of is not in it."""

    @property
    def refused(self) -> str:
        """Why there would be no release, and so no images; empty where there are."""


Row = TypeVar("Row", bound=Figures)


@dataclass(frozen=True)
class Demands:
    """Limits; None asks nothing. Shares and leaks from 0 to 1. Raises UsageError.

    max_reid holds for the upper bound of the interval that is shown: few releases may be recognised by luck.
    """

    max_reid: float | None = None
    max_leak: float | None = None
    max_ms: float | None = None
    max_frechet: float | None = None
    max_epsilon: float | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not (value >= 0 and math.isfinite(value)):
                raise UsageError(f"{name}={value}; expected a number of at least 0.")

    def unmet(self, figures: Figures) -> list[str]:
        """What of it a row does not meet, as names of ASKED; whatever is asked, there has to be a release."""
        if figures.refused:
            return ["release"]
        limits = {what: getattr(self, limit) for what, limit in ASKED.items()}
        return [
            what for what, value in figures.measured.items() if limits[what] is not None and not value <= limits[what]
        ]

    @property
    def any(self) -> bool:
        """Whether anything is asked."""
        return any(value is not None for value in vars(self).values())


def best_cut(rows: Sequence[Row], demands: Demands) -> Row | None:
    """Of the rows that meet all demands the one with the best images; None where none does."""
    fitting = [row for row in rows if not demands.unmet(row)]
    return min(fitting, key=lambda row: row.measured["quality"]) if fitting else None


def by_client(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows of each client, by rising cut."""
    names = dict.fromkeys(row.client for row in rows)
    return {n: sorted((r for r in rows if r.client == n), key=lambda r: r.sigma) for n in names}


def judged(rows: Sequence[Row], demands: Demands) -> Iterator[tuple[Row, str]]:
    """Each client's rows by rising cut, and what a table says of whether they meet what is asked."""
    for own in by_client(rows).values():
        chosen = best_cut(own, demands) if demands.any else None
        for row in own:
            unmet = demands.unmet(row)
            meets = "-" if not demands.any else "no: " + ", ".join(unmet) if unmet else "yes"
            yield row, meets + (", the best" if row is chosen else "")
