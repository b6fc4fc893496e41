"""collafuse finish"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options
from .console import emit, reporting, say, say_if_large
from .remote import DEFAULT_PATIENCE, open_remote

if TYPE_CHECKING:
    from collafuse.core.intermediate import Source


def finish(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The client's .onnx file.")],
    out: options.OutFolder,
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="Intermediates from the server; or use --server.")
    ] = None,
    server: options.ServerUrl = None,
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="From a server: how many images.")] = 16,
    label: Annotated[
        list[str] | None, typer.Option("--label", metavar="L", help="From a server: what all show. Repeatable.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, max=2**63 - 1, help="From a server: makes the same images again.")
    ] = None,
    token_file: options.TokenFile = None,
    ca: options.Authority = None,
    cert: options.OwnCertificate = None,
    key: options.OwnKey = None,
    patience: options.Patience = DEFAULT_PATIENCE,
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
    """On a device: finish the server's intermediates into pictures. Needs no torch, and with a file no network.

    Writes one PNG file per image, with the settings inside, and a contact sheet. A job that was interrupted goes on
    when the same command is run again. However many images there are, they need no more memory than a few.
    """
    from collafuse.core.atomic import refuse_existing
    from collafuse.core.errors import UsageError
    from collafuse.core.intermediate import IntermediateFile
    from edge_client.fetching import Wanted, fetched, is_interrupted
    from edge_client.finisher import Finisher
    from edge_client.folder import SHEET
    from edge_client.job import finish_to_folder

    if (file is None) == (server is None):
        raise UsageError("give either a FILE of intermediates or --server URL, from which to fetch them.")
    finisher = Finisher.load(
        bundle, provider=provider, threads=threads, steps=steps, sampler=sampler, guidance=guidance, say=say
    )
    with ExitStack() as stack:
        reporter = stack.enter_context(reporting())
        intermediates: Source
        if server is None:
            say_if_large(file, "Checking")
            intermediates = stack.enter_context(IntermediateFile(file))
        else:
            remote = stack.enter_context(open_remote(server, token_file, ca, cert, key, patience, reporter.say))
            wanted = Wanted(finisher.bundle.info.client, count, tuple(label) if label else None, seed)
            shape = finisher.bundle.info.image_shape
            if not is_interrupted(out):
                refuse_existing(out / SHEET, overwrite)  # before anything is fetched
            advance = reporter.bar("fetch", count).advance
            intermediates = stack.enter_context(fetched(remote, wanted, shape, out, advance=advance))
        bar = reporter.bar("finish", len(intermediates))
        try:
            report = finish_to_folder(
                finisher, intermediates, out, batch_size=batch_size, overwrite=overwrite, advance=bar.advance
            )
        except KeyboardInterrupt:
            say("Interrupted; the same command goes on from here.")
            raise
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
