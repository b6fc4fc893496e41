"""Machines for a test: network namespaces that a bridge joins, each with a folder and a shell of its own."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
END = "-- the block has ended --"
BLOCK_SECONDS = 600


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def reason_against() -> str | None:
    """Why there can be no namespaces here; None when there can be."""
    if sys.platform != "linux" or shutil.which("ip") is None:
        return "network namespaces need Linux and the command ip (iproute2)"
    name = f"cf{os.getpid()}-try"
    try:
        _ip("netns", "add", name)
        _ip("netns", "del", name)
    except subprocess.CalledProcessError as error:
        return f"network namespaces need root here: {error.stderr.decode().strip()}"
    return None


class Machine:
    """A shell in a namespace; its jobs end with it."""

    def __init__(self, name: str, namespace: str, folder: Path) -> None:
        self.name, self._log = name, folder / "said.txt"
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        with self._log.open("wb") as log:
            self._shell = subprocess.Popen(
                ["ip", "netns", "exec", namespace, "bash", "-e"],
                cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                start_new_session=True,
            )  # fmt: skip

    def run(self, block: str) -> str:
        """Run the lines of a block and return what they print. The first that fails is a failed test."""
        watch = threading.Timer(BLOCK_SECONDS, self._shell.kill)
        watch.start()
        try:
            self._shell.stdin.write(f"{block}\necho {END}\n")
            self._shell.stdin.flush()
            lines = list(itertools.takewhile(lambda line: line.strip() != END, self._shell.stdout))
        finally:
            watch.cancel()
        assert self._shell.poll() is None, f"on {self.name}: {block}\n{''.join(lines)}\n{self._log.read_text()}"
        return "".join(lines)

    def end(self) -> None:
        """End the shell and what it started."""
        with self._shell:
            if self._shell.poll() is None:
                os.killpg(self._shell.pid, 9)


@contextmanager
def machines(folder: Path, names: Sequence[str], network: str) -> Iterator[dict[str, Machine]]:
    """Machines with the addresses NETWORK.1, NETWORK.2 ... and folders named like them."""
    prefix = f"cf{os.getpid()}-"
    with ExitStack() as stack:

        def namespace(name: str) -> str:
            _ip("netns", "add", prefix + name)
            stack.callback(_ip, "netns", "del", prefix + name)
            _ip("-n", prefix + name, "link", "set", "lo", "up")
            return prefix + name

        switch = namespace("switch")  # not in ours, whose addresses and firewall are nobody's business here
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        found = {}
        for number, name in enumerate(names, start=1):
            here = namespace(name)
            _ip("-n", here, "link", "add", "eth0", "type", "veth", "peer", "name", f"port{number}", "netns", switch)
            _ip("-n", switch, "link", "set", f"port{number}", "master", "bridge", "up")
            _ip("-n", here, "address", "add", f"{network}.{number}/24", "dev", "eth0")
            _ip("-n", here, "link", "set", "eth0", "up")
            (folder / name).mkdir()
            found[name] = Machine(name, here, folder / name)
            stack.callback(found[name].end)
        yield found
