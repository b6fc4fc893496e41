"""collafuse evaluate"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options
from .console import reporting, say
from .results import keep_and_show


def evaluate(
    run: options.RunPath,
    against: Annotated[
        list[Path] | None,
        typer.Option("--against", metavar="RUN2", help="A run over the same images, to stand beside. Repeatable."),
    ] = None,
    samples: Annotated[
        int, typer.Option("--samples", min=1, metavar="N", help="Images of each arm and client, at most.")
    ] = 1000,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**63 - 1, help="Makes the same images again.")] = 0,
    features: options.Features = "auto",
    weights: options.FeatureWeights = None,
    energy: Annotated[
        bool, typer.Option("--energy", help="Also read the machine's energy counters, through codecarbon.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="FILE", help="Where to write the figures; RUN/evaluation/evaluation.json."),
    ] = None,
    overwrite: options.Overwrite = False,
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """Measure how good the images of a run are, beside the server alone, the client alone and real ones.

    Needs a run of train, whose data lies where it lay, with images held out. Prints Markdown. Nothing is downloaded.
    """
    from collafuse.core.atomic import check_output
    from collafuse.evaluation.evaluate import evaluate as measure
    from collafuse.evaluation.standing import standing_of
    from collafuse.evaluation.tables import FOLDER
    from collafuse.learning.device import choose_device
    from collafuse.nodes.runfolder import RunFolder

    path = out or run / FOLDER / "evaluation.json"
    check_output(path, overwrite or out is None)
    beside = [RunFolder(path) for path in against or ()]
    standing = standing_of(RunFolder(run))  # before: a training may go on meanwhile
    standing_beside = {str(one.path.resolve()): standing_of(one) for one in beside}
    with reporting() as reporter:
        found = measure(
            RunFolder(run),
            beside,
            samples=samples,
            seed=seed,
            features=features,
            weights=weights,
            energy=energy,
            device=choose_device(device),
            listener=reporter,
        )
    values = {"samples": samples, "seed": seed, "against": [str(one) for one in against or ()], **found.values()}
    values |= {"standing": standing, "standing_beside": standing_beside}
    keep_and_show(path, found.tables, values, as_json=as_json)
    say(f"Written to {path}")
