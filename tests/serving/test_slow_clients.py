"""Slow and broken clients: each is cut off in time, and nobody else notices."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from contextlib import ExitStack, suppress

import pytest

from collafuse.serving import bodies
from collafuse.serving.listening import Address
from tests.serving.parts import SECONDS

SHORT = 0.5


@pytest.fixture
def hasty(monkeypatch):
    """The same deadlines, shorter."""
    for name in ("connection.HEAD_SECONDS", "bodies.BODY_SECONDS", "connection.REPLY_SECONDS"):
        monkeypatch.setattr(f"collafuse.serving.{name}", SHORT)


def address_of(running):
    host, port = running.url.partition("://")[2].split(":")
    return host, int(port)


def connect(running):
    return socket.create_connection(address_of(running), timeout=SECONDS)


def trickle(connections):
    """Send a byte now and then on each connection until all are closed by the server; how long that took, and
    what came back."""
    began, replies = time.monotonic(), dict.fromkeys(connections, b"")
    still = set(connections)
    while still:
        assert time.monotonic() - began < SECONDS
        for connection in list(still):
            connection.settimeout(0.02)
            try:
                connection.sendall(b"x")
                data = connection.recv(4096)
                replies[connection] += data
                if not data:
                    still.discard(connection)
            except TimeoutError:
                pass
            except OSError:
                still.discard(connection)
    return time.monotonic() - began, list(replies.values())


HEADS = {
    "at once": b"",
    "within a head": b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Slow: ",
    "between requests": b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n",
}


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_a_head_that_trickles_in_is_cut_off_while_others_are_served(running, hasty, head):
    with ExitStack() as stack, running.http() as http:
        slow = [stack.enter_context(connect(running)) for _ in range(5)]
        for connection in slow:
            connection.sendall(head)
        seconds, _ = trickle(slow)
        assert http.post("/v1/intermediates", json={"client": "north"}).status_code == 200
    assert seconds < SHORT + 5


def test_a_tls_handshake_that_does_not_go_on_is_cut_off(serve, hasty, authority):
    files = {"certificate": authority / "server.pem", "key": authority / "server.key"}
    running = serve(address=Address(port=0, **files))
    with ExitStack() as stack:
        slow = [stack.enter_context(connect(running)) for _ in range(5)]
        for connection in slow:
            connection.sendall(b"\x16\x03\x01\x02\x00")  # the beginning of a hello
        seconds, _ = trickle(slow)
    assert seconds < SHORT + 5


def test_an_upload_is_not_slow_because_the_disk_is(monkeypatch):
    monkeypatch.setattr(bodies, "BODY_SECONDS", SHORT)

    async def receive():
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def take_two():
        paced = bodies._paced(receive)
        await paced()
        await asyncio.sleep(SHORT + 0.1)
        return await paced()

    assert asyncio.run(take_two())["body"] == b"x"


@pytest.mark.parametrize("path", ["POST /v1/intermediates", "PUT /v1/releases/slow"])
def test_a_body_that_trickles_in_is_ended_with_408(running, hasty, path):
    head = f"{path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {running.token()}\r\n"
    head += "Content-Type: application/json\r\nContent-Length: 60000\r\n\r\n"
    with connect(running) as connection:
        connection.sendall(head.encode())
        seconds, replies = trickle([connection])
    assert replies[0].startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in replies[0].lower()
    assert seconds < SHORT + 5
    assert list(running.folder.releases.iterdir()) == []


def test_a_client_that_takes_no_reply_is_cut_off(serve, hasty):
    running = serve()
    with running.folder.weights.open("r+b") as file:
        file.truncate(64 << 20)  # more than the buffers between the two hold
    token = running.token("operator", "admin")
    with connect(running) as connection:
        connection.sendall(
            f"GET /v1/model/weights HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
        )
        assert connection.recv(12) == b"HTTP/1.1 200"
        with running.http() as http:
            began = time.monotonic()
            http.get("/livez")
            while len(running.server.server_state.connections) == 2:  # the second is this question's own
                http.get("/livez")
                assert time.monotonic() - began < SECONDS
        received = 0
        while block := connection.recv(1 << 20):
            received += len(block)
    assert received < 64 << 20


def test_the_end_of_a_reply_that_nobody_takes_is_given_up_too(serve, hasty):
    running = serve()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.settimeout(SECONDS)
        connection.connect(address_of(running))
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        connection.recv(4096)
        (other_end,) = running.server.server_state.connections
        other_end.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2048)
        connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        began = time.monotonic()
        while running.server.server_state.connections:
            assert time.monotonic() - began < SECONDS
            time.sleep(0.02)


def is_closed(connection):
    try:
        return not connection.recv(1)
    except ConnectionError:
        return True


def test_more_connections_than_are_allowed_are_closed_unheard(serve, monkeypatch):
    monkeypatch.setattr("collafuse.serving.connection.MAX_CONNECTIONS", 3)
    running = serve()
    with ExitStack() as stack:
        kept = [stack.enter_context(connect(running)) for _ in range(3)]
        for connection in kept:
            connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
        assert is_closed(stack.enter_context(connect(running)))


def test_several_requests_that_come_together_are_all_answered(running, hasty):
    with connect(running) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n" * 3)
        data = b""
        while data.count(b"HTTP/1.1 200") < 3:
            data += connection.recv(4096)


def is_complete(reply):
    return reply.endswith(b"}")


@pytest.mark.parametrize("head", [b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"X" * 100_000])
def test_what_is_no_http_is_refused(running, head):
    with connect(running) as connection:
        connection.sendall(head)
        reply = b""
        while not is_complete(reply):
            reply += connection.recv(4096)
    assert reply.startswith(b"HTTP/1.1 400")
    assert json.loads(reply.partition(b"\r\n\r\n")[2])["error"] == "BadRequest"


CHUNKED = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("together", [True, False], ids=["with the head", "after the reply"])
def test_a_body_that_is_no_http_ends_its_connection_and_is_nothing_to_report(serve, capfd, caplog, together):
    running = serve()  # here, so that what uvicorn says is caught
    with connect(running) as connection:
        if not together:
            connection.sendall(CHUNKED.replace(b"POST /", b"POST /v1/model"))
            assert connection.recv(4096).startswith(b"HTTP/1.1 401")
        connection.sendall((CHUNKED if together else b"") + b"nonsense\r\n")
        reply = b""
        with suppress(ConnectionError):
            while block := connection.recv(4096):
                reply += block
    assert reply.startswith(b"HTTP/1.1 400" if together else b"")
    with running.http() as http:
        assert http.get("/livez").status_code == 200  # by now it would have been reported
    assert "Traceback" not in capfd.readouterr().err
    assert not [record for record in caplog.records if record.exc_info]
