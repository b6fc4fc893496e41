"""A part of the work in a process of its own: what it costs is measured from a fresh start, and what it breaks
(a provider that crashes or never returns, memory that onnxruntime keeps) stays there.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from collafuse.core.errors import CollaFuseError

PROGRAM = "import sys; from edge_client.{module} import main; main(sys.argv[1:])"


HOME = Path(__file__).parents[1]
"""Where our packages lie."""


def environment(**changes: str) -> dict[str, str]:
    """This process's environment, in which a child finds the packages that this process uses."""
    paths = (str(HOME), os.environ.get("PYTHONPATH"))
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **changes}


class ChildError(CollaFuseError):
    """A child process ended without an answer; the message says how."""


def _ended_by(number: int) -> str:
    """What a signal did to a child."""
    known = number in {one.value for one in signal.Signals}
    name = signal.Signals(number).name if known else f"signal {number}"
    if name == "SIGKILL":
        return f"it was killed ({name}), as where memory runs out"
    return f"it {'used up its processor time' if name == 'SIGXCPU' else 'crashed'} ({name})"


def run_child(module: str, arguments: Sequence[str], timeout: float, stdin: bytes = b"") -> dict[str, Any]:
    """The JSON object that ``edge_client.MODULE.main(arguments)`` prints in a fresh interpreter.

    timeout in seconds. Raises ChildError when it cannot be started, crashes, takes longer or answers anything else.
    """
    command = [sys.executable, "-c", PROGRAM.format(module=module), *arguments]
    try:
        done = subprocess.run(
            command,
            input=stdin,
            capture_output=True,
            check=False,
            timeout=timeout,
            cwd=HOME,  # not the user's folder, whose modules would come before ours
            env=environment(),
        )
    except subprocess.TimeoutExpired as error:
        raise ChildError(f"it did not finish within {timeout:.0f} s") from error
    except OSError as error:
        raise ChildError(f"it could not be started ({error.strerror})") from error
    if done.returncode < 0:
        raise ChildError(_ended_by(-done.returncode))
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        answer = None
    if done.returncode or not isinstance(answer, dict):
        last = (done.stderr.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
        raise ChildError(f"it failed with exit code {done.returncode} ({last[:200]})")
    return answer
