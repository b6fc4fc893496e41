"""collafuse demo"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from . import options
from .console import emit, print_table, reporting


def demo(
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="RUN", help="Folder for everything the demo makes.")
    ] = Path("runs/demo"),
    overwrite: options.Overwrite = False,
    overrides: options.Overrides = None,
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """Train, export, deliver and finish on real digits, on a CPU, in minutes; then look at the pictures."""
    from collafuse.evaluation.demo import run_demo
    from collafuse.learning.device import choose_device

    with reporting() as reporter:
        result = run_demo(
            out,
            overrides or (),
            choose_device(device),
            reporter.observer,
            reporter.say,
            overwrite=overwrite,
            listener=reporter,
        )
    if as_json:
        emit(_plain(asdict(result)))
        return
    print_table(
        (
            "client",
            "digits",
            "cut",
            "release",
            "server NFE",
            "client NFE",
            "bundle",
            "torch - ONNX",
            "time on a device",
            "read as asked",
        ),
        [
            (
                c.name,
                " ".join(c.labels),
                f"sigma {c.cut_sigma:.2f}",
                f"{c.release_bytes / 1024:.0f} KiB",
                str(c.server_nfe),
                str(c.client_nfe),
                f"{c.bundle.size / 1e6:.1f} MB",
                f"{c.bundle.parity.trajectory:.0e}",
                f"{c.device_milliseconds:.1f} ms",
                "-" if c.read_as_asked is None else f"{c.read_as_asked:.0%}",
            )
            for c in result.clients
        ],
    )
    print(f"\nTraining took {result.training_seconds:.0f} s, everything {result.total_seconds:.0f} s. Look at:")
    for path in (result.figure, *result.sheets):
        print(f"  {path}")
    name = result.clients[0].name
    print("\nTry next:")
    print(f"  collafuse inspect {out}/{name}.onnx")
    print(f"  collafuse deliver {out} --client {name} -n 25 --label {result.clients[0].labels[-1]} -o more.safetensors")
    print(f"  collafuse finish {out}/{name}.onnx more.safetensors -o more")
    print("  collafuse train configs/cifar10-small.yaml --set data.path=YOUR/IMAGES -o runs/mine")


def _plain(value: Any) -> Any:
    """The result with paths as text, for JSON."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value
