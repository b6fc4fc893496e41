"""A full server refuses at once: by the head of a request, whatever its body is."""

from __future__ import annotations

import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest

from collafuse.nodes.server import Server
from tests.serving.parts import SECONDS, Gated
from tests.tiny import CPU

ASKED = {"client": "north"}


@pytest.fixture
def full(serve, trained_folder):
    """A service whose two rows stand still, with as many requests before the next as it takes."""

    @contextmanager
    def start(**limits):
        server = Server.load(trained_folder, CPU)
        gate = Gated(server.model.denoiser)
        object.__setattr__(server.model, "denoiser", gate)
        running = serve(server, slots=2, stretch=1.0, **limits)
        with running.http() as http, ThreadPoolExecutor(2) as pool:
            asked = [pool.submit(http.post, "/v1/intermediates", json=ASKED) for _ in range(2)]
            wait_for_requests(running.service.engine, 2)
            try:
                yield running, http
            finally:
                gate.open()
            assert [one.result(SECONDS).status_code for one in asked] == [200, 200]

    return start


def wait_for_requests(engine, count):
    until = time.monotonic() + SECONDS
    while engine.state().jobs < count:
        assert time.monotonic() < until
        time.sleep(0.002)


def connection(running, head):
    host, port = running.url.removeprefix("http://").split(":")
    one = socket.create_connection((host, int(port)), timeout=SECONDS)
    one.sendall(f"POST /v1/intermediates HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n".encode())
    return one


def reply(connection):
    data = b""
    while not data.endswith(b"}"):
        data += connection.recv(4096)
    return data


def test_it_does_not_wait_for_a_body(full):
    with full() as (running, _):
        head = f"Authorization: Bearer {running.token()}\r\nContent-Type: application/json\r\nContent-Length: 19"
        with connection(running, head) as one:
            first = reply(one)
            assert first.startswith(b"HTTP/1.1 503") and b"retry-after: " in first
            assert b"as long as alone" in first
            one.sendall(b'{"client": "north"}')  # which is read and forgotten, so that the connection can be used again
            one.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            assert reply(one).startswith(b"HTTP/1.1 200")
        with running.http(running.token("operator", "admin")) as http:
            counted = http.get("/metrics").text
    assert 'collafuse_requests_total{route="/v1/intermediates",status="503"} 1.0' in counted


def test_who_may_not_ask_hears_that_instead(full):
    with full() as (running, _), httpx.Client(base_url=running.url, timeout=SECONDS) as http:
        tokens = {"Bearer x": 401, f"Bearer {running.token('north', 'release')}": 403}
        for header, status in tokens.items():
            reply = http.post("/v1/intermediates", json=ASKED, headers={"Authorization": header})
            assert reply.status_code == status


def test_a_token_with_too_much_open_is_told_so_and_another_that_there_is_no_room(full):
    with full(open_requests=2) as (running, http), running.http() as other:
        replies = [one.post("/v1/intermediates", json=ASKED) for one in (http, other)]
    assert [reply.status_code for reply in replies] == [429, 503]
    assert "has 2 requests open, at most 2" in replies[0].json()["message"]
    assert "as long as alone" in replies[1].json()["message"]


def test_what_is_not_a_request_for_images_goes_on(full):
    with full() as (_, http):
        assert http.get("/v1/model").status_code == 200
        assert http.get("/v1/releases").status_code == 200
