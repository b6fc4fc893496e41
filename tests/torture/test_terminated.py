"""The service ended by SIGTERM under load, again and again: what it accepted, it answers."""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from collafuse.core import intermediate as intermediates
from collafuse.core import release as releases
from collafuse.core import tensorfile
from collafuse.nodes.runfolder import REGISTRY
from collafuse.serving.registry import Registry
from tests.nodes.sites import release_of
from tests.nursery import Nursery
from tests.serving.conftest import train
from tests.serving.parts import SECONDS
from tests.torture.amounts import amount

JOBS, IMAGES = 4, 48
"""Long enough that the signal comes amid them."""
LATEST_SECONDS = 0.2
"""The signal comes at most so long after all of them were accepted."""


class Service:
    """`collafuse serve` of one run, started again and again on one port, with a token for each purpose."""

    def __init__(self, nursery: Nursery, run: Path) -> None:
        self._nursery, self._run = nursery, run
        registry = Registry(run / "server" / REGISTRY)
        self.token = registry.add_token("north", ["sample", "release"])[0]
        self.admin = registry.add_token("operator", ["admin"])[0]

    @contextmanager
    def started(self):
        """Its process id; the block ends it."""
        words = ("--port", 0, "--slots", 2, "--device", "cpu", "--rate", 1_000_000)
        self._nursery.log.write_text("")
        process = self._nursery.start("serve", self._run, *words)
        try:
            until = time.monotonic() + SECONDS
            while not (found := re.search(r"Serving at (\S+):", self._nursery.log.read_text(errors="replace"))):
                assert time.monotonic() < until, self._nursery.log.read_text()
                time.sleep(0.01)
            self.url = found.group(1)
            yield process
        except BaseException:
            os.kill(process, signal.SIGKILL)
            raise
        finally:
            self.code = self._nursery.wait()

    def http(self, token: str) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {token}"}, timeout=SECONDS)


def ask(http: httpx.Client, count: int) -> int:
    """Ask for images; the status, with 0 for a connection that ended unanswered. A reply that is there is whole."""
    try:
        reply = http.post("/v1/intermediates", json={"client": "north", "count": count})
    except httpx.TransportError:
        return 0
    if reply.status_code == 200:
        file = tensorfile.from_bytes(reply.content, intermediates.KIND, intermediates.VERSION, source="the reply")
        assert len(intermediates.from_tensorfile(file, "the reply")) == count
    return reply.status_code


@contextmanager
def asking(http: httpx.Client, statuses: list[int]):
    """Somebody who asks for one image after the other while the block runs."""
    ended = threading.Event()

    def work() -> None:
        while not ended.is_set():
            statuses.append(ask(http, 1))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def wait_until_accepted(http: httpx.Client, jobs: list[Future[int]]) -> None:
    """Return when the server has all of these among its requests."""
    until = time.monotonic() + SECONDS
    while http.get("/v1/state").json()["requests"] < len(jobs):
        assert time.monotonic() < until and not any(one.done() for one in jobs), "too fast for this test"


@contextmanager
def half_an_upload(service: Service, name: str, body: bytes):
    """An upload of which half has come; yields what sends the rest and returns the reply's first line."""
    host, port = service.url.removeprefix("http://").split(":")
    head = f"PUT /v1/releases/{name} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {service.token}\r\n"
    with socket.create_connection((host, int(port)), timeout=SECONDS) as connection:
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[: len(body) // 2])

        def rest() -> bytes:
            connection.sendall(body[len(body) // 2 :])
            return connection.recv(4096).partition(b"\r\n")[0]

        yield rest


@pytest.fixture
def service(tmp_path, nursery):
    train(tmp_path / "run")
    return Service(nursery.at(tmp_path), tmp_path / "run")


@amount(2, 100)
def test_no_accepted_request_is_lost_when_it_is_ended(service, amount, figure):
    chance, others = random.Random(0), []
    for number in range(amount):
        body = releases.to_bytes(release_of(0.5, count=20 + number))
        with service.started() as process, ThreadPoolExecutor(JOBS) as pool:
            with (
                service.http(service.token) as http,
                service.http(service.admin) as operator,
                half_an_upload(service, f"r{number}", body) as rest,
            ):
                jobs = [pool.submit(ask, http, IMAGES) for _ in range(JOBS)]
                wait_until_accepted(operator, jobs)
                with asking(http, others):
                    time.sleep(chance.uniform(0, LATEST_SECONDS))
                    os.kill(process, signal.SIGTERM)
                    assert rest() == b"HTTP/1.1 201 Created"
                    assert [one.result(SECONDS) for one in jobs] == [200] * JOBS
        assert service.code == 0
    assert set(others) <= {0, 200, 503}  # 0: it came when nobody listened any more
    figure(
        f"SIGTERM under load: {amount} of {amount} ended with 0, {amount * JOBS} requests and {amount} uploads that "
        f"were accepted before were answered; of those that came about then {others.count(200)} were delivered"
    )
