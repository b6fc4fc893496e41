"""What the pictures of plans have in common: an axis of cuts, limits, and what a device pays."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Sequence
from typing import Protocol

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from .demands import Demands

ROOM = 0.07
"""How far from the level before it one must be for its figure to be written at the axis, as a share of the axis."""
MARGIN = 1.3
HEADLINE = 40
"""Letters of a headline in a line: so many are as wide as a column."""
PLAIN = FuncFormatter(lambda value, _: f"{value:.3g}")
BLUE, ORANGE, GREEN, GREY = "#2b6cb0", "#c05621", "#2f855a", "#718096"


class Cost(Protocol):
    """What a device pays at a cut."""

    @property
    def sigma(self) -> float:
        """The cut."""

    @property
    def nfe(self) -> int:
        """Network evaluations an image."""

    @property
    def ms(self) -> float:
        """Milliseconds an image."""


def png(figure: Figure) -> bytes:
    """A figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def headline(axis: Axes, text: str) -> None:
    """What stands above a column of axes, in as many lines as it takes to stay clear of the next column's."""
    axis.set_title(textwrap.fill(text, HEADLINE), fontsize=11, loc="left")


def level_axis(axes: Sequence[Axes], every: Sequence[float], name: str) -> None:
    """Let axes, one above the other, show these rising cuts, with the axis's name below the last."""
    for axis in axes:
        axis.set_xscale("log")
        axis.set_xlim(every[0] / MARGIN, every[-1] * MARGIN)
        axis.grid(alpha=0.25)
    axes[-1].set_xticks(_apart(every))
    axes[-1].xaxis.set_major_formatter(PLAIN)
    axes[-1].xaxis.set_minor_locator(NullLocator())
    axes[-1].set_xlabel(name)


def _apart(levels: Sequence[float]) -> list[float]:
    """Of rising noise levels those whose figures have room beside each other on a logarithmic axis."""
    shown: list[float] = []
    room = ROOM * math.log(levels[-1] / levels[0] * MARGIN**2)
    for level in levels:
        if not shown or math.log(level / shown[-1]) > room:
            shown.append(level)
    return shown


def limit(axis: Axes, most: float | None) -> None:
    """A dashed line at what is asked, if anything is."""
    if most is not None:
        axis.axhline(most, color=GREY, linestyle="--", linewidth=1)


def draw_cost(axis: Axes, rows: Sequence[Cost], demands: Demands) -> None:
    """Milliseconds over cuts, the number of evaluations at each point."""
    axis.plot([row.sigma for row in rows], [row.ms for row in rows], marker="o", color=ORANGE)
    for row in rows:
        axis.annotate(
            f"{row.nfe}",
            (row.sigma, row.ms),
            fontsize=7,
            xytext=(0, 6),
            textcoords="offset points",
            ha="center",
        )
    limit(axis, demands.max_ms)
