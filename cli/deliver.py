"""collafuse deliver"""

from __future__ import annotations

from typing import Annotated

import typer

from . import options
from .console import emit, reporting, say


def deliver(
    run: options.RunPath,
    client: options.ClientOption,
    out: options.OutFile,
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="How many images.")] = 16,
    label: options.LabelOption = None,
    attributes: options.Attributes = None,
    text: options.TextFile = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, max=2**63 - 1, help="Makes the same intermediates again.")
    ] = None,
    half: Annotated[bool, typer.Option("--half", help="Write float16, half the bytes.")] = False,
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size",
            metavar="N",
            parser=options.batch_size,
            help="Images per evaluation, or auto: the fastest.",
        ),
    ] = 256,
    compile_first: options.Compile = False,
    overwrite: options.Overwrite = False,
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """Run the server's half: half-denoised intermediates for a client, where it takes over, to a file.

    That is its cut times the handover that the server's configuration gives it, or times 1 for one that it does not
    name. Without --label and --text the client's labels are dealt out evenly; several prompts of --text are too.
    """
    from collafuse.core import intermediate, texts
    from collafuse.core.atomic import check_output, write_bytes
    from collafuse.learning.device import choose_device
    from collafuse.nodes.runfolder import RunFolder
    from collafuse.nodes.server import Server

    shown = options.shown_labels(label, attributes)
    prompts = None if text is None else texts.read(text).text
    check_output(out, overwrite)
    RunFolder(run).refuse_baseline("deliver")
    server = Server.load(RunFolder(run).server, choose_device(device))
    with reporting() as reporter:
        if batch_size is None:
            batch_size = server.fastest_batch()
            reporter.say(f"{batch_size} images per evaluation are fastest here.")
        if compile_first:
            server.compile(min(batch_size, count), reporter.say)
        bar = reporter.bar("deliver", count)
        made = server.deliver(
            client,
            count,
            labels=shown,
            text=prompts,
            seed=seed,
            batch_size=batch_size,
            half=half,
            advance=bar.advance,
        )
    data = intermediate.to_bytes(made)
    write_bytes(out, data, overwrite=overwrite)
    say(
        f"Delivered {count} intermediates for {client}: sigma {made.sigma:.3g}, {len(data) / count / 1024:.1f} KiB each"
    )
    say(f"  collafuse finish {client}.onnx {out} -o pictures")
    if as_json:
        emit({"file": str(out), "images": count, "sigma": made.sigma, "nfe": made.nfe, "bytes": len(data)})
