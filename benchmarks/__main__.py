"""``python -m benchmarks [NAME ...]``: all measurements of a demo's run, or those named."""

from __future__ import annotations

import argparse
from pathlib import Path

from . import decoding, device, digits_quality, feeding, few_steps

BENCHMARKS = {
    "digits-quality": digits_quality.main,
    "few-steps": few_steps.main,
    "device": device.main,
    "decoding": decoding.main,
    "feeding": feeding.main,
}


def main() -> None:
    """Run the measurements named on the command line; all of them by default."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), help="a run of `collafuse demo`")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(BENCHMARKS):
        parser.error(f"unknown: {', '.join(unknown)}; known: {', '.join(BENCHMARKS)}")
    if not (arguments.run / "server").is_dir():
        parser.error(f"{arguments.run} is no run; make it with `collafuse demo -o {arguments.run}`")
    for name in arguments.names or BENCHMARKS:
        print(f"## {name}\n")
        BENCHMARKS[name](arguments.run)
        print()


if __name__ == "__main__":  # processes that a measurement starts must not start it again
    main()
