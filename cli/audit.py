"""collafuse audit"""

from __future__ import annotations

from typing import Annotated

import typer

from . import options
from .console import reporting, say
from .results import keep_and_show


def audit(
    run: options.RunPath,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**63 - 1, help="Makes the same attacks again.")] = 0,
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """Attack a run: what its server learns from releases or statistics, and what its models give away.

    Needs a run of train or demo, whose data lies where it lay. Writes RUN/evaluation/audit.json and a picture, of
    reconstructions or of what statistics show; prints Markdown, the verdict first.
    """
    from collafuse.core.atomic import check_output
    from collafuse.evaluation.audit import audit as attack
    from collafuse.evaluation.standing import standing_of
    from collafuse.evaluation.tables import FOLDER
    from collafuse.learning.device import choose_device
    from collafuse.nodes.runfolder import RunFolder
    from edge_client.pictures import write_png

    path = run / FOLDER / "audit.json"
    check_output(path, overwrite=True)
    standing = standing_of(RunFolder(run))  # before: a training may go on meanwhile
    with reporting() as reporter:
        found = attack(RunFolder(run), choose_device(device), seed=seed, listener=reporter)
    picture = run / FOLDER / "audit" / found.picture_name
    values = {"seed": seed, "alarms": found.alarms, "verdict": found.verdict, "pictures": [f"audit/{picture.name}"]}
    values["standing"] = standing
    keep_and_show(
        path,
        found.tables,
        values,
        said=["# Audit", *found.verdict, *(f"ALARM: {alarm}" for alarm in found.alarms)],
        draw=lambda: write_png(picture, found.picture, overwrite=True),
        as_json=as_json,
    )
    say(f"Written to {path}; look at {picture}")
