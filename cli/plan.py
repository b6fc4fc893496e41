"""collafuse plan"""

from __future__ import annotations

from typing import Annotated

import typer

from . import options
from .console import reporting, say
from .results import keep_and_show


def plan(
    run: options.RunPath,
    cut: Annotated[
        list[float] | None,
        typer.Option("--cut", metavar="SIGMA", help="A cut to try; by default five from each site's own. Repeatable."),
    ] = None,
    max_reid: Annotated[
        float | None,
        typer.Option(
            "--max-reid",
            min=0,
            max=1,
            help="Largest share of releases recognised in a gallery of 1,000: held against the interval's upper bound.",
        ),
    ] = None,
    max_leak: Annotated[
        float | None,
        typer.Option(
            "--max-leak", min=0, max=1, help="Furthest that inference of a label may get from guessing (0) to sure (1)."
        ),
    ] = None,
    max_epsilon: Annotated[
        float | None,
        typer.Option(
            "--max-epsilon",
            min=0,
            help="Largest epsilon that a release may promise: of one noised image at delta 1e-5, or the budget of "
            "statistics.",
        ),
    ] = None,
    max_ms: Annotated[
        float | None, typer.Option("--max-ms", min=0, help="Longest time for a picture on this machine, in ms.")
    ] = None,
    max_frechet: Annotated[
        float | None,
        typer.Option("--max-frechet", min=0, help="Largest Fréchet distance; the tables name the features."),
    ] = None,
    epsilon: Annotated[
        list[float] | None,
        typer.Option(
            "--epsilon",
            metavar="EPSILON",
            help="Of a run of statistics: a budget to try; by default 1, 8 and 32. Repeatable.",
        ),
    ] = None,
    train_steps: Annotated[
        int | None,
        typer.Option("--train-steps", min=1, help="Steps of each client; a quarter of the configured ones by default."),
    ] = None,
    features: options.Features = "auto",
    weights: options.FeatureWeights = None,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**63 - 1, help="Makes the same figures again.")] = 0,
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """Find the cut that fits: what a server can learn, what images are worth and what a device pays, over cuts.

    Uses the server of a run of train or demo, which knows every level above its lowest cut, and trains a short client
    for each cut. Where sites send statistics, every cut is tried with several budgets of noise for them. Finished cuts
    are kept in RUN/evaluation/plan, so that the same command goes on where it stopped, and asking for something else
    costs nothing. Writes RUN/evaluation/plan.json and a picture; prints Markdown.
    """
    from dataclasses import asdict

    from collafuse.core.atomic import check_output, write_bytes
    from collafuse.evaluation import budget_report, plan_report
    from collafuse.evaluation.demands import Demands
    from collafuse.evaluation.plan import Settings
    from collafuse.evaluation.plan import plan as measure
    from collafuse.evaluation.standing import standing_of
    from collafuse.evaluation.tables import FOLDER
    from collafuse.learning.device import choose_device
    from collafuse.nodes.runfolder import RunFolder

    demands = Demands(max_reid, max_leak, max_ms, max_frechet, max_epsilon)
    settings = Settings(
        tuple(cut) if cut else None,
        tuple(dict.fromkeys(epsilon)) if epsilon else None,
        train_steps,
        seed,
        features,
        weights,
    )
    path, picture = run / FOLDER / "plan.json", run / FOLDER / "plan" / "plan.png"
    check_output(path, overwrite=True)
    standing = standing_of(RunFolder(run))  # before: a training may go on meanwhile
    with reporting() as reporter:
        found = measure(RunFolder(run), settings, choose_device(device), reporter.observer, reporter)
    if found.budgets:
        tables = budget_report.tables(found.budgets, demands, found.note)
        sentences = budget_report.conclusions(found.budgets, demands)
        drawn = budget_report.picture(found.budgets, demands)
    else:
        tables = plan_report.tables(found.cuts, demands, found.note)
        sentences = plan_report.conclusions(found.cuts, demands)
        drawn = plan_report.picture(found.cuts, demands)
    sentences += [f"{name}: none of the cuts that were named (--cut) can be tried." for name in found.untried]
    values = {
        "demands": asdict(demands),
        "seed": seed,
        "conclusions": sentences,
        "cuts": [asdict(row) for row in found.cuts] + [asdict(row) for row in found.budgets],
        "pictures": [f"plan/{picture.name}"],
        "standing": standing,
    }
    keep_and_show(
        path,
        tables,
        values,
        said=["# Plan", *sentences],
        draw=lambda: write_bytes(picture, drawn, overwrite=True),
        as_json=as_json,
    )
    say(f"Written to {path}; look at {picture}")
