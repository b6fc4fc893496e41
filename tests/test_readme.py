"""The commands that the README shows run as they stand there, in one folder, one after another."""

import re
import shlex
from pathlib import Path

import pytest

from tests.cli.conftest import Cli

ROOT = Path(__file__).parents[1]


def commands():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.splitlines() if line and not line.startswith("#")]


@pytest.mark.slow
def test_the_commands_run_as_they_stand_there(tmp_path, nursery):
    cli = Cli(tmp_path, nursery)
    ours = [line for line in commands() if line.startswith("collafuse ")]
    assert len(ours) >= 12
    for line in ours:
        cli(*shlex.split(line)[1:])
    assert (tmp_path / "pictures/sheet.png").exists() and (tmp_path / "fours/000015.png").exists()


def test_the_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = [line.split()[1] for line in commands() if line.startswith("make ")]
    assert {"demo", "test"} <= set(targets)
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
