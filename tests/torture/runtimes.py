"""The onnxruntimes that a device may have: this interpreter's, and that of ``OTHER_PYTHON`` where one is given.

The other one needs what a device has (numpy, onnxruntime, safetensors) and no more.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
OTHER = os.environ.get("OTHER_PYTHON", "")
MEMORY_BYTES = 6 << 30
"""More than the parent of a device's first load may ever need; so that a mistake here does not fill the machine."""

each_runtime = pytest.mark.parametrize(
    "python",
    [
        pytest.param(sys.executable, id="this onnxruntime"),
        pytest.param(
            OTHER,
            id="another onnxruntime",
            marks=[
                pytest.mark.torture,
                pytest.mark.skipif(not OTHER, reason="OTHER_PYTHON names no interpreter with another onnxruntime"),
            ],
        ),
    ],
)


def run_in(python: str, program: str, *arguments: object, timeout: float) -> subprocess.CompletedProcess[Any]:
    """A program in one of them, with the repository's packages."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_DATA, ({MEMORY_BYTES},) * 2)\n{program}"
    command = [python, "-c", limited, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout, env=environment)


def version_in(python: str) -> str:
    """That interpreter's onnxruntime."""
    return run_in(python, "import onnxruntime; print(onnxruntime.__version__)", timeout=60).stdout.strip()
