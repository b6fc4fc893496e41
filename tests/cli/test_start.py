"""cli.app: what a command starts with."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cli.__main__ import main as start
from cli.app import WANTED, main

ROOT = Path(__file__).parents[2]
MODULES = {"PyYAML": "yaml", "scikit-learn": "sklearn", "prometheus-client": "prometheus_client"}
"""Of packages that are imported under another name."""
TASKS = Path("/proc/self/task")
INSPECT = """
import os, sys
from cli.app import main
sys.argv = ["collafuse", "inspect", sys.argv[1]]
try:
    main()
finally:
    print("threads", len(os.listdir("/proc/self/task")))
"""
NUMPY = "import numpy, os; print('threads', len(os.listdir('/proc/self/task')))"


def threads(program, *words, **environment):
    """How many threads a program has at its end."""
    plain = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, words)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env=plain | environment,
    )
    return int(done.stdout.rpartition("threads ")[2])


@pytest.mark.skipif(not TASKS.is_dir(), reason="counts threads where Linux lists them")
def test_a_command_of_a_device_starts_no_threads_for_matrix_products(tiny_bundle):
    usual = threads(NUMPY)
    if usual == 1:
        pytest.skip("this NumPy starts no threads of its own here")
    assert threads(INSPECT, tiny_bundle) == 1
    assert threads(INSPECT, tiny_bundle, OPENBLAS_NUM_THREADS="2") == 2, "what the user sets holds"


class Interrupted:
    """A finder of modules at whose work somebody presses Ctrl-C."""

    def find_spec(self, name, path=None, target=None):
        raise KeyboardInterrupt


def test_ctrl_c_while_the_command_line_loads_leaves_no_traceback(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "cli.app")
    monkeypatch.setattr(sys, "meta_path", [Interrupted()])
    with pytest.raises(SystemExit) as stop:
        start()
    assert stop.value.code == 130 and capsys.readouterr().err == "interrupted.\n"


@pytest.mark.parametrize(("given", "holds"), [(None, "1000"), ("7", "7")])
def test_waiting_threads_do_not_keep_processors_from_other_work(given, holds, monkeypatch):
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    if given is not None:
        monkeypatch.setenv("GOMP_SPINCOUNT", given)
    monkeypatch.setattr(sys, "argv", ["collafuse", "--version"])
    with pytest.raises(SystemExit):
        main()
    assert os.environ["GOMP_SPINCOUNT"] == holds


@pytest.mark.parametrize("extra", ["train", "serve", "sign"])
def test_whatever_package_of_an_extra_is_missing_the_extra_is_named(extra):
    listed = re.search(rf"^{extra} = \[\n(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.DOTALL | re.MULTILINE)
    packages = re.findall(r'"([\w-]+)', listed[1])
    assert packages
    assert {WANTED.get(MODULES.get(name, name)) for name in packages} == {f"collafuse[{extra}]"}
