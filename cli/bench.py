"""collafuse bench"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from . import options
from .console import emit, say

FINISH = (sys.executable, "-m", "cli", "finish")


def bench(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The client's .onnx file.")],
    provider: options.ProviderOption = "auto",
    threads: options.Threads = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Finishing steps; the bundle's own by default.")] = None,
    sampler: Annotated[str | None, typer.Option("--sampler", help="euler, heun or dpmpp_2m.")] = None,
    batch_size: Annotated[
        list[int] | None,
        typer.Option("--batch-size", min=1, help="Images per evaluation; by default a job's. Repeatable."),
    ] = None,
    repetitions: Annotated[int, typer.Option("--repetitions", min=1, help="Runs that the medians are of.")] = 20,
    as_json: options.Json = False,
) -> None:
    """Measure a bundle on this machine: time per image, starts, memory. Needs no intermediates.

    Prints a Markdown table of one row, to paste where such rows are collected.
    """
    from dataclasses import asdict

    from edge_client import bench as benches

    result = benches.bench(
        bundle,
        FINISH,
        provider=provider,
        threads=threads,
        steps=steps,
        sampler=sampler,
        batch_sizes=batch_size or (),
        repetitions=repetitions,
        say=say,
    )
    if as_json:
        emit(asdict(result))
    else:
        print(benches.HEADER)
        print(result.row())
