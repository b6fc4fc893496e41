"""Starts ``collafuse`` commands in processes of their own that have torch loaded already, one at a time.

``python -m tests.torture.nursery`` reads a JSON list of words per line and answers with two lines: the id of the
process, at once, and its exit code when it has ended. It has one thread, so forking it is safe, and each command is
a whole process that can be killed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
SITES = ("north", "south")
INTERVAL = 5
STEPS = 25
TRAINING = f"{{steps: {STEPS}, batch_size: 8, warmup_steps: 2, log_every: 1, checkpoint_every: {INTERVAL}}}"
NODE = f"network: {{channels: 8, multipliers: [1], blocks: 1}}, training: {TRAINING}, sampler: {{steps: 2}}"
CONFIG = f"""
data: {{dataset: digits}}
server: {{{NODE}}}
client: {{{NODE}}}
clients:
  north: {{labels: ["0", "1", "2"], cut: {{sigma: 0.5}}, ledger: north.sqlite}}
  south: {{labels: ["3", "4"], cut: {{sigma: 1.0}}, ledger: south.sqlite}}
"""


class Nursery:
    """The other end: ``start`` a command, then ``wait`` for its exit code. What it says goes to ``log``.

    inside: words that start a command in surroundings of its own, such as ``unshare -n``.
    """

    def __init__(self, folder: Path, inside: Sequence[str] = (), **environment: str) -> None:
        self.log = folder / "said.txt"
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
        self._process = subprocess.Popen(
            [*inside, sys.executable, "-m", "tests.torture.nursery", str(self.log)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=folder,
        )

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def start(self, *words: object) -> int:
        """The id of the process that runs these words."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(list(map(str, words))) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def run(self, *words: object, code: int = 0) -> str:
        """What a command says that ends with this exit code, and without a traceback."""
        self.start(*words)
        found, said = self.wait(), self.log.read_text(errors="replace")
        assert found == code, f"{words} -> {found}\n{said}"
        assert "Traceback" not in said, said
        return said

    @property
    def root(self) -> Path:
        """The file system as the commands see it."""
        return Path(f"/proc/{self._process.pid}/root")

    def wait(self) -> int:
        """The exit code of the command; negative for the signal that ended it."""
        return self._answer()

    def _answer(self) -> int:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the nursery ended with {self._process.wait()}: {self.log.read_text()}"
        return int(line)


def bear(words: list[str], log: str) -> None:
    """Become a command; its output goes to the log."""
    from cli.app import main

    said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    sys.argv = ["collafuse", *words]
    main()


def serve(log: str) -> None:
    """Answer each line of stdin."""
    import torch

    import collafuse.nodes.experiment  # noqa: F401  what the commands would load

    torch.set_num_threads(1)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            try:
                bear(json.loads(line), log)
            except SystemExit as stop:
                sys.stdout.flush()
                os._exit(int(stop.code or 0))
            finally:
                os._exit(99)
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    serve(sys.argv[1])
