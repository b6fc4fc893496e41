"""collafuse finish"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from . import options
from .console import emit, reporting, say, say_if_large
from .remote import open_remote

DEFAULT_COUNT = 16


def finish(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The client's .onnx file.")],
    out: options.OutFolder,
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="Intermediates from the server; or use --server.")
    ] = None,
    server: options.ServerUrl = None,
    count: Annotated[
        int | None,
        typer.Option("-n", "--count", min=1, help=f"From a server: how many images; {DEFAULT_COUNT} by default."),
    ] = None,
    label: options.LabelOption = None,
    attributes: options.Attributes = None,
    text: options.TextFile = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, max=2**63 - 1, help="From a server: makes the same images again.")
    ] = None,
    token_file: options.TokenFile = None,
    ca: options.Authority = None,
    cert: options.OwnCertificate = None,
    key: options.OwnKey = None,
    patience: options.Patience = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Finishing steps; the bundle's own by default.")] = None,
    sampler: Annotated[str | None, typer.Option("--sampler", help="euler, heun or dpmpp_2m.")] = None,
    guidance: Annotated[float | None, typer.Option("--guidance", help="Weight of labels and text; 1 is plain.")] = None,
    provider: options.ProviderOption = "auto",
    threads: options.Threads = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size",
            min=1,
            help="Images per evaluation; by default what suits image and provider. TensorRT takes at most 64.",
        ),
    ] = None,
    trust: Annotated[
        Path | None,
        typer.Option("--trust", metavar="KEYS", help="Public keys; by default those that collafuse keys pin keeps."),
    ] = None,
    allow_untrusted: Annotated[
        bool, typer.Option("--allow-untrusted", help="Load a bundle that no trusted key has signed, or an older one.")
    ] = False,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """On a device: finish the server's intermediates into pictures. Needs no torch, and with a file no network.

    Writes one PNG file per image, with the settings inside, and a contact sheet. A job that was interrupted goes on
    when the same command is run again. However many images there are, they need no more memory than a few; from a
    server, than the 64 that come at a time.

    --label and --attributes say what all images show, --text what they show in turn: a server is asked for it. Where
    the site keeps its labels or its text from the server, they are chosen here, and so for a FILE that came without.
    """
    from collafuse.core import texts
    from edge_client.finisher import Finisher
    from edge_client.finishing import Order, finish_from

    asked = {"-n": count, "--seed": seed}
    reached = {"--token-file": token_file, "--ca": ca, "--cert": cert, "--key": key, "--patience": patience}
    _check_source(file, server, {**asked, **reached})
    shown = options.shown_labels(label, attributes)
    prompts = None if text is None else texts.read(text)
    finisher = Finisher.load(
        bundle,
        provider=provider,
        threads=threads,
        steps=steps,
        sampler=sampler,
        guidance=guidance,
        trust=_keys(trust, allow_untrusted),
        say=say,
    )
    with ExitStack() as stack:
        reporter = stack.enter_context(reporting())
        source: Path | Order
        if file is not None:
            say_if_large(file, "Checking")
            source = file
        else:
            assert server is not None
            remote = stack.enter_context(open_remote(server, token_file, ca, cert, key, patience, reporter.say))
            source = Order(remote, count or DEFAULT_COUNT, seed)
        try:
            report = finish_from(
                finisher,
                source,
                out,
                progress=lambda name, total: reporter.bar(name, total).advance,
                labels=shown,
                prompts=prompts,
                batch_size=batch_size,
                overwrite=overwrite,
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


def _keys(trust: Path | None, allow_untrusted: bool) -> Path | None:
    """The keys to hold the bundle against, None where any will do."""
    from edge_client.trust import keys_in_force

    keys = keys_in_force(trust)
    if allow_untrusted and keys is not None:
        say(f"Warning: --allow-untrusted loads the bundle whoever made it; {keys} is not asked.")
        return None
    return keys


def _check_source(file: Path | None, server: str | None, of_server: dict[str, object]) -> None:
    """Raise UsageError unless there is one source of intermediates, and no option of a server beside a file."""
    from collafuse.core.errors import UsageError

    if (file is None) == (server is None):
        raise UsageError("give either a FILE of intermediates or --server URL, from which to fetch them.")
    useless = [name for name, value in of_server.items() if value is not None]
    if file is not None and useless:
        raise UsageError(f"{', '.join(useless)}: for --server URL only, {file} is finished as it is; leave that out.")
