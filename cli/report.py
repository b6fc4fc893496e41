"""collafuse report"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options
from .console import emit, reporting, say


def report(
    run: options.RunPath,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="FILE", help="HTML file to write; RUN/report.html by default.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**63 - 1, help="Makes the same pictures again.")] = 0,
    overwrite: options.Overwrite = False,
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """Put a run on one page: pictures, curves, tables of evaluate, audit and plan. One file that needs no network.

    RUN/report.html is made anew each time; another file is replaced with --overwrite only. The page holds images of the
    sites.
    """
    from collafuse.core.atomic import check_output, write_bytes
    from collafuse.evaluation.report import write_page
    from collafuse.learning.device import choose_device
    from collafuse.nodes.runfolder import RunFolder

    path = out or run / "report.html"
    check_output(path, overwrite or out is None)
    with reporting() as reporter:
        html = write_page(RunFolder(run), seed=seed, device=choose_device(device), listener=reporter)
    data = html.encode()
    write_bytes(path, data, overwrite=overwrite or out is None)
    say(f"Look at {path}")
    if as_json:
        emit({"file": str(path), "bytes": len(data)})
