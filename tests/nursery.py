"""Starts ``collafuse`` commands in processes of their own that have the libraries loaded already, one at a time.

``python -m tests.nursery`` reads a JSON object per line (the command's words, its folder, and the files for its output
and errors) and answers with two lines: the id of the process, at once, and its exit code when it has ended. It has one
thread, so forking it is safe, and each command is a whole process that can be killed. What it saves is loading torch
and scikit-learn each time: most of what a tiny command costs.
"""

from __future__ import annotations

import copy
import gc
import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
PATIENCE_SECONDS = 300
"""A command that takes longer is killed."""


class Nursery:
    """The other end: ``start`` a command, then ``wait`` for its exit code. What it says goes to ``log``.

    folder: where commands run and the log lies, unless told otherwise.
    inside: words that start the commands in surroundings of their own, such as ``unshare -n``. The environment of
    commands is that of when the nursery began.
    """

    def __init__(self, folder: Path, inside: Sequence[str] = (), **environment: str) -> None:
        self.folder, self.log = folder, folder / "said.txt"
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
        self._process = subprocess.Popen(
            [*inside, sys.executable, "-m", "tests.nursery"],
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

    def at(self, folder: Path) -> Nursery:
        """The same, with another folder to run commands in and to log to."""
        there = copy.copy(self)
        there.folder, there.log = folder, folder / "said.txt"
        return there

    def start(self, *words: object, folder: Path | None = None, errors: Path | None = None) -> int:
        """The id of the process that runs these words; errors: where stderr goes, if not to the log too."""
        assert self._process.stdin is not None
        order = {
            "words": list(map(str, words)),
            "folder": str(folder or self.folder),
            "output": str(self.log),
            "errors": str(errors) if errors else None,
        }
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def run(self, *words: object, code: int = 0) -> str:
        """What a command says that ends with this exit code, and without a traceback."""
        self.start(*words)
        found, said = self.wait(), self.log.read_text(errors="replace")
        assert found == code, f"{words} -> {found}\n{said}"
        assert "Traceback" not in said, said
        return said

    def complete(self, words: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
        """A command run in a folder, with its output and its errors apart."""
        errors = self.folder / "errors.txt"
        process = self.start(*words, folder=folder, errors=errors)
        killer = threading.Timer(PATIENCE_SECONDS, os.kill, (process, signal.SIGKILL))
        killer.start()
        code = self.wait()
        killer.cancel()
        return subprocess.CompletedProcess(words, code, self.log.read_text(), errors.read_text())

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


def bear(words: list[str], folder: str, output: str, errors: str | None) -> None:
    """Become a command; the files for what it says are made anew."""
    from cli.app import main

    os.dup2(_opened(output), 1)
    os.dup2(1 if errors is None else _opened(errors), 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(folder)
    sys.argv = ["collafuse", *words]
    main()


def _opened(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)


def serve() -> None:
    """Answer each line of stdin."""
    import onnxscript  # noqa: F401  what the commands would load
    import sklearn.datasets  # noqa: F401
    import torch
    import torch._dynamo  # an export's

    import collafuse.nodes.experiment  # noqa: F401
    import export.writer  # noqa: F401

    torch.set_num_threads(1)
    gc.freeze()
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            code = 99
            try:
                bear(**json.loads(line))
            except SystemExit as stop:
                code = int(stop.code or 0)
            except BaseException:  # noqa: BLE001  the forked process ends here, whatever it was
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(code)
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    serve()
