"""collafuse export-client"""

from __future__ import annotations

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
    opset: Annotated[int, typer.Option("--opset", min=18, max=20, help="ONNX operator set.")] = 18,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Export a trained client to one ONNX file that a device can finish with, without torch.

    The graph is compared with torch at several noise levels and batch sizes and over the whole finishing; if they
    differ, nothing is written.
    """
    from collafuse.learning import weights
    from collafuse.nodes.runfolder import RunFolder

    folder = RunFolder(run).trained_client(client)
    settings = folder.read_config().client(client)
    model = weights.load(folder.weights, "client")

    from export.writer import export_client as write_bundle

    made = write_bundle(model, settings, client, out, steps=steps, opset=opset, overwrite=overwrite)
    say(
        f"Wrote {out}: {made.size / 1e6:.2f} MB, differs from torch by at most {made.parity.step:.1e} in one step and "
        f"{made.parity.trajectory:.1e} over {made.info.steps} steps ({made.parity.grey_levels} grey levels)."
    )
    say(f"  collafuse finish {out} INTERMEDIATES -o pictures")
    if as_json:
        emit({"bundle": str(out), "bytes": made.size, "sha256": made.digest, "parity": vars(made.parity)})
