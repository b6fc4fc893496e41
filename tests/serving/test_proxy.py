"""The reverse-proxy configuration that is shipped, in a real nginx."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from collafuse.core import release as releases
from collafuse.nodes.server import Server
from edge_client.fetching import fetched, send_release
from edge_client.remote import Remote, Trust
from edge_client.wanted import Wanted
from tests.nodes.sites import release_of
from tests.serving.parts import SECONDS, Gated
from tests.serving.test_slow_clients import trickle
from tests.tiny import CPU

SHIPPED = Path(__file__).parents[2] / "docs" / "nginx.conf"
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed (Debian: apt install nginx-light)")


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def answers(port):
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def proxy(folder, upstream, authority, **changes):
    """nginx with the shipped file in front of a service; only names, ports and paths are replaced."""
    port, text = free_port(), SHIPPED.read_text()
    replaced = {
        "listen 8443 ssl": f"listen 127.0.0.1:{port} ssl",
        "server 127.0.0.1:8765": f"server {upstream.removeprefix('http://')}",
        "ssl_certificate server.pem": f"ssl_certificate {authority}/server.pem",
        "ssl_certificate_key server.key": f"ssl_certificate_key {authority}/server.key",
    } | changes
    for old, new in replaced.items():
        assert old in text, old
        text = text.replace(old, new)
    places = "".join(f"{name}_temp_path {folder}/{name};" for name in "client_body proxy fastcgi uwsgi scgi".split())
    text = text.replace("http {", f"http {{ {places}", 1)
    (folder / "nginx.conf").write_text(f"daemon off; pid {folder}/pid; error_log {folder}/error.log;\n{text}")
    command = [NGINX, "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log"), "-p", str(folder)]
    user = ["-g", "user root;"] if os.getuid() == 0 else []
    process = subprocess.Popen([*command, *user])
    try:
        began = time.monotonic()
        while not answers(port):
            assert process.poll() is None and time.monotonic() - began < SECONDS, (folder / "error.log").read_text()
        yield f"https://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(SECONDS)


def test_devices_and_sites_reach_the_service_through_it(serve, authority, tmp_path):
    running = serve(slots=4)
    (tmp_path / "north.safetensors").write_bytes(releases.to_bytes(release_of(0.5)))
    trust = Trust(running.token(), authority / "ca.pem")
    with proxy(tmp_path, running.url, authority) as url, Remote(url, trust) as remote:
        with fetched(remote, Wanted("north", 6), (1, 4, 4), tmp_path / "out") as whole:
            assert len(whole) == 6
        assert send_release(remote, tmp_path / "north.safetensors")["client"] == "north"
        large = httpx.post(f"{url}/v1/intermediates", content=bytes(70_000), verify=trust.context())
        forged = {"X-Forwarded-For": "6.6.6.6", "Authorization": "Bearer x"}
        assert httpx.get(f"{url}/v1/model", headers=forged, verify=trust.context()).status_code == 401
    assert large.status_code == 413
    assert list(running.service.strangers._buckets) == ["127.0.0.1"]


def test_where_one_process_is_full_another_is_asked(serve, authority, tmp_path, trained_folder):
    model = Server.load(trained_folder, CPU)
    gate = Gated(model.model.denoiser)
    object.__setattr__(model.model, "denoiser", gate)
    full, free = serve(model, slots=1, stretch=1.0), serve(slots=1)
    changes = {"# least_conn;": "least_conn;", "# server 127.0.0.1:8766": f"server {free.url.removeprefix('http://')}"}
    context = ssl.create_default_context(cafile=authority / "ca.pem")
    asked = {"json": {"client": "north"}, "headers": {"Authorization": f"Bearer {full.token()}"}}
    with ExitStack() as stack:
        url = stack.enter_context(proxy(tmp_path, full.url, authority, **changes))
        pool, http = stack.enter_context(ThreadPoolExecutor(1)), stack.enter_context(httpx.Client(verify=context))
        stack.callback(gate.open)
        pool.submit(httpx.post, f"{full.url}/v1/intermediates", **asked)
        while full.service.engine.state().jobs < 1:
            time.sleep(0.01)
        assert [http.post(f"{url}/v1/intermediates", **asked).status_code for _ in range(6)] == [200] * 6
        free.service.engine.stop()
        reply = http.post(f"{url}/v1/intermediates", **asked)
    assert reply.status_code == 503
    assert int(reply.headers["retry-after"]) >= 1


def test_it_cuts_slow_clients_off_before_they_reach_the_service(serve, authority, tmp_path):
    running = serve()
    hasty = {"client_header_timeout 8s": "client_header_timeout 1s", "client_body_timeout 8s": "client_body_timeout 1s"}
    context = ssl.create_default_context(cafile=authority / "ca.pem")
    with proxy(tmp_path, running.url, authority, **hasty) as url, ExitStack() as stack:
        slow = []
        for _ in range(5):
            plain = socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])), timeout=SECONDS)
            slow.append(stack.enter_context(context.wrap_socket(plain, server_hostname="127.0.0.1")))
            slow[-1].sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        seconds, _ = trickle(slow)
        assert httpx.get(f"{url}/livez", verify=context).status_code == 200
    assert seconds < 10
    assert len(running.server.server_state.connections) <= 1


def test_too_many_requests_are_told_when_to_come_back(serve, authority, tmp_path):
    running = serve()
    context = ssl.create_default_context(cafile=authority / "ca.pem")
    changes = {"rate=50r/s": "rate=1r/m", "burst=100": "burst=1"}
    with proxy(tmp_path, running.url, authority, **changes) as url, httpx.Client(verify=context) as http:
        replies = [http.get(f"{url}/livez") for _ in range(4)]
    assert [reply.status_code for reply in replies] == [200, 200, 429, 429]
    assert replies[-1].headers["retry-after"] == "30"
    assert replies[-1].json()["error"] == "OverLimitError"
