"""collafuse doctor"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options
from .console import emit, say


def doctor(
    bundle: Annotated[
        Path | None, typer.Argument(metavar="[BUNDLE]", help="A client's .onnx file, to be checked and timed too.")
    ] = None,
    threads: options.Threads = None,
    as_json: options.Json = False,
) -> None:
    """Say what works on this machine and what does not, each with its fix. Needs no network.

    Every provider that onnxruntime offers really runs a small graph. Ends with exit code 0 when finishing would work,
    with warnings or without.
    """
    from dataclasses import asdict

    from edge_client.doctor import OK, PROBLEM, WARNING, examine, exit_code

    checks = []
    for check in examine(bundle, threads, say):
        checks.append(check)
        if not as_json:
            print(f"{check.status:<8} {check.name}: {check.found}", flush=True)
            if check.fix:
                print(f"{'':<8} -> {check.fix}", flush=True)
    code = exit_code(checks)
    if as_json:
        emit({"works": code == 0, "checks": [asdict(check) for check in checks]})
    counts = ", ".join(f"{sum(c.status == status for c in checks)} {status}" for status in (OK, WARNING, PROBLEM))
    say(f"{'Finishing works here' if code == 0 else 'Finishing would fail here'} ({counts}).")
    raise typer.Exit(code)
