"""What the device side costs: import time, peak memory, time per image, each in fresh processes."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path

REPETITIONS = 5
IMPORT = "import time; t = time.perf_counter(); import edge_client; print(time.perf_counter() - t)"
FINISH = """
import json, sys, time
started = time.perf_counter()
from edge_client import Finisher
from collafuse.core import intermediate
finisher = Finisher.load(sys.argv[1])
batch = intermediate.read(sys.argv[2])
finisher.finish(batch)
first = time.perf_counter() - started
started = time.perf_counter()
finisher.finish(batch)
each = (time.perf_counter() - started) / len(batch)
# Not getrusage: its peak is inherited from the process that started this one.
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
peak = int(status["VmHWM"].split()[0]) / 1024
print(json.dumps({"cold": first, "each": each, "peak": peak, "torch": "torch" in sys.modules}))
"""


def main(run: Path) -> None:
    """Print a table for the bundles of one demo run."""
    imports = [float(_python(IMPORT)) for _ in range(REPETITIONS)]
    print(f"import edge_client: {statistics.median(imports):.2f} s (median of {REPETITIONS})\n")
    print("| bundle | start to all finished | one image | peak memory | torch loaded |")
    print("|---|---|---|---|---|")
    for bundle in sorted(run.glob("*.onnx")):
        rows = [
            json.loads(_python(FINISH, str(bundle), str(bundle.with_suffix(".safetensors"))))
            for _ in range(REPETITIONS)
        ]
        cold, each, peak = (statistics.median(row[key] for row in rows) for key in ("cold", "each", "peak"))
        print(f"| {bundle.name} | {cold:.2f} s | {1000 * each:.2f} ms | {peak:.0f} MB | {rows[0]['torch']} |")


def _python(program: str, *arguments: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True
    ).stdout
