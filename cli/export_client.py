"""collafuse export-client"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options
from .console import emit, say


def export_client(
    run: options.RunPath,
    client: options.ClientOption,
    out: options.OutFile,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, max=1000, help="Default number of finishing steps in the bundle.")
    ] = None,
    precision: Annotated[
        str,
        typer.Option(
            "--precision",
            metavar="P",
            help="fp32; fp16: weights in half, half the file; int8: convolutions in 8 bits, faster on some chips.",
        ),
    ] = "fp32",
    calibration: Annotated[
        Path | None,
        typer.Option(
            "--calibration",
            metavar="FILE",
            help="Intermediates to calibrate int8 and to measure fp16 and int8 on; by default what train left.",
        ),
    ] = None,
    distilled: Annotated[
        bool, typer.Option("--distilled", help="The client of train-client --distill, which needs one evaluation.")
    ] = False,
    graph: Annotated[
        str,
        typer.Option(
            "--graph",
            metavar="G",
            help="step: one evaluation, for collafuse finish; whole: from intermediate to pixels, for other runtimes.",
        ),
    ] = "step",
    force: Annotated[bool, typer.Option("--force", help="Write the bundle even if its precision loses much.")] = False,
    sign: Annotated[
        Path | None,
        typer.Option("--sign", metavar="KEY", help="Sign it with a private key of collafuse keys new (extra: sign)."),
    ] = None,
    opset: Annotated[int, typer.Option("--opset", min=18, max=20, help="ONNX operator set.")] = 18,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Export a trained client to one ONNX file that a device can finish with, without torch.

    The graph is compared with torch at several noise levels and batch sizes and over the whole finishing, and a
    precision below fp32 with fp32 on finished images; if they differ too much, nothing is written.
    """
    from collafuse.core.errors import UsageError
    from collafuse.core.signing import SigningKey
    from collafuse.nodes.client import load_client
    from collafuse.nodes.experiment import CALIBRATION
    from collafuse.nodes.runfolder import RunFolder

    useless = [name for name, given in {"--calibration": calibration, "--force": force}.items() if given]
    if precision == "fp32" and useless:
        raise UsageError(
            f"{', '.join(useless)}: for --precision fp16 or int8 only, nothing is lost in fp32; leave that out."
        )
    signer = SigningKey.read(sign) if sign is not None else None
    RunFolder(run).refuse_baseline("export-client")
    folder = RunFolder(run).trained_client(client)
    source = folder.distilled if distilled else folder
    if distilled and not source.path.is_dir():
        raise UsageError(
            f"{run} holds no distilled client of {client}; make one at its site with collafuse train-client --distill, "
            "or leave --distilled out."
        )
    settings = source.read_config().client(client)
    model = load_client(source, settings)
    left_by_train = folder.path / CALIBRATION
    if calibration is None and left_by_train.is_file():
        calibration = left_by_train

    from export.writer import export_client as write_bundle

    made = write_bundle(
        model,
        settings,
        client,
        out,
        steps=steps,
        opset=opset,
        precision=precision,
        intermediates=calibration,
        graph=graph,
        force=force,
        signer=signer,
        overwrite=overwrite,
    )
    say(
        f"Wrote {out}: {made.size / 1e6:.2f} MB, differs from torch by at most {made.parity.step:.1e} in one step and "
        f"{made.parity.trajectory:.1e} over {made.info.steps} steps ({made.parity.grey_levels} grey levels)."
    )
    if (loss := made.info.loss) is not None:
        say(
            f"In {precision} {loss.images} finished images differ from fp32 by {loss.mean_grey_levels:.2f} grey levels "
            f"in the mean, {loss.max_grey_levels} at most (PSNR {loss.psnr_db:.1f} dB; {loss.worst_psnr_db:.1f} dB for "
            f"those of {loss.worst_label}, the worst)."
        )
    if graph == "step":
        say(f"  collafuse finish {out} INTERMEDIATES -o pictures")
    else:
        say("One call finishes: x and labels in, pixels out. See docs/other-languages.md.")
    if as_json:
        emit(
            {
                "bundle": str(out),
                "bytes": made.size,
                "sha256": made.digest,
                "signed_by": signer and signer.public,
                "precision": precision,
                "graph": graph,
                "parity": vars(made.parity),
                "loss": loss and vars(loss),
            }
        )
