"""What a user sees before anything runs."""

import subprocess
import sys

import pytest

from cli.app import COMMANDS

HEAVY = ("torch", "onnx", "onnxruntime", "numpy", "yaml", "sklearn")
PROGRAM = """
import sys
from cli.app import app
try:
    app({arguments!r})
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
