"""Several `collafuse serve` processes of one run folder, as behind a proxy."""

from __future__ import annotations

import shutil
from contextlib import ExitStack

import httpx
import pytest

from collafuse.nodes.runfolder import REGISTRY
from collafuse.serving.registry import Registry
from tests.serving.parts import SECONDS
from tests.serving.processes import Process


@pytest.fixture
def two(tmp_path, trained_folder):
    """Two services of one run, and a client of each with the same token."""
    run = tmp_path / "run"
    shutil.copytree(trained_folder.path, run / "server")
    text, token = Registry(run / "server" / REGISTRY).add_token("north", ["sample"])
    with ExitStack() as stack:
        clients = []
        for _ in range(2):
            process = stack.enter_context(Process(run, "--rate", 20, "--max-images", 20))
            headers = {"Authorization": f"Bearer {text}"}
            http = httpx.Client(base_url=process.url, headers=headers, timeout=SECONDS)
            clients.append(stack.enter_context(http))
        yield run, token, clients


def ask(http, count):
    return http.post("/v1/intermediates", json={"client": "north", "count": count})


def test_they_hold_a_token_to_one_limit_and_hear_of_its_end(two):
    run, token, (one, other) = two
    assert ask(one, 12).status_code == 200
    refused = ask(other, 12)
    assert refused.status_code == 429
    assert "20 images a minute" in refused.json()["message"]
    assert 1 <= int(refused.headers["retry-after"]) <= 12
    assert ask(other, 8).status_code == 200
    assert [ask(http, 20).status_code for http in (one, other)] == [429, 429]
    Registry(run / "server" / REGISTRY).revoke(token.id)
    assert [ask(http, 1).status_code for http in (one, other)] == [401, 401]
