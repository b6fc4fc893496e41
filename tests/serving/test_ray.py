"""The service as a Ray Serve application, on a Ray of its own that is started here."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from collafuse.core import intermediate as intermediates
from collafuse.core.errors import UsageError
from collafuse.nodes.runfolder import REGISTRY, RunFolder
from collafuse.nodes.server import Server
from collafuse.serving.registry import Registry
from tests.serving.parts import SECONDS
from tests.serving.test_proxy import free_port
from tests.tiny import CPU

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="ray is not installed (pip install 'collafuse[ray]')"
)


@pytest.fixture
def run(tmp_path, trained_folder):
    shutil.copytree(trained_folder.path, tmp_path / "run" / "server")
    return tmp_path / "run"


@pytest.fixture
def url(run, tmp_path):
    """A Ray of its own with the run on it."""
    arguments = {"run": str(run), "slots": 4, "device": "cpu", "cpus": 0.5, "most": 2}
    ours = {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    command = [sys.executable, "-m", "tests.serving.ray_serving", str(free_port()), json.dumps(arguments)]
    with (tmp_path / "said.txt").open("w") as said:
        process = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **ours}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said,
            text=True,
        )  # fmt: skip
    try:
        lines = iter(process.stdout.readline, "")
        found = next((line.strip() for line in lines if line.startswith("http://127")), None)
        said = (tmp_path / "said.txt").read_text()
        if not found and "timed out during startup" in said:
            pytest.skip("Ray did not start: its own processes have 15 s for that, too few on a machine this busy")
        assert found, said[-4000:]
        yield found
    finally:
        process.communicate(timeout=SECONDS)


@pytest.mark.torture
def test_a_replica_delivers_the_bytes_of_a_file_and_refuses_as_the_service_does(url, run):
    token, _ = Registry(run / "server" / REGISTRY).add_token("north", ["sample"])
    asked = {"client": "north", "count": 8, "seed": 3}
    with httpx.Client(base_url=url, timeout=SECONDS) as http:
        reply = http.post("/v1/intermediates", json=asked, headers={"Authorization": f"Bearer {token}"})
        stranger = http.post("/v1/intermediates", json=asked, headers={"Authorization": "Bearer x"})
        ready = http.get("/readyz")
    server = Server.load(RunFolder(run).server, CPU)
    assert reply.status_code == ready.status_code == 200
    assert reply.content == intermediates.to_bytes(server.deliver("north", 8, seed=3, batch_size=4))
    assert stranger.status_code == 401
    assert "not known here" in stranger.json()["message"]


WRONG = [
    ({"slots": 0}, "slots"),
    ({"colour": 1}, "colour"),
    ({"least": 3, "most": 2}, "at least 3 and at most 2"),
    ({"rate": 100}, "lower --max-images"),
]


@pytest.mark.parametrize(("more", "says"), WRONG)
def test_arguments_that_do_not_fit_are_refused_before_anything_is_started(run, more, says):
    from collafuse.serving.ray_app import build

    with pytest.raises(UsageError, match=says):
        build({"run": str(run)} | more)
