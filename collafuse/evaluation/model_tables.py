"""What a run's models give away of the images they were trained on, in tables and alarms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .attacks.membership import Membership
from .attacks.memorisation import Nearest, Repeated
from .tables import Cell, Table

INTERVALS = "In brackets or after ±: 95 % intervals."


def remembering(membership: Mapping[str, Membership], nearest: Mapping[str, Nearest | None]) -> list[str]:
    """Alarms about models that remember their images: by model, and by client."""
    found = [
        f"{model}: it gives away which images it was trained on (AUC {one.shown()}, guessing 0.5)."
        for model, one in membership.items()
        if one.alarm
    ]
    found += [
        f"{name}: {near.share:.0%} of finished images lie nearest to a training image where {near.expected:.0%} are "
        f"expected, and {near.copies:.0%} are near-copies of one: the client's model repeats its site's images."
        for name, near in nearest.items()
        if near is not None and near.alarm
    ]
    return found


def membership_table(membership: Mapping[str, Membership], said: Sequence[str]) -> Table:
    """By model. said: notes about what was not asked."""
    rows = tuple(
        (name, m.members, m.others, m.shown(), f"{m.true_positives:.1%}", "ALARM" if m.alarm else "-")
        for name, m in membership.items()
    )
    columns = (
        "model",
        "training images",
        "held-out images",
        "AUC (guessing 0.5)",
        "found at 1 % false alarms",
        "beyond chance",
    )
    notes = [f"By the denoising error over several levels, under the same noise for all. {INTERVALS}"]
    if any(m.others < 100 for m in membership.values()):
        notes.append("With fewer than 100 held-out images, found at 1 % means: above all held-out ones.")
    if "server" in membership:
        notes.append("The server is asked about each site apart, and the figures put together.")
    return Table("Membership inference: was this image trained on?", columns, rows, (*notes, *said))


def memorisation_table(asked: Mapping[str, tuple[Nearest | None, Repeated | None]]) -> Table:
    """By client; without columns about stored releases where there are none."""
    with_releases = any(repeated is not None for _, repeated in asked.values())
    rows: list[tuple[Cell, ...]] = []
    for name, (near, repeated) in asked.items():
        if near is None and repeated is None:
            continue
        of_releases: tuple[Cell, ...] = (
            None if repeated is None else f"{repeated.correlation:.2f}",
            None if repeated is None else f"{repeated.explained:.2g}",
        )
        rows.append(
            (
                name,
                None if near is None else near.generated,
                None if near is None else f"{near.share:.1%}",
                None if near is None else f"{near.expected:.1%}",
                None if near is None else f"{near.copies:.1%} / {near.copies_of_held_out:.1%}",
                *(of_releases if with_releases else ()),
                "ALARM" if (near and near.alarm) or (repeated and repeated.alarm) else "-",
            )
        )
    columns = (
        "client",
        "generated",
        "nearest is a training image",
        "expected",
        "near-copies: training / held-out",
        *(("highest correlation with a stored release's noise", "chance of one so high") if with_releases else ()),
        "beyond chance",
    )
    beside = "Finished images beside training and held-out ones"
    notes = (
        f"{beside}; delivered intermediates beside stored releases." if with_releases else f"{beside}.",
        "A near-copy is three times nearer to its nearest image than to the next.",
    )
    return Table("Memorisation: is what was trained on repeated?", columns, tuple(rows), notes)
