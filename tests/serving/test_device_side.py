"""The device's and the site's side against a real service."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from collafuse.core import intermediate as intermediates
from collafuse.core import release as releases
from collafuse.core.atomic import write_bytes
from collafuse.core.errors import (
    AccessError,
    FileFormatError,
    MismatchError,
    OutputExistsError,
    RefusedError,
    UnreachableError,
)
from collafuse.nodes.server import Server
from collafuse.serving.listening import Address
from edge_client.fetching import FOLDER, fetched, is_interrupted, send_release
from edge_client.remote import Remote, Trust
from edge_client.wanted import Wanted
from tests.edge_client.scripted import answer, scripted
from tests.nodes.sites import release_of
from tests.tiny import CPU

SHAPE = (1, 4, 4)


def fetch(*arguments, **settings):
    with fetched(*arguments, **settings) as whole:
        return whole.block(slice(0, len(whole)))


@pytest.fixture
def out(tmp_path):
    return tmp_path / "pictures"


def remote_of(running, *scopes, client="north", **settings):
    return Remote(running.url, Trust(running.token(client, *scopes)), pause=lambda seconds: None, **settings)


def test_a_delivery_in_parts_is_the_file_byte_for_byte(serve, out):
    running = serve(slots=4)
    seen = []
    with remote_of(running) as remote:
        wanted = Wanted("north", 16, seed=3)
        whole = fetch(remote, wanted, SHAPE, out, part_images=8, advance=seen.append)
    file = Server.load(running.folder, CPU).deliver("north", 16, seed=3, batch_size=4)
    assert intermediates.to_bytes(whole) == intermediates.to_bytes(file)
    assert seen == [8, 8]
    assert list(out.iterdir()) == []


def test_an_interrupted_delivery_goes_on_with_its_seed_and_its_parts(serve, out):
    running = serve(slots=4)
    wanted = Wanted("north", 12, labels=("y",))

    def stop_after_the_first(count):
        raise KeyboardInterrupt

    with remote_of(running) as remote:
        with pytest.raises(KeyboardInterrupt):
            fetch(remote, wanted, SHAPE, out, part_images=4, advance=stop_after_the_first)
        first = intermediates.read(out / FOLDER / "0-4.safetensors")
        (out / FOLDER / "4-8.safetensors").write_bytes(b"damaged")
        made = running.service.engine.state().finished
        whole = fetch(remote, wanted, SHAPE, out, part_images=4)
    assert running.service.engine.state().finished == made + 8
    assert np.array_equal(whole.x[:4], first.x)
    assert len(np.unique(whole.x.reshape(12, -1), axis=0)) == 12


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="only Linux tells what a process holds open")
def test_a_delivery_of_many_parts_holds_few_of_them_open(serve, out):
    """A process may have 1024 files open, so of 64 images a part a larger order than 65,000 would never end."""

    def held():
        return sum(out in link.resolve().parents for link in Path("/proc/self/fd").iterdir())

    running = serve(slots=4)
    with remote_of(running) as remote:
        with fetched(remote, Wanted("north", 12, seed=3), SHAPE, out, part_images=1) as whole:
            assert held() <= 1
            digest, x = whole.digest, [whole.block(slice(i, i + 1)).x for i in range(12)]
            assert held() <= 1
        once = Server.load(running.folder, CPU).deliver("north", 12, seed=3, batch_size=4)
    assert np.array_equal(np.concatenate(x), once.x)
    assert digest == once.digest


def test_a_device_asks_for_no_more_at_once_than_the_server_makes(serve, out):
    running, seen = serve(slots=4, request_images=3), []
    with remote_of(running) as remote:
        assert len(fetch(remote, Wanted("north", 8), SHAPE, out, advance=seen.append)) == 8
    assert seen == [3, 3, 2]


def test_an_interrupted_delivery_goes_on_where_the_server_makes_fewer_at_once_by_then(serve, out):
    running, wanted = serve(slots=4, request_images=8), Wanted("north", 20, seed=3)

    def stop_after_the_first(count):
        raise KeyboardInterrupt

    with remote_of(running) as remote:
        with pytest.raises(KeyboardInterrupt):
            fetch(remote, wanted, SHAPE, out, advance=stop_after_the_first)
        fewer = dataclasses.replace(running.service.limits, request_images=3)
        running.service.limits = running.service.shares.limits = fewer
        made, seen = running.service.engine.state().finished, []
        whole = fetch(remote, wanted, SHAPE, out, advance=seen.append)
    assert running.service.engine.state().finished == made + 12 and seen == [8, 8, 4]
    assert whole.digest == Server.load(running.folder, CPU).deliver("north", 20, seed=3, batch_size=4).digest


def test_a_device_waits_for_as_long_as_the_server_may_take(serve, out, monkeypatch):
    running, waits, ask = serve(deadline_seconds=600.0), [], Remote.ask

    def ask_and_note(self, *arguments, seconds=None, **settings):
        waits.append(seconds)
        return ask(self, *arguments, **settings)

    monkeypatch.setattr(Remote, "ask", ask_and_note)
    with remote_of(running) as remote:
        fetch(remote, Wanted("north", 2), SHAPE, out)
    assert waits == [None, 660.0]


NO_TERMS = [{}, {"request_images": "64", "deadline_seconds": 1}, {"request_images": 0, "deadline_seconds": 1}]


@pytest.mark.parametrize("said", [*NO_TERMS, {"request_images": 1, "deadline_seconds": 1e999}])
def test_what_does_not_say_how_many_it_makes_is_no_server_of_ours(out, said):
    with scripted(answer(200, json.dumps(said).encode())) as server, Remote(server.url, Trust("t")) as remote:
        with pytest.raises(FileFormatError, match=r"says that it makes .* images for one request, in .* seconds"):
            fetch(remote, Wanted("north", 1), SHAPE, out)
    assert not out.exists()


def test_what_came_is_kept_until_its_user_is_done_with_it(serve, out):
    running = serve(slots=4)
    with remote_of(running) as remote:
        with pytest.raises(KeyboardInterrupt), fetched(remote, Wanted("north", 4), SHAPE, out) as first:
            assert is_interrupted(out)
            digest = first.digest
            raise KeyboardInterrupt
        steps = running.service.engine.state().steps
        with fetched(remote, Wanted("north", 4), SHAPE, out) as again:
            assert again.digest == digest
        assert running.service.engine.state().steps == steps
    assert not is_interrupted(out)


def test_what_came_of_another_order_is_not_thrown_away_unasked(serve, out):
    running = serve(slots=4)

    def stop_after_the_first(count):
        raise KeyboardInterrupt

    with remote_of(running) as remote:
        with pytest.raises(KeyboardInterrupt):
            fetch(remote, Wanted("north", 4), SHAPE, out, part_images=2, advance=stop_after_the_first)
        with pytest.raises(OutputExistsError, match=r"another order that was interrupted .count 4.; .* --overwrite"):
            fetch(remote, Wanted("north", 2), SHAPE, out)
        assert (out / FOLDER / "0-2.safetensors").is_file()
        assert len(fetch(remote, Wanted("north", 2), SHAPE, out, overwrite=True)) == 2
    assert list(out.iterdir()) == []


def test_another_delivery_begins_anew_where_nothing_came(serve, out):
    running = serve(slots=4)
    with remote_of(running) as remote:
        with pytest.raises(MismatchError, match="asked for were 4 of"):
            fetch(remote, Wanted("north", 4), (3, 4, 4), out)
        assert (out / FOLDER).is_dir()
        assert len(fetch(remote, Wanted("north", 5), SHAPE, out)) == 5
    assert list(out.iterdir()) == []


def test_a_model_that_changes_between_two_parts_is_noticed(serve, out, trained_folder):
    server = Server.load(trained_folder, CPU)
    running = serve(server, slots=4)

    def another_model(count):
        object.__setattr__(server.model, "id", "another")

    with remote_of(running) as remote, pytest.raises(MismatchError, match="model changed from .* to another"):
        fetch(remote, Wanted("north", 4), SHAPE, out, part_images=2, advance=another_model)
    assert list(out.iterdir()) == []


def test_what_the_server_refuses_is_said_in_its_words(serve, out):
    running = serve()
    with remote_of(running) as remote:
        with pytest.raises(AccessError, match="belongs to client 'north', not to 'east'"):
            fetch(remote, Wanted("east", 1), SHAPE, out)
        with pytest.raises(MismatchError, match="label 'nine' is not known; known are x, y"):
            fetch(remote, Wanted("north", 1, labels=("nine",)), SHAPE, out)
    with Remote(running.url, Trust("collafuse_wrong")) as remote, pytest.raises(AccessError, match="ask the server's"):
        fetch(remote, Wanted("north", 1), SHAPE, out)


def test_a_release_is_sent_once_and_again_without_harm(serve, tmp_path):
    running = serve()
    write_bytes(tmp_path / "north.safetensors", releases.to_bytes(release_of(0.5)))
    with remote_of(running, "release") as remote:
        first = send_release(remote, tmp_path / "north.safetensors")
        again = send_release(remote, tmp_path / "north.safetensors")
    assert first == again
    assert (first["client"], first["images"]) == ("north", 8)
    assert len(running.service.registry.releases()) == 1


def test_a_release_over_the_servers_limit_is_refused_before_it_is_sent(serve, tmp_path):
    running = serve(release_bytes=1000)
    write_bytes(tmp_path / "north.safetensors", releases.to_bytes(release_of(0.5, side=32)))
    with remote_of(running, "release", patience=0) as remote:
        with pytest.raises(RefusedError, match=r"has \d+ bytes, the server accepts at most 1000; ask its operator"):
            send_release(remote, tmp_path / "north.safetensors")


def test_an_answer_that_was_lost_does_not_store_a_release_twice(tmp_path):
    data = releases.to_bytes(release_of(0.5))
    write_bytes(tmp_path / "north.safetensors", data)
    held = {"client": "north", "id": "x", "images": 8, "sha256": hashlib.sha256(data).hexdigest()}
    with scripted(answer(200), b"", answer(200, json.dumps(held).encode())) as server:
        with Remote(server.url, Trust("t"), pause=lambda seconds: None) as remote:
            assert send_release(remote, tmp_path / "north.safetensors") == held
    _, lost, again = server.asked
    assert lost == again
    assert again[2] == data


@pytest.mark.parametrize("said", [{}, {"client": "north", "id": "x", "images": 8, "sha256": "another"}])
def test_an_answer_that_does_not_name_these_bytes_acknowledges_nothing(tmp_path, said):
    write_bytes(tmp_path / "north.safetensors", releases.to_bytes(release_of(0.5)))
    known = json.dumps({"releases": [said, 7]}).encode()
    with scripted(answer(200, known), answer(201, json.dumps(said).encode())) as server:
        with (
            Remote(server.url, Trust("t")) as remote,
            pytest.raises(FileFormatError, match="does not say that it holds"),
        ):
            send_release(remote, tmp_path / "north.safetensors")


def test_what_is_no_release_or_marked_as_simulated_does_not_arrive(serve, tmp_path):
    running = serve()
    (tmp_path / "no.safetensors").write_bytes(b"nothing")
    write_bytes(tmp_path / "sim.safetensors", releases.to_bytes(release_of(0.5, simulated=True)))
    with remote_of(running, "release") as remote:
        with pytest.raises(FileFormatError, match="cut short"):
            send_release(remote, tmp_path / "no.safetensors")
        with pytest.raises(RefusedError, match="marked as simulated"):
            send_release(remote, tmp_path / "sim.safetensors")
    assert running.service.registry.releases() == []


def test_only_the_pinned_authority_is_trusted(serve, authority, out):
    files = {"certificate": authority / "server.pem", "key": authority / "server.key"}
    running = serve(address=Address(port=0, client_ca=authority / "ca.pem", **files))
    token, ours = running.token(), authority / "ca.pem"
    shown = {"certificate": authority / "device.pem", "key": authority / "device.key"}
    with Remote(running.url, Trust(token, ours, **shown)) as remote:
        assert len(fetch(remote, Wanted("north", 2), SHAPE, out)) == 2
    cases = [
        (running.url, Trust(token), "was not signed by an authority that this system knows"),
        (running.url, Trust(token, authority / "server.pem"), r"was not signed by .*server\.pem"),
        (running.url, Trust(token, ours), "does not speak TLS as expected|does not answer"),
        (running.url.replace("https", "http"), Trust(token), "check the URL, http or https"),
    ]
    for url, trust, message in cases:
        with Remote(url, trust, patience=0) as remote, pytest.raises(UnreachableError, match=message):
            remote.ask("GET", "/livez", limit=100)
