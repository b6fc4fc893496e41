"""docs/tutorial-distributed.md, run as it stands there, each machine a network namespace."""

from __future__ import annotations

import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.serving.machines import machines, reason_against

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/tutorial-distributed.md").read_text(encoding="utf-8")
SHORTER = {
    "steps: 1200": "steps: 6",
    "steps: 700": "steps: 6",
    "warmup_steps: 100": "warmup_steps: 2",
    "warmup_steps: 50": "warmup_steps: 2",
    "channels: 32": "channels: 8",
    "channels: 16": "channels: 8",
    "name: dpmpp_2m, steps: 16": "name: dpmpp_2m, steps: 6",
}
"""The one thing that is not as on the page: how long it is trained."""


def rounds():
    """The page's commands, in rounds of those that different machines may run at once: {machine: commands}. A section
    is one round, unless something is carried over by hand within it."""
    found = []
    for section in re.split(r"^## ", PAGE, flags=re.MULTILINE):
        fresh = True
        for place, commands in re.findall(r"^```sh\n# (?:on )?(.+?)\n(.*?)^```", section, re.DOTALL | re.MULTILINE):
            if fresh or place == "by hand":
                found.append({})
            assert place not in found[-1]
            found[-1][place], fresh = commands, place == "by hand"
    assert sum(map(len, found)) == PAGE.count("```sh")
    return found


@pytest.fixture
def places(tmp_path):
    if (reason := reason_against()) is not None:
        pytest.skip(reason)
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed, so there are no certificates")
    listed = re.findall(r"^\| (\w+) \| 10\.77\.0\.(\d) \|", PAGE, re.MULTILINE)
    assert [int(number) for _, number in listed] == list(range(1, len(listed) + 1))
    with machines(tmp_path, [name for name, _ in listed], "10.77.0") as found:
        yield found


def shorter(text):
    for usual, short in SHORTER.items():
        assert usual in text
        text = text.replace(usual, short)
    return text


@pytest.mark.slow
def test_the_tutorial_runs_as_it_stands_there(places, tmp_path):
    config = shorter((ROOT / "configs/digits.yaml").read_text(encoding="utf-8"))
    for name in ("server", "north", "east", "south"):
        (tmp_path / name / "digits.yaml").write_text(config)
    for commands in rounds():
        if "by hand" in commands:
            subprocess.run(["bash", "-ec", commands["by hand"]], cwd=tmp_path, check=True)
            continue
        with ThreadPoolExecutor(len(commands)) as pool:
            for done in [pool.submit(places[place].run, block) for place, block in commands.items()]:
                done.result()
    released = sorted(path.name.split(".")[0] for path in (tmp_path / "server/at-server/server/releases").iterdir())
    assert released == ["east", "north", "south"]
    assert len(list((tmp_path / "phone/twos").glob("0*.png"))) == 16
    assert len(list((tmp_path / "tablet/pictures").glob("0*.png"))) == 6
    assert sorted(path.name for path in (tmp_path / "east").iterdir()) == [
        "ca.pem", "digits.yaml", "east.safetensors", "east.token", "ledgers", "said.txt"
    ]  # fmt: skip


def test_the_machines_are_joined_by_their_network_alone(places):
    places["server"].run("python -m http.server --bind 127.0.0.1 8000 2>/dev/null & sleep 0.1")
    reached = "python -c \"import socket; socket.create_connection(('{}', {}), 5)\" 2>/dev/null && echo yes || echo no"
    assert places["phone"].run(reached.format("127.0.0.1", 8000)) == "no\n"
    places["server"].run("python -m http.server --bind 10.77.0.1 8001 2>/dev/null & sleep 2")
    assert places["phone"].run(reached.format("10.77.0.1", 8001)) == "yes\n"
    assert places["phone"].run(reached.format("192.0.2.1", 80)) == "no\n"
