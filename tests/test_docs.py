"""The documentation says what the code does."""

import ast
import inspect
import re
from pathlib import Path

import pytest
import typer

from cli.app import COMMANDS, build
from collafuse.core import errors

ROOT = Path(__file__).parents[1]
APP = build()
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]


def test_formats_are_the_docstrings_of_the_modules():
    text = (ROOT / "docs/formats.md").read_text(encoding="utf-8")
    blocks = re.findall(r"`(\S+\.py)`\n\n```text\n(.*?)\n```", text, flags=re.DOTALL)
    assert len(blocks) == 10
    for path, block in blocks:
        assert block == ast.get_docstring(ast.parse((ROOT / path).read_text(encoding="utf-8"))), path


def test_exit_codes_are_those_of_the_errors():
    rows = re.findall(r"^\| (\d+) \| (\w+) \|", (ROOT / "docs/exit-codes.md").read_text(encoding="utf-8"), re.MULTILINE)
    codes = {c.__name__: c.exit_code for _, c in inspect.getmembers(errors, inspect.isclass)}
    assert {name: int(code) for code, name in rows} == codes
    for name, code in codes.items():
        assert re.search(rf"{name}\s+{code}\b", errors.__doc__), name


@pytest.mark.parametrize("command", COMMANDS)
def test_the_readme_lists_every_command(command):
    assert f"| `{command}` |" in README


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_inside_the_project_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+?)\)", page.read_text(encoding="utf-8")):
        assert target.startswith(("http:", "https:")) or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_and_options_in_code_exist(page):
    """Whatever stands as ``collafuse WORD --option`` in a line of code."""
    text = page.read_text(encoding="utf-8")
    for line in re.findall(r"`(collafuse [^`]+)`|^ *(collafuse .*)$", text, re.MULTILINE):
        words = "".join(line).split("#")[0].split()
        name = next((w for w in words[1:] if not w.startswith("-")), None)
        assert name in COMMANDS or name is None or name.isupper(), line
        known = {o for p in _parameters(name) for o in p.opts} | {"--help", "--version"}
        assert {w for w in words if re.fullmatch(r"--[a-z][a-z-]+", w)} <= known, line


def test_the_options_in_the_table_of_devices_are_those_of_finish():
    text = (ROOT / "docs/devices.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `(--[a-z-]+)` \|", text, re.MULTILINE))
    assert len(listed) >= 6 and listed <= {o for p in _parameters("finish") for o in p.opts}


def _parameters(name):
    """A command's parameters, and those of its commands where it is a group of some."""
    if name not in COMMANDS:
        return []
    command = typer.main.get_command(APP).commands[name]
    return [p for one in (command, *getattr(command, "commands", {}).values()) for p in one.params]


def test_the_version_is_the_same_everywhere():
    import collafuse

    assert f'version = "{collafuse.__version__}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f"## {collafuse.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
