"""collafuse finish"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options
from .console import emit, reporting, say


def finish(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The client's .onnx file.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Intermediates from the server.")],
    out: options.OutFolder,
    steps: Annotated[int | None, typer.Option("--steps", help="Finishing steps; the bundle's own by default.")] = None,
    sampler: Annotated[str | None, typer.Option("--sampler", help="euler, heun or dpmpp_2m.")] = None,
    guidance: Annotated[float | None, typer.Option("--guidance", help="Weight of the labels; 1 is plain.")] = None,
    provider: options.ProviderOption = "auto",
    threads: options.Threads = None,
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", min=1, help="Images per evaluation; by default what suits image and provider."),
    ] = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """On a device: finish the server's intermediates into pictures. Needs no torch and no network.

    Writes one PNG file per image, with the settings inside, and a contact sheet. A job that was interrupted goes on
    when the same command is run again. However many images there are, they need no more memory than a few.
    """
    from collafuse.core.intermediate import IntermediateFile
    from edge_client.finisher import Finisher
    from edge_client.job import finish_to_folder

    finisher = Finisher.load(
        bundle, provider=provider, threads=threads, steps=steps, sampler=sampler, guidance=guidance, say=say
    )
    with IntermediateFile(file) as intermediates, reporting() as reporter:
        bar = reporter.bar("finish", len(intermediates))
        report = finish_to_folder(
            finisher, intermediates, out, batch_size=batch_size, overwrite=overwrite, advance=bar.advance
        )
    if kept := report.images - report.finished:
        say(f"{kept} of {report.images} images were there already.")
    if report.finished:
        say(
            f"Finished {report.finished} images in {report.seconds:.1f} s "
            f"({report.milliseconds_per_image:.1f} ms each, {report.nfe} evaluations on {report.provider})."
        )
    say(f"Look at {report.sheet}.")
    if as_json:
        emit(vars(report))
