"""A plan in tables, in sentences, and as a picture."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from ..core.noise import Cut
from .accounting import DELTA
from .demands import Demands, best_cut, by_client, judged
from .drawing import BLUE, GREEN, GREY, ORANGE, draw_cost, headline, level_axis, limit, png
from .one_cut import CutFigures
from .tables import Table
from .trial import AS_WELL, SETS

DEMANDED = {
    "recognition": "are few enough releases recognised",
    "inference": "is little enough inferred",
    "guarantee": "is epsilon small enough",
    "time": "is the device fast enough",
    "quality": "are images good enough",
}


def tables(rows: Sequence[CutFigures], demands: Demands, extractor_note: str) -> list[Table]:
    """One table: every cut of every client."""
    columns = (
        "client",
        "cut (sigma)",
        "recognised (of a gallery)",
        "inferred (guessing)",
        f"epsilon (delta {DELTA:g})",
        f"Fréchet distance (mean of {SETS})",
        "from statistics alone",
        "real images (floor)",
        "NFE",
        "ms per image",
        "meets what is asked",
    )
    cells = []
    for r, meets in judged(rows, demands):
        inferred = None if r.attribute is None else f"{r.attribute:.0%} ({r.attribute_chance:.0%})"
        cells.append(
            (
                r.client,
                f"{r.sigma:.3g}",
                f"{r.reid:.1%} ({100 * r.reid_low:.1f}-{100 * r.reid_high:.1f}) of {r.gallery}",
                inferred,
                f"{r.epsilon:.3g}",
                f"{r.frechet:.3g} ± {r.frechet_spread:.2g}",
                f"{r.frechet_statistics:.3g} ({_times(r)}: {_of_statistics(r)})",
                f"{r.floor:.3g}",
                r.nfe,
                f"{r.ms:.2f}",
                meets,
            )
        )
    notes = (
        extractor_note,
        "Recognised: in brackets a 95 % interval, whose upper end is what a limit (--max-reid) is held against.",
        "Clients were trained briefly, the same number of steps at each cut: compare cuts with each other, not with "
        "the figures of evaluate.",
        "From statistics alone: the intermediate drawn from a Gaussian per label, or one of everybody's images where a "
        "site keeps its labels, by exact counts, means and covariances of all sites, without noise for a budget. In "
        f"brackets how many times the server's distance that is, by {SETS} sets from the same noise: either bound is "
        f"wrong once in 20 cuts. As good means surely no more than {AS_WELL - 1:.0%} worse: then sending images buys "
        "nothing; before relying on it, train clients longer (--train-steps), since a poor client hides the "
        "difference.",
        "The server learned from releases at the sites' own cuts. One that had learned from noisier releases would do "
        "somewhat worse just above them, so that images at the higher cuts are flattered.",
        "Inferred: the label or attribute that a noised image gives away most, the best of many if there are many. "
        "What a site shares (share_labels, share_text) the server knows without it.",
        "Epsilon: what one release promises formally, pixels in [-1, 1], one image replaced by another. Above 10 or so "
        "it rules nothing out; labels and text that are shared have no guarantee.",
        "ms per image: onnxruntime on this machine, as bench measures it, at the time of each cut: on a busy machine "
        "compare NFE. Steps grow with log sigma.",
    )
    return [
        Table("Cuts: what a server can learn, what images are worth, what a device pays", columns, tuple(cells), notes)
    ]


def conclusions(rows: Sequence[CutFigures], demands: Demands) -> list[str]:
    """A paragraph a client: the cut that meets what is asked, or that none does and why; and where statistics do."""
    found = []
    for client, own in by_client(rows).items():
        parts = [_choice(client, own, demands)]
        if demands.max_leak is not None and all(row.leak is None for row in own):
            parts.append(
                "No label or attribute could be asked about, so a limit of inference (--max-leak) says nothing."
            )
        found.append(" ".join([*parts, *_worth_of_images(own)]))
    return found


def _worth_of_images(own: Sequence[CutFigures]) -> list[str]:
    """What the images that were sent buy beside statistics, by rising cut."""
    found = []
    # From where on all cuts are so: a lucky one in between is no reason.
    first = next((i for i in range(len(own)) if all(r.statistics_suffice for r in own[i:])), len(own))
    if first < len(own):
        found.append(
            f"From sigma {own[first].sigma:.3g} on sending images buys nothing: a Gaussian per label, from counts, "
            f"means and covariances, does as well, to within {AS_WELL - 1:.0%}. Statistics hold no image in any form. "
            "Exact ones still tell which images were counted, the more the fewer a label has (collafuse audit); "
            "a budget limits that."
        )
        found += _reserves(own[first:])
    elif all(row.images_pay for row in own):
        found.append("At every cut here the images that were sent buy better pictures than statistics alone.")
    if untold := [f"{row.sigma:.3g} ({_times(row)})" for row in own if not (row.statistics_suffice or row.images_pay)]:
        found.append(
            "Whether statistics alone do as well cannot be told, by how many times the server's distance theirs is, at "
            f"sigma {', '.join(untold)}."
        )
    return found


def _reserves(as_good: Sequence[CutFigures]) -> list[str]:
    """What stands against sending statistics in place of images, of cuts at which they do as well."""
    found = [
        f"As the site stands it would send no exact ones: {why}"
        for why in {r.statistics_refused for r in as_good}
        if why
    ]
    near = [f"{row.sigma:.3g} ({row.floor / row.frechet:.0%})" for row in as_good if row.floor > row.frechet / 2]
    if near:
        found.append(
            "Of so few images real ones are as far from each other as most of that distance, at sigma "
            f"{', '.join(near)}: a difference that is small beside it may be large beside what the server adds to it. "
            "Hold more images out to be sure."
        )
    return found


def _times(row: CutFigures) -> str:
    """How many times the server's distance that of statistics is."""
    return f"{row.statistics_low:.3g}-{row.statistics_high:.3g} times"


def _of_statistics(row: CutFigures) -> str:
    return "as good" if row.statistics_suffice else "worse" if row.images_pay else "cannot be told"


def _choice(client: str, own: Sequence[CutFigures], demands: Demands) -> str:
    if not demands.any:
        return f"{client}: nothing was asked. {_over_cuts(own[0], own[-1])}"
    if (chosen := best_cut(own, demands)) is not None:
        return (
            f"{client}: cut at {Cut(chosen.sigma).describe()}. There {chosen.reid:.1%} of releases are recognised "
            f"(at most {chosen.reid_high:.1%}), a picture takes {chosen.ms:.2f} ms on this machine, and its Fréchet "
            f"distance is {chosen.frechet:.3g} (real images: {chosen.floor:.3g})."
        )
    missing = [d for name, d in DEMANDED.items() if all(name in demands.unmet(row) for row in own)]
    if missing:
        return f"{client}: no cut meets what is asked. At none of these {', or '.join(missing)}."
    closest = min(own, key=lambda row: len(demands.unmet(row)))
    return (
        f"{client}: no cut meets what is asked at once. Closest is sigma {closest.sigma:.3g}, which fails "
        f"{' and '.join(demands.unmet(closest))}; each demand alone is met somewhere."
    )


def _over_cuts(first: CutFigures, last: CutFigures) -> str:
    """What the cuts from first to last show and cost."""
    before, after = (f"{row.reid:.0%}" for row in (first, last))
    costs = f"a picture costs {first.ms:.2f} to {last.ms:.2f} ms."
    if first.sigma == last.sigma:
        return f"At cut {first.sigma:.3g}, {before} of releases are recognised and a picture costs {first.ms:.2f} ms."
    cuts = f"From cut {first.sigma:.3g} to {last.sigma:.3g}"
    if before != after and first.reid > last.reid:
        return f"{cuts} recognition falls from {before} to {after} and {costs}"
    return f"{cuts}, {before if before == after else f'{before} to {after}'} of releases are recognised and {costs}"


def picture(rows: Sequence[CutFigures], demands: Demands) -> bytes:
    """:func:`drawn` as a PNG file."""
    return png(drawn(rows, demands))


def drawn(rows: Sequence[CutFigures], demands: Demands) -> Figure:
    """A column per client; from above, what a server learns, how good images are, what a device pays.

    Green are the cuts that meet what is asked; a star is the best of them.
    """
    clients = by_client(rows)
    figure = Figure(figsize=(1.6 + 4.2 * len(clients), 8.2), dpi=110, layout="constrained")
    axes = figure.subplots(3, len(clients), squeeze=False, sharex="all", sharey="row")
    every = sorted({row.sigma for row in rows})
    for column, (client, own) in enumerate(clients.items()):
        sigmas = [row.sigma for row in own]
        chosen = best_cut(own, demands) if demands.any else None
        privacy, quality, cost = axes[:, column]
        _draw_privacy(privacy, sigmas, own, demands)
        _draw_quality(quality, sigmas, own, demands)
        draw_cost(cost, own, demands)
        headline(privacy, _headline(client, chosen, demands))
        level_axis((privacy, quality, cost), every, "cut (sigma): more noise before anything is sent →")
        for axis in (privacy, quality, cost):
            _shade(axis, own, demands)
            if chosen is not None:
                axis.axvline(chosen.sigma, color=GREEN, linewidth=1.2)
    named = ("what a server can learn", "distance from real images", "device, ms per image\n(at a point: evaluations)")
    for axis, text in zip(axes[:, 0], named, strict=True):
        axis.set_ylabel(text)
    figure.suptitle(
        "Where to cut? Lower is better everywhere."
        + ("\nGreen: meets what is asked; dashed: the limits." if demands.any else "")
    )
    privacy, quality, cost = axes[:, 0]
    privacy.set_ylim(-0.03, 1.05)
    quality.set_ylim(0, 1.15 * max(max(row.frechet, row.frechet_statistics, row.floor) for row in rows))
    cost.set_ylim(0, 1.3 * max(row.ms for row in rows))
    for axis in (privacy, quality):
        axis.legend(fontsize=8)
    return figure


def _headline(client: str, chosen: CutFigures | None, demands: Demands) -> str:
    if not demands.any:
        return client
    return f"{client}: no cut fits" if chosen is None else f"{client}: ★ cut at sigma {chosen.sigma:.3g}"


def _shade(axis: Axes, own: Sequence[CutFigures], demands: Demands) -> None:
    """Green behind the cuts that meet what is asked."""
    if not demands.any:
        return
    for row in own:
        if not demands.unmet(row):
            axis.axvspan(row.sigma / 1.08, row.sigma * 1.08, color=GREEN, alpha=0.16, linewidth=0)


def _draw_privacy(axis: Axes, sigmas: list[float], own: Sequence[CutFigures], demands: Demands) -> None:
    shares = [row.reid for row in own]
    errors = [[row.reid - row.reid_low for row in own], [row.reid_high - row.reid for row in own]]
    axis.errorbar(sigmas, shares, yerr=errors, marker="o", color=ORANGE, capsize=2, label="releases recognised")
    if all(row.leak is not None for row in own):
        leaks = [row.leak or 0.0 for row in own]
        axis.plot(sigmas, leaks, marker="s", color=BLUE, label="label or attribute: from guessing to certain")
    limit(axis, demands.max_reid)
    axis.set_ylim(-0.03, 1.05)
    axis.yaxis.set_major_formatter(PercentFormatter(1))


def _draw_quality(axis: Axes, sigmas: list[float], own: Sequence[CutFigures], demands: Demands) -> None:
    values, spreads = [row.frechet for row in own], [row.frechet_spread for row in own]
    axis.errorbar(sigmas, values, yerr=spreads, marker="o", color=ORANGE, capsize=2, label="server, then client")
    statistics = [row.frechet_statistics for row in own]
    axis.plot(sigmas, statistics, marker="^", color=BLUE, linestyle=":", label="statistics, then client: no image sent")
    axis.plot(sigmas, [row.floor for row in own], color=GREY, label="real images")
    limit(axis, demands.max_frechet)
