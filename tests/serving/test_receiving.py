"""Releases over HTTP: kept once, whole, and only where they belong."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from collafuse.core import release as releases
from collafuse.core.errors import OutputExistsError
from collafuse.nodes.ledger import Ledger
from collafuse.nodes.sites import read_releases
from collafuse.nodes.statistics import read_statistics
from collafuse.serving.receiving import Known, Receiver
from collafuse.serving.registry import Registry
from tests.nodes.sites import client, config, release_of
from tests.tiny import image_set

FULL = Path("/dev/full")


def bytes_of(sigma=0.5, **settings):
    return releases.to_bytes(release_of(sigma, **settings))


def put(http, data, release_id="first", **headers):
    return http.put(f"/v1/releases/{release_id}", content=data, headers=headers)


def digest_of(data):
    return f"sha-256=:{base64.b64encode(hashlib.sha256(data).digest()).decode()}:"


def files(running):
    return sorted(path.name for path in running.folder.releases.iterdir())


def test_a_release_lies_where_training_finds_it_under_the_name_of_its_token(serve):
    running, data = serve(), bytes_of()
    with running.http() as http:
        reply = put(http, data, **{"Content-Digest": digest_of(data)})
        assert http.get("/v1/releases/first").json() == reply.json()
        assert http.get("/v1/releases/second").status_code == 404
    assert reply.status_code == 201
    assert reply.json() == {
        "client": "north",
        "id": "first",
        "sha256": hashlib.sha256(data).hexdigest(),
        "bytes": len(data),
        "images": 8,
        "sigma_cut": 0.5,
    }
    assert files(running) == ["north.first.safetensors"]
    assert (running.folder.releases / "north.first.safetensors").read_bytes() == data
    assert list(read_releases(running.folder.releases, accept_simulated=False)) == ["north"]


def test_the_same_release_is_kept_once_however_often_and_at_once_it_comes(serve):
    running, data = serve(), bytes_of()
    with running.http() as http, ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(lambda _: put(http, data).status_code, range(8)))
        assert sorted(statuses) == [200] * 7 + [201]
        assert put(http, data, **{"Content-Digest": digest_of(data)}).status_code == 200
        again = put(http, data, "another-id")
    assert again.status_code == 409
    assert "lies here already, as 'first'" in again.json()["message"]
    assert files(running) == ["north.first.safetensors"]
    assert len(running.service.registry.releases()) == 1


def test_another_release_under_a_known_id_is_refused(serve):
    running = serve()
    with running.http() as http:
        put(http, bytes_of())
        other = put(http, bytes_of())  # drawn anew: other ids
    assert other.status_code == 409
    assert "a release is never replaced" in other.json()["message"]


REFUSED = [
    (lambda: bytes_of(0.7), 422, "released at sigma 0.5 before, this release stands at 0.7"),
    (lambda: bytes_of(side=8), 422, "shape (1, 8, 8), this server learns (1, 4, 4)"),
    (lambda: bytes_of(simulated=True), 403, "marked as simulated"),
    (lambda: bytes_of()[:-3], 422, "the release is damaged"),
    (lambda: b"\x00" * 500, 422, "the release"),
]


@pytest.mark.parametrize(("data", "status", "says"), REFUSED)
def test_what_does_not_fit_is_refused_and_leaves_nothing(running, data, status, says):
    with running.http() as http:
        reply = put(http, data())
    assert (reply.status_code, says in reply.json()["message"]) == (status, True), reply.text
    assert str(running.folder.path) not in reply.text
    assert files(running) == []
    assert running.service.registry.releases() == []


def test_a_digest_that_does_not_match_is_refused(running):
    data = bytes_of()
    with running.http() as http:
        wrong = put(http, data, **{"Content-Digest": digest_of(b"other")})
        malformed = put(http, data, **{"Content-Digest": "md5=:AAAA:"})
    assert wrong.status_code == malformed.status_code == 422
    assert "its sender said" in wrong.json()["message"]
    assert files(running) == []


def test_names_come_from_the_token_and_ids_have_no_paths(serve):
    running = serve()
    with running.http(running.token("east", "release")) as http:
        assert put(http, bytes_of(1.0)).json()["client"] == "east"
        for bad in ("..%2Fnorth", "a.b", "-x", "x" * 65):
            assert put(http, bytes_of(1.0), bad).status_code in (404, 422)
        assert http.post("/v1/intermediates", json={"client": "east"}).status_code == 403
    assert files(running) == ["east.first.safetensors"]


def test_too_large_compressed_or_endless_bodies_are_refused_before_they_are_read(serve):
    running = serve(release_bytes=1000)
    with running.http() as http:
        large = put(http, bytes(1001))
        packed = put(http, bytes(10), **{"Content-Encoding": "gzip"})
        endless = http.put("/v1/releases/first", content=iter([b"x"]))
        request = http.post("/v1/intermediates", content=bytes(70_000))
    assert [r.status_code for r in (large, packed, endless, request)] == [413, 415, 411, 413]
    assert files(running) == []


def test_an_upload_that_breaks_off_leaves_nothing_and_can_be_sent_again(serve, capfd):
    running, data = serve(), bytes_of()
    host, port = running.url.removeprefix("http://").split(":")
    head = f"PUT /v1/releases/first HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {running.token()}\r\n"
    head += f"Content-Length: {len(data)}\r\n\r\n"
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head.encode() + data[:-10])
    with running.http() as http:
        assert put(http, data).status_code == 201
    assert "Traceback" not in capfd.readouterr().err  # leaving is nothing to report


def test_what_a_power_cut_left_of_an_upload_is_removed_and_what_another_process_receives_is_not(serve):
    running = serve()
    partial, file = running.service.receiver._begin(0)
    file.close()

    def open_again():
        Receiver(running.folder.releases, running.service.registry, Known(None, {}), accept_simulated=False)

    open_again()
    assert files(running) == [partial.name]
    os.utime(partial, (0, 0))
    open_again()
    assert files(running) == []


def test_a_release_that_was_named_but_not_listed_is_taken_up_when_it_is_sent_again(serve):
    running, data = serve(), bytes_of()
    path = running.folder.releases / "north.first.safetensors"
    path.write_bytes(data)
    with running.http() as http:
        assert put(http, bytes_of()).status_code == 409
        assert put(http, data).status_code == 201
    assert files(running) == ["north.first.safetensors"]


def test_of_two_processes_that_receive_under_one_id_at_once_only_one_keeps_its_release(serve):
    running = serve()
    both = threading.Barrier(2)

    class Together(Receiver):
        def _checked(self, *arguments):
            release = super()._checked(*arguments)
            both.wait(10)  # neither has given the name yet
            return release

    def receive(release_id, data):
        receiver = Together(running.folder.releases, running.service.registry, Known(None, {}), accept_simulated=False)

        async def body():
            yield data

        try:
            return asyncio.run(receiver.receive("north", release_id, body(), len(data), None))
        except OutputExistsError:
            return None

    for round_ in range(20):
        with ThreadPoolExecutor(2) as pool:
            answers = list(pool.map(receive, [f"r{round_}"] * 2, [bytes_of(), bytes_of()]))
        ((received, is_new),) = [answer for answer in answers if answer is not None]
        lies = (running.folder.releases / f"north.r{round_}.safetensors").read_bytes()
        assert (is_new, hashlib.sha256(lies).hexdigest()) == (True, received.sha256)


RECEIVE = """
import asyncio, json, os, sys, time
from pathlib import Path

from collafuse.core.errors import CollaFuseError
from collafuse.serving.receiving import Known, Receiver
from collafuse.serving.registry import Registry

at, me, links, orders = Path(sys.argv[1]), sys.argv[2], sys.argv[3], json.loads(sys.argv[4])


def link(*_):
    raise PermissionError(1, "Operation not permitted")


if links == "without":
    os.link = link


class Together(Receiver):
    def _checked(self, *arguments):
        release = super()._checked(*arguments)
        (at / f"{client}.{me}").touch()
        while len(list(at.glob(f"{client}.*"))) < 2:  # neither has given the name yet
            time.sleep(0.001)
        return release


async def body(data):
    yield data


receiver, said = Together(at / "releases", Registry(at / "registry"), Known(None, {}), accept_simulated=False), {}
for client, release_id in orders.items():
    data = (at / f"{me}-{client}").read_bytes()
    try:
        said[client] = asyncio.run(receiver.receive(client, release_id, body(data), len(data), None))[1]
    except CollaFuseError as error:
        said[client] = str(error)
print(json.dumps(said))
"""


@pytest.mark.parametrize("links", ["with", "without"])
def test_processes_that_receive_at_once_keep_what_one_of_them_would(tmp_path, links):
    """Several servers of one run folder, also where the file system has no hard links: what one has acknowledged no
    other replaces, and what one would refuse beside it another does."""
    same, ids = bytes_of(), {"a": "first", "b": "second"}
    cases = {  # what either is sent, whether under one id, and what the second of them says
        "one-id": ([bytes_of(), bytes_of()], True, "a release is never replaced"),
        "again": ([same, same], True, False),
        "two-ids": ([same, same], False, "this release lies here already"),
        "two-cuts": ([bytes_of(0.5), bytes_of(0.7)], False, "a server keeps one cut for each client"),
    }
    running = []
    for place, me in enumerate(ids):
        for site, (sent, _, _) in cases.items():
            (tmp_path / f"{me}-{site}").write_bytes(sent[place])
        orders = {site: "only" if one_id else ids[me] for site, (_, one_id, _) in cases.items()}
        command = [sys.executable, "-c", RECEIVE, str(tmp_path), me, links, json.dumps(orders)]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    said = [json.loads(process.communicate(timeout=120)[0]) for process in running]
    listed = Registry(tmp_path / "registry").releases()
    lie = {path.name.split(".")[0]: path.read_bytes() for path in (tmp_path / "releases").iterdir()}
    assert len(listed) == len(lie) == len(list((tmp_path / "releases").iterdir())) == len(cases)
    for site, (sent, _, second) in cases.items():
        (first,) = [place for place in (0, 1) if said[place][site] is True]
        other = said[1 - first][site]
        assert other is second or second in other, site
        assert lie[site] == sent[first]
    assert {one.client: one.sha256 for one in listed} == {
        n: hashlib.sha256(data).hexdigest() for n, data in lie.items()
    }


def test_a_disk_without_room_is_named(serve, monkeypatch):
    running = serve()
    monkeypatch.setattr("collafuse.serving.receiving.SPARE_BYTES", 1 << 60)
    with running.http() as http:
        reply = put(http, bytes_of())
    assert reply.status_code == 507
    assert "tell its operator" in reply.json()["message"]


@pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full here")
def test_a_disk_that_fills_up_amid_an_upload_is_named_and_its_path_is_not(serve, monkeypatch):
    running = serve()
    begin = running.service.receiver._begin

    def begin_on_a_full_disk(size):
        partial, file = begin(size)
        file.close()
        return partial, FULL.open("wb")

    monkeypatch.setattr(running.service.receiver, "_begin", begin_on_a_full_disk)
    with running.http() as http:
        reply = put(http, bytes_of())
    assert reply.status_code == 507
    assert "the disk is full" in reply.json()["message"]
    assert str(running.folder.path) not in reply.text
    assert files(running) == []


def test_releases_are_received_before_anything_was_trained(serve):
    running = serve(receive_only=True)
    with running.http() as http:
        assert put(http, bytes_of()).status_code == 201
        assert http.get("/readyz").status_code == 200
        asked = http.post("/v1/intermediates", json={"client": "north"})
    assert asked.status_code == 403
    assert "has no model yet" in asked.json()["message"]


def test_statistics_are_received_and_a_client_stays_with_one_kind(serve, tmp_path):
    site = client(image_set(100), config(server={"kind": "statistics"}))
    site.release_statistics(tmp_path / "s", Ledger(tmp_path / "ledger"), simulated=False)
    running = serve(receive_only=True)
    with running.http() as http:
        reply = put(http, (tmp_path / "s").read_bytes())
        assert (reply.status_code, reply.json()["images"], reply.json()["sigma_cut"]) == (201, 100, 0.0)
        assert put(http, bytes_of(), "second").status_code == 422
    assert list(read_statistics(running.folder.releases, accept_simulated=False)) == ["north"]
