"""The service as an operator runs it: a process of its own, which is stopped, and killed."""

import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from collafuse.core import release as releases
from tests.nodes.sites import release_of

SECONDS = 60


@contextmanager
def serving(folder, *options):
    """A ``collafuse serve`` process and its URL; killed at the end if it is still there."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "cli", "serve", "run", "--port", "0", *options]
    with subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            lines = [process.stderr.readline()]
            while lines[-1] and not lines[-1].startswith("Serving at "):
                lines.append(process.stderr.readline())
            found = re.match(r"Serving at (\S+):", lines[-1])
            assert found, "".join(lines)
            yield process, found.group(1)
        finally:
            process.kill()


def http(url, token):
    headers = {"Authorization": f"Bearer {token}"}
    return httpx.Client(base_url=url, headers=headers, timeout=SECONDS)


def token_of(cli, *scopes, client="north"):
    words = [word for scope in scopes for word in ("--scope", scope)]
    return cli("tokens", "add", "run", "--client", client, *words).stdout.strip()


def test_a_simulated_run_or_an_open_port_is_refused(call_trained):
    assert "--accept-simulated" in call_trained("serve", "run", code=7).stderr
    assert "plain HTTP" in call_trained("serve", "run", "--host", "0.0.0.0", code=2).stderr
    assert "give one of the two" in call_trained("serve", "run", "--fit", "--compile", code=2).stderr
    for many in ("0", "4097", "all"):
        assert "auto" in call_trained("serve", "run", "--slots", many, code=2).stderr


def test_sigterm_ends_it_when_everything_that_was_accepted_is_answered(call_trained):
    token, admin = token_of(call_trained, "sample"), token_of(call_trained, "admin", client="operator")
    with serving(call_trained.folder, "--accept-simulated", "--slots", "1") as (process, url):
        with http(url, token) as client, http(url, admin) as operator, ThreadPoolExecutor(4) as pool:
            body = {"client": "north", "count": 8}
            asked = [pool.submit(client.post, "/v1/intermediates", json=body) for _ in range(4)]
            while "collafuse_jobs 4.0" not in operator.get("/metrics").text:
                assert not any(one.done() for one in asked), "too fast for this test"
            process.send_signal(signal.SIGTERM)
            assert [one.result(SECONDS).status_code for one in asked] == [200] * 4
        assert process.wait(SECONDS) == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/livez")


def test_no_acknowledged_release_is_lost_when_it_is_killed(call_cli):
    token = token_of(call_cli, "release")
    sent = {f"r{i}": releases.to_bytes(release_of(0.5)) for i in range(40)}

    def upload(client, name):
        try:
            return name, client.put(f"/v1/releases/{name}", content=sent[name]).status_code
        except httpx.TransportError:
            return name, None

    acknowledged = set()
    with serving(call_cli.folder, "--receive-only") as (process, url):
        with http(url, token) as client, ThreadPoolExecutor(8) as pool:
            for name, status in pool.map(lambda name: upload(client, name), sent):
                if status == 201:
                    acknowledged.add(name)
                if len(acknowledged) == 10:
                    process.kill()
    assert 10 <= len(acknowledged) < 40
    with serving(call_cli.folder, "--receive-only") as (_, url), http(url, token) as client:
        assert all(client.get(f"/v1/releases/{name}").status_code == 200 for name in acknowledged)
        assert {upload(client, name)[1] for name in acknowledged} == {200}
        assert {upload(client, name)[1] for name in set(sent) - acknowledged} <= {200, 201}
    folder = call_cli.folder / "run/server/releases"
    # What was under way when it was killed stays hidden, where training does not look.
    kept = {path.name.split(".")[1]: path.read_bytes() for path in folder.glob("[!.]*")}
    assert kept == sent
