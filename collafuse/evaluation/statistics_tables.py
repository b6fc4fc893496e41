"""The audit of a run of statistics in tables and in plain language."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..core.mechanism import Budget
from ..core.moments import noise_deviations
from ..core.statistics import Statistics
from .accounting import most_auc, most_found
from .attacks.exposure import NOT_ASKED
from .attacks.finding import SHOWN_Z, Finding
from .attacks.membership import FALSE_ALARMS
from .attacks.statistics import ALL, names_of
from .attacks.tracing import BY_DIFFERENCE, BY_LIKELIHOOD, BY_MEAN, FEWEST_KNOWN, Traced
from .model_tables import INTERVALS, membership_table, memorisation_table, remembering
from .tables import Cell, Table

if TYPE_CHECKING:
    from .statistics_audit import StatisticsAudit, StatisticsSite

MOST_LABELS = 12
"""Labels of a site that are listed."""
MOST_USEFUL = 0.5
"""A budget that lets anybody find more of the members at 1 % false alarms is called too large to be one."""


def tables(audit: StatisticsAudit) -> list[Table]:
    """Every figure of an audit."""
    asked = {site.counted.name: (site.nearest, None) for site in audit.sites}
    found = [_received(audit), _traced(audit), membership_table(audit.membership, audit.notes)]
    found += [memorisation_table(asked), _guarantees(audit)]
    return [table for table in found if table.rows]


def alarms(audit: StatisticsAudit) -> list[str]:
    """Broken promises, numbers that give away who was counted, and models that remember."""
    found = [f"{f.subject}: {f.says}" for site in audit.sites for f in site.promises if f.alarm]
    for site in audit.sites:
        for one in site.traced:
            if one.broken:
                found.append(
                    f"{site.counted.name}: more can be told of who was counted than its budget allows anybody "
                    f"({one.attack}: AUC {one.membership.shown()}, allowed {one.allowed:.3f})."
                )
        if (best := _best(site, alarming=True)) is not None:
            found.append(
                f"{site.counted.name}: its statistics give away which images were counted ({best.attack}: AUC "
                f"{best.membership.shown()}, guessing 0.5). A budget, fewer coefficients, or more images of a "
                "label tell less."
            )
    return found + remembering(audit.membership, {site.counted.name: site.nearest for site in audit.sites})


def verdict(site: StatisticsSite) -> str:
    """What the statistics of one site do not protect, in plain language."""
    counted = site.counted
    named = tuple(dict.fromkeys(name for file in counted.files for name in names_of(file)))
    does_not, perhaps, holds = _sent(site, named), list[str](), list[str]()
    best = _best(site, alarming=True) or _best(site, alarming=False)
    knowing = next((one for one in site.traced if one.attack == BY_DIFFERENCE), None)
    for one, whoever in (
        (best, "it, its label and other images of the kind"),
        (knowing, "all the others"),
    ):
        if one is not None:
            found = one.membership
            beyond = found.auc > 0.5 + SHOWN_Z * found.error
            above = f", and puts {found.true_positives:.0%} of the counted above 99 % of the held-out of their label"
            (does_not if found.alarm else perhaps if beyond else holds).append(
                f"whether an image was counted, from whoever has {whoever}: {one.attack} has an AUC of {found.shown()} "
                f"(guessing: 0.5) with {found.others} held-out images{above if beyond else ''}"
            )
    if counted.exact:
        does_not.append("whether an image was counted, from whoever has all the others, who need only subtract")
    numbers = counted.files[0].about.dimension
    parts = [
        f"{counted.name}, statistics of {_labels(named)}, {numbers} numbers of an image, {_budget(counted.files)}.",
        "No image was released, not even a noised one: there is none to recognise, to reconstruct or to read.",
        f"Not protected: {'; '.join(does_not)}.",
    ]
    if perhaps:
        parts.append(f"Perhaps not protected, since chance alone seldom does as well: {'; '.join(perhaps)}.")
    if holds:
        parts.append(f"No better than guessing: {'; '.join(holds)}.")
    if best is None:
        parts.append(
            f"Whether an image was counted was not measured: with {len(counted.held_out)} held-out images there is too "
            "little to compare with and to know the kind from."
        )
    return " ".join([*parts, _formally(site)])


def _sent(site: StatisticsSite, named: tuple[str, ...]) -> list[str]:
    """What needs no attack, since it is what was sent."""
    counted, found = site.counted, []
    if counted.exact:
        what = "how many images it has" + ("" if named == (ALL,) else " of each label, and so each label's share")
        found.append(f"{what}: the counts are exact ({_counts(counted.files)})")
    by_label = "" if named == (ALL,) else ", label by label"
    noise = "" if counted.exact else ", with noise"
    found.append(f"what its images have in common{by_label}: mean and covariance are sent{noise} (statistics.png)")
    return found


def _formally(site: StatisticsSite) -> str:
    counted, mu = site.counted, site.counted.mu
    if mu is None:
        return "Formally nothing is guaranteed: without a budget (statistics.epsilon) the numbers are exact."
    if any(f.alarm and f.attack in ("noise", "shared noise") for f in site.promises):
        return "Formally nothing is guaranteed: the noise is not what the budget demands."
    if any(f.alarm for f in site.promises):
        return (
            "Formally it is not known what is guaranteed: the numbers are not those of these images, each counted once."
        )
    found = most_found(mu, FALSE_ALARMS)
    return (
        f"Formally, whatever else anybody knows: where 1 % of other images are accused, at most {found:.0%} of the "
        f"counted ones are found (AUC at most {most_auc(mu):.2f})"
        + (", so much that it rules out little." if found > MOST_USEFUL else ".")
        + " This holds for one image at a time; for somebody whom several show it is weaker. A count is told to about "
        f"± {noise_deviations(counted.files[0].about)[0]:.2g} images."
    )


def _best(site: StatisticsSite, *, alarming: bool) -> Traced | None:
    """The attack without the other images that tells most, of those that chance does not explain or of all."""
    found = [one for one in site.traced if one.attack != BY_DIFFERENCE and (one.membership.alarm or not alarming)]
    return max(found, key=lambda one: one.membership.auc, default=None)


def _labels(named: tuple[str, ...]) -> str:
    if named == (ALL,):
        return "all its images together"
    return f"{len(named)} labels" if len(named) > 1 else f"the label {named[0]}"


def _budget(files: tuple[Statistics, ...]) -> str:
    """Of each file that has another."""
    budgets = dict.fromkeys(file.about.budget for file in files)
    return " and ".join("exact" if one is None else f"with noise for {one.describe()}" for one in budgets)


def _shown(budget: Budget | None) -> str:
    return "none: exact" if budget is None else budget.describe()


def _counts(files: tuple[Statistics, ...]) -> str:
    """Each label's count as it was sent, over all files."""
    total: dict[str, float] = {}
    for file in files:
        for name, count in zip(names_of(file), file.counts.tolist(), strict=True):
            total[name] = total.get(name, 0.0) + count
    shown = [f"{name}: {count:.0f}" for name, count in list(total.items())[:MOST_LABELS]]
    return ", ".join(shown) + (f" and {len(total) - MOST_LABELS} more" if len(total) > MOST_LABELS else "")


def _received(audit: StatisticsAudit) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for site in audit.sites:
        counted, first = site.counted, site.counted.files[0].about
        noise: Cell = None
        if site.noise is not None:
            ratio, error = site.noise
            noise = f"{ratio:.4g} ± {SHOWN_Z * error:.2g}"
        broken = [f.says for f in site.promises if f.alarm]
        rows.append(
            (
                counted.name,
                len(counted.files),
                _counts(counted.files),
                len(counted.images),
                first.dimension,
                "; ".join(dict.fromkeys(_shown(file.about.budget) for file in counted.files)),
                first.clip,
                noise,
                "ALARM: " + " ".join(broken) if broken else _kept(site.promises),
            )
        )
    columns = (
        "client",
        "files",
        "counts as sent",
        "different images",
        "numbers of an image",
        "budget",
        "clip",
        "noise measured / demanded",
        "numbers of these images, noise of its own",
    )
    notes = [
        "Of each label a count, a mean and a covariance, and no image: re-identification, reconstruction and attribute "
        "inference have nothing to attack. Exact counts say how many images of each label a site has.",
        "Numbers are compared with those of the training images, their difference with the noise that is stated: over "
        f"all of them and label by label. {INTERVALS}",
    ]
    notes += [f"{f.subject}: {f.says}" for site in audit.sites for f in site.promises if f.attack == NOT_ASKED]
    if not audit.membership:  # then there is no table below which these would stand
        notes += audit.notes
    return Table("What the server received", columns, tuple(rows), tuple(notes))


def _kept(promises: tuple[Finding, ...]) -> str:
    return "not asked" if all(f.attack == NOT_ASKED for f in promises) else "kept"


def _traced(audit: StatisticsAudit) -> Table:
    rows = tuple(
        (
            site.counted.name,
            one.attack,
            one.known if one.attack != BY_DIFFERENCE else "all but one",
            one.membership.members,
            one.membership.others,
            one.membership.shown(),
            None if one.allowed is None else f"{one.allowed:.3f}",
            f"{one.membership.true_positives:.1%}",
            _judged(one),
        )
        for site in audit.sites
        for one in site.traced
    )
    columns = (
        "client",
        "attack",
        "images known to it",
        "counted images",
        "held-out images",
        "AUC (guessing 0.5)",
        "AUC that the budget allows",
        "found at 1 % false alarms",
        "beyond chance",
    )
    notes = (
        f"{BY_LIKELIHOOD}: is the image likelier under the released Gaussian or under one of its kind? {BY_MEAN}: how "
        "far does it lie where the released mean lies (Homer et al. 2008, Dwork et al. 2015)? For both an attacker "
        "knows half of the held-out images, and other sites' where those are few; the other half is asked about. A "
        f"label of which fewer than {FEWEST_KNOWN} images would be known is left out.",
        f"{BY_DIFFERENCE}: an attacker who has all other counted images takes them off the sums. Asked where there is "
        "a budget: without one it cannot fail. It is an alarm where it finds more than the budget allows.",
        "An image is compared with those of its own label. Found: of the counted images, where at most 1 % of these "
        "held-out ones of that label are accused. Of fewer than 100 none is, but of all other images more than 1 % "
        f"would be: so the share may lie above what a budget allows at 1 %. {INTERVALS}",
    )
    return Table("Membership inference: was this image counted?", columns, rows, notes)


def _judged(one: Traced) -> str:
    if one.alarm:
        return "ALARM"
    return "yes" if one.membership.alarm else "-"


def _guarantees(audit: StatisticsAudit) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for site in audit.sites:
        for file in site.counted.files:
            budget, clip = file.about.budget, file.about.clip
            if budget is None:
                rows.append((site.counted.name, "none: exact", *[None] * 6))
                continue
            mu = 1 / budget.noise_multiplier
            rows.append(
                (
                    site.counted.name,
                    f"{budget.epsilon:g}",
                    f"{budget.delta:g}",
                    mu,
                    clip,
                    f"{most_found(mu, FALSE_ALARMS):.1%}",
                    f"{most_auc(mu):.3f}",
                    noise_deviations(file.about)[0],
                )
            )
    columns = (
        "client",
        "epsilon",
        "delta",
        "mu",
        "clip",
        "found at 1 % false alarms, at most",
        "AUC, at most",
        "noise on a count (images)",
    )
    notes = (
        "The Gaussian mechanism on all numbers of a file together, one image replaced by another, whoever asks and "
        "whatever they know: of the counted images an attack finds at most Phi(Phi^-1(0.01) + mu) where it accuses 1 % "
        "of others.",
        "It holds for one image. Of somebody with k images in the file it holds with k times mu. Which labels a file "
        "names is not covered, nor what the client's own model and bundles tell, which are trained without noise.",
    )
    return Table("Formal guarantee of the statistics", columns, tuple(rows), notes)
