"""A plan of statistics in tables, in sentences, and as a picture: cuts, and at each the budgets of a release."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from ..core.noise import Cut
from .budgets import BudgetFigures
from .demands import Demands, best_cut, by_client, judged
from .drawing import GREEN, GREY, PLAIN, draw_cost, headline, level_axis, limit, png
from .tables import Table
from .trial import AS_WELL, SETS

ASKED = {
    "release": "would statistics be sent",
    "guarantee": "is the budget small enough",
    "time": "is the device fast enough",
    "quality": "are images good enough",
}
COLOURS = ("#1a365d", "#2b6cb0", "#2c9fa3", "#d69e2e", "#c05621", "#822727")
"""Of budgets, from none down to the smallest."""


def tables(rows: Sequence[BudgetFigures], demands: Demands, extractor_note: str) -> list[Table]:
    """One table: every cut of every client, and every budget there."""
    columns = (
        "client",
        "cut (sigma)",
        "budget: epsilon (delta)",
        "at most found, 1 % accused wrongly",
        f"Fréchet distance (mean of {SETS})",
        "times that of exact statistics",
        "real images (floor)",
        "NFE",
        "ms per image",
        "meets what is asked",
    )
    cells = []
    for r, meets in judged(rows, demands):
        times = None if r.times_low is None else f"{r.times_low:.3g}-{r.times_high:.3g}"
        exact = r.epsilon is None
        cells.append(
            (
                r.client,
                f"{r.sigma:.3g}",
                budget_of(r) + (", as sent" if r.as_sent else ""),
                "all, nothing is promised" if exact else f"{r.found:.1%}",
                "no release" if r.frechet is None else f"{r.frechet:.3g} ± {r.frechet_spread:.2g}",
                None if times is None or (exact and r.times_high == 1) else f"{times}: {_worth(r)}",
                f"{r.floor:.3g}",
                r.nfe,
                f"{r.ms:.2f}",
                meets,
            )
        )
    notes = [
        extractor_note,
        "Clients were trained briefly, the same number of steps at each cut: compare rows with each other, not with "
        "the figures of evaluate.",
        "Budgets other than what the sites sent are simulated from their images, one draw of noise each, for all sites "
        "together: sites with a label in common share it.",
        "At most found: of the images that were counted, the share that anyone can tell by any means who accuses 1 % "
        "of other images wrongly. It holds for one image of the site, and less for what many of them show. Exact "
        "statistics promise nothing; what they give away in fact, collafuse audit measures.",
        f"Times: by {SETS} sets from the same noise, either bound wrong once in 20 rows. Costs nothing means surely no "
        f"more than {AS_WELL - 1:.0%} worse.",
        "ms per image: onnxruntime on this machine, as bench measures it, at the time of each cut. Steps grow with log "
        "sigma.",
    ]
    notes += dict.fromkeys(f"No release with {budget_of(r)}: {r.refused}" for r in rows if r.refused)
    return [
        Table(
            "Cuts and budgets: what can be told, what images are worth, what a device pays",
            columns,
            tuple(cells),
            tuple(notes),
        )
    ]


def budget_of(row: BudgetFigures) -> str:
    """A budget's name."""
    return "none, exact" if row.epsilon is None else f"{row.epsilon:g} ({row.delta:g})"


def _worth(row: BudgetFigures) -> str:
    return "costs nothing" if row.costs_nothing else "worse" if row.costs else "cannot be told"


def conclusions(rows: Sequence[BudgetFigures], demands: Demands) -> list[str]:
    """A paragraph a client: the cut and budget that meet what is asked, or that none does and why; and the budgets at
    which pictures suffer."""
    found = []
    for client, own in by_client(rows).items():
        parts = [_choice(client, own, demands)]
        if demands.max_reid is not None or demands.max_leak is not None:
            parts.append(
                "No image is sent in any form, so none can be recognised (--max-reid) and no label read from one "
                "(--max-leak); what statistics tell is limited by a budget (--max-epsilon)."
            )
        found.append(" ".join([*parts, *_price(own)]))
    return found


def _choice(client: str, own: Sequence[BudgetFigures], demands: Demands) -> str:
    if not demands.any:
        return f"{client}: nothing was asked."
    if (chosen := best_cut(own, demands)) is not None:
        budget = "exact statistics" if chosen.epsilon is None else f"a budget of epsilon {budget_of(chosen)}"
        return (
            f"{client}: cut at {Cut(chosen.sigma).describe()}, with {budget}. A picture takes {chosen.ms:.2f} ms on "
            f"this machine, and its Fréchet distance is {chosen.frechet:.3g} (real images: {chosen.floor:.3g})."
        )
    # What would not be released fails for that alone, and says nothing of what was asked.
    sent = [row for row in own if not row.refused]
    missing = [said for name, said in ASKED.items() if all(name in demands.unmet(row) for row in sent or own)]
    if missing:
        where = "these" if len(sent) in (0, len(own)) else "those that would be sent"
        return f"{client}: no cut and budget meet what is asked. At none of {where} {', or '.join(missing)}."
    return f"{client}: no cut and budget meet what is asked at once; each demand alone is met somewhere."


def _price(own: Sequence[BudgetFigures]) -> list[str]:
    """What noise for a budget costs, from the highest cut on down; cuts of which the same holds are named together."""
    said: dict[str, list[str]] = {}
    for sigma in sorted({row.sigma for row in own}, reverse=True):
        private = [row for row in own if row.sigma == sigma and row.epsilon is not None]
        parts = []
        if free := [row.epsilon or 0 for row in private if row.costs_nothing]:
            parts.append(f"noise costs nothing down to epsilon {min(free):g}")
        if dear := [f"{row.epsilon:g}" for row in private if row.costs]:
            parts.append(f"pictures are surely worse at {', '.join(dear)}")
        if refused := [f"{row.epsilon:g}" for row in private if row.refused]:
            parts.append(f"no statistics would be sent at {', '.join(refused)}")
        if any(row.times_low is None and not row.refused for row in private):
            parts.append("no exact statistics would be sent, beside which it could be told what noise costs")
        what = "; ".join(parts) or "sets spread too far to tell what noise costs"
        said.setdefault(what, []).append(f"{sigma:.3g}")
    return [f"At sigma {', '.join(sigmas)} {what}." for what, sigmas in said.items()]


def picture(rows: Sequence[BudgetFigures], demands: Demands) -> bytes:
    """:func:`drawn` as a PNG file."""
    return png(drawn(rows, demands))


def drawn(rows: Sequence[BudgetFigures], demands: Demands) -> Figure:
    """A column per client; above how good images are by budget, below what a device pays. A star is what fits best."""
    clients = by_client(rows)
    figure = Figure(figsize=(1.6 + 4.2 * len(clients), 6.4), dpi=110, layout="constrained")
    axes = figure.subplots(2, len(clients), squeeze=False, sharex="all", sharey="row")
    every = sorted({row.sigma for row in rows})
    for column, (client, own) in enumerate(clients.items()):
        chosen = best_cut(own, demands) if demands.any else None
        quality, cost = axes[:, column]
        _draw_quality(quality, own, demands, chosen)
        one_each = list({row.sigma: row for row in own}.values())
        draw_cost(cost, one_each, demands)
        headline(quality, _headline(client, chosen, demands))
        level_axis((quality, cost), every, "cut (sigma): more is left to the device →")
    axes[0, 0].set_ylabel("distance from real images")
    axes[1, 0].set_ylabel("device, ms per image\n(at a point: evaluations)")
    # A small budget at a low cut is far above all else, which lies close together.
    axes[0, 0].set_yscale("log")
    axes[0, 0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes[0, 0].yaxis.set_major_formatter(PLAIN)
    axes[0, 0].yaxis.set_minor_locator(NullLocator())
    axes[1, 0].set_ylim(0, 1.3 * max(row.ms for row in rows))
    axes[0, 0].legend(fontsize=8)
    figure.suptitle(
        "Which cut, which budget? Lower is better; a smaller epsilon promises more."
        + ("\nA star meets what is asked best; dashed: the limits." if demands.any else "")
    )
    return figure


def _headline(client: str, chosen: BudgetFigures | None, demands: Demands) -> str:
    if not demands.any:
        return client
    if chosen is None:
        return f"{client}: nothing fits"
    return f"{client}: ★ sigma {chosen.sigma:.3g}, {_line_name(chosen.epsilon)}"


def _line_name(epsilon: float | None) -> str:
    return "exact statistics" if epsilon is None else f"epsilon {epsilon:g}"


def _draw_quality(axis: Axes, own: Sequence[BudgetFigures], demands: Demands, chosen: BudgetFigures | None) -> None:
    budgets = list(dict.fromkeys(row.epsilon for row in own))
    for place, epsilon in enumerate(budgets):
        line = [row for row in own if row.epsilon == epsilon and row.frechet is not None]
        axis.errorbar(
            [row.sigma for row in line],
            [row.frechet or 0.0 for row in line],
            yerr=[row.frechet_spread or 0.0 for row in line],
            marker="o",
            markersize=4,
            color=COLOURS[round(place * (len(COLOURS) - 1) / max(1, len(budgets) - 1))],
            label=_line_name(epsilon) + ("" if line else ": no release"),
        )
    floors = {row.sigma: row.floor for row in own}
    axis.plot(list(floors), list(floors.values()), color=GREY, label="real images")
    limit(axis, demands.max_frechet)
    if chosen is not None and chosen.frechet is not None:
        axis.plot([chosen.sigma], [chosen.frechet], marker="*", markersize=16, color=GREEN, zorder=5)
