"""What a user sees before anything runs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from cli.app import COMMANDS

HEAVY = ("torch", "onnx", "onnxruntime", "numpy", "yaml", "sklearn")
PROGRAM = """
import sys
from pathlib import Path
from cli.app import main
sys.argv[1:] = {arguments!r}
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
print("LOADED", [m for m in {heavy!r} if m in sys.modules])
"""


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_loads_nothing_heavy(command):
    arguments = [*([command] if command else []), "--help"]
    program = PROGRAM.format(arguments=arguments, heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "LOADED []" in done.stdout
    assert "Usage" in done.stdout


def test_version_is_the_packages(run_cli):
    import collafuse

    assert run_cli("--version").stdout.strip() == collafuse.__version__


def test_an_unknown_command_exits_with_2(run_cli):
    assert run_cli("finnish", code=2).stderr


FINISH_AND_LIST = """
import atexit, sys
heavy = ("rich", "pydantic", "httpx", "yaml", "torch", "onnx")
atexit.register(lambda: print("LOADED", [m for m in heavy if m in sys.modules]))
from cli.app import main
main()
"""


@pytest.mark.skipif(typer.__version__ >= "0.29", reason="from 0.29 on typer itself loads pydantic; see pyproject.toml")
def test_finishing_in_the_background_loads_only_what_it_needs(trained, tmp_path):
    words = ("finish", "north.onnx", "north.safetensors", "-o", str(tmp_path / "out"))
    paths = (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH"))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, "-c", FINISH_AND_LIST, *words]
    done = subprocess.run(command, cwd=trained, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "LOADED []"
