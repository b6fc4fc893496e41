"""What the device side costs: import time, then ``collafuse bench`` for every bundle of a run."""

from __future__ import annotations

import statistics
import subprocess
import sys
from pathlib import Path

from cli.bench import FINISH
from edge_client.bench import HEADER, bench

REPETITIONS = 5
IMPORT = "import time; t = time.perf_counter(); from edge_client import Finisher; print(time.perf_counter() - t)"


def main(run: Path) -> None:
    """Print a table for the bundles of one run, on the CPU."""
    command = [sys.executable, "-c", IMPORT]
    times = [float(subprocess.run(command, capture_output=True, check=True).stdout) for _ in range(REPETITIONS)]
    print(f"import edge_client: {statistics.median(times):.2f} s (median of {REPETITIONS})\n")
    print(HEADER)
    for bundle in sorted(run.glob("*.onnx")):
        print(bench(bundle, FINISH, provider="cpu").row(), flush=True)
