"""`collafuse serve` as a process of its own, which can be killed and started again where it was."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.serving.parts import SECONDS

ROOT = Path(__file__).parents[2]


class Process:
    """A service of a run folder on loopback; port 0 takes a free one."""

    def __init__(self, run: Path, *options: str | int, port: int = 0) -> None:
        command = [sys.executable, "-m", "cli", "serve", run, "--port", port, "--slots", 4, "--device", "cpu", *options]
        self._process = subprocess.Popen([*map(str, command)], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        line = self._process.stderr.readline()
        found = re.search(r"Serving at (\S+):(\d+):", line)
        if found is None:
            self.end()
        assert found, line
        self.url, self.port = f"{found.group(1)}:{found.group(2)}", int(found.group(2))

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self.kill()

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def kill(self) -> None:
        """As the power would: kill -9."""
        self._process.kill()
        self._process.communicate(timeout=SECONDS)

    def end(self) -> int:
        """As an operator would; the exit code."""
        self._process.terminate()
        self._process.communicate(timeout=SECONDS)
        return self._process.returncode
