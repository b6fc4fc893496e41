"""Asking a server: what is tried again, what is not, and what is said."""

from __future__ import annotations

import json
import re
import socket
import ssl

import pytest

from collafuse.core.errors import (
    AccessError,
    BusyError,
    FileFormatError,
    MismatchError,
    RefusedError,
    StorageError,
    UnreachableError,
    UsageError,
)
from edge_client.remote import Remote, Trust, read_token
from tests.edge_client.scripted import answer, scripted

TRUST = Trust("a-token")


class Waits:
    """A clock that notes how long it was asked to wait, and does not."""

    def __init__(self):
        self.seconds, self.said = [], []

    def remote(self, url, **settings):
        return Remote(url, TRUST, pause=self.seconds.append, say=self.said.append, jitter=lambda: 1.0, **settings)


@pytest.fixture
def waits():
    return Waits()


def says(status, error, message, *headers):
    return answer(status, json.dumps({"error": error, "message": message}).encode(), *headers)


def test_it_carries_the_token_and_gives_the_answer(waits):
    with scripted(answer(200, b'{"a": 1}')) as server, waits.remote(f"{server.url}/") as remote:
        assert remote.ask("POST", "/v1/x", body={"b": 2}, limit=100).json() == {"a": 1}
    assert server.asked == [("POST", "/v1/x", b'{"b":2}')]
    assert waits.seconds == []


def test_it_comes_back_when_the_server_says_and_backs_off_beyond_that(waits):
    busy = says(503, "BusyError", "the server has 9 images to make; ask again in 7 s.", "Retry-After: 7")
    limit = says(429, "OverLimitError", "60 images a minute", "Retry-After: 2")
    with scripted(busy, limit, answer(200)) as server, waits.remote(server.url) as remote:
        assert remote.ask("GET", "/v1/model", limit=100).status == 200
    assert waits.seconds == [7.5, 3.0]
    assert waits.said[0] == "the server has 9 images to make; ask again in 7 s; trying again in 7.5 s."


def test_broken_connections_and_gateways_are_tried_again(waits):
    cut_short = answer(200, b"x" * 50)[:-10]
    with scripted(b"", cut_short, answer(502), answer(504), answer(200)) as server, waits.remote(server.url) as remote:
        assert remote.ask("GET", "/v1/model", limit=100).status == 200
    assert waits.seconds == [0.5, 1.0, 2.0, 4.0]
    assert "does not answer" in waits.said[0]


def test_pauses_do_not_grow_for_ever(waits):
    with scripted(*[b""] * 12, answer(200)) as server, waits.remote(server.url, patience=1e6) as remote:
        remote.ask("GET", "/", limit=100)
    assert max(waits.seconds) == 60.0


def test_every_answer_is_waited_for_as_long_as_the_first(waits, monkeypatch):
    busy, waited = says(503, "BusyError", "no room"), []
    with scripted(busy, b"", answer(200)) as server, waits.remote(server.url) as remote:
        build = remote._http.build_request

        def built(*words, timeout, **more):
            waited.append(timeout.read)
            return build(*words, timeout=timeout, **more)

        monkeypatch.setattr(remote._http, "build_request", built)
        remote.ask("GET", "/v1/model", limit=100, seconds=42.0)
    assert waited == [42.0] * 3


@pytest.mark.parametrize("patience", [float("nan"), -1.0])
def test_a_patience_that_is_no_time_is_refused(waits, patience):
    with pytest.raises(UsageError, match=r"patience=(nan|-1); expected a number of seconds"):
        waits.remote("http://127.0.0.1:1", patience=patience)


def test_patience_ends_with_what_the_server_said_last(waits):
    with scripted(says(503, "BusyError", "no room.", "Retry-After: 7")) as server:
        with waits.remote(server.url, patience=5) as remote, pytest.raises(BusyError, match=r"^no room\.$") as refused:
            remote.ask("GET", "/v1/model", limit=100)
    assert refused.value.retry_after == 7
    assert waits.seconds == []
    with waits.remote(server.url, patience=0) as remote, pytest.raises(UnreachableError, match="check the URL"):
        remote.ask("GET", "/v1/model", limit=100)


REFUSALS = [
    (says(401, "AccessError", "this token has expired."), AccessError, "does not know this client: this token has"),
    (says(403, "AccessError", "this needs sample."), AccessError, "this needs sample"),
    (says(403, "RefusedError", "not learned."), RefusedError, "not learned"),
    (says(422, "MismatchError", "label 'x'."), MismatchError, "label 'x'"),
    (says(413, "TooLarge", "at most 9 bytes."), RefusedError, r"^at most 9 bytes\.$"),
    (says(507, "StorageError", "the disk is full."), StorageError, r"^the disk is full\.$"),
    (says(422, "\x1b[31m", "a\x1b[2Jb"), UnreachableError, r"a\?\[2Jb; is http.* a CollaFuse server"),
    (answer(404, b"<html>"), UnreachableError, "answered 404.*is http.* a CollaFuse server"),
    (answer(302, b"", "Location: http://example.org"), UnreachableError, "answered 302"),
    (answer(413, b"<html>"), RefusedError, "answered 413 Said: too large for the server or a proxy before it"),
    (answer(409, b"[" * 60_000), UnreachableError, "answered 409"),
]


@pytest.mark.parametrize(("reply", "kind", "message"), REFUSALS)
def test_a_refusal_is_final_and_says_what_the_server_says(waits, reply, kind, message):
    with scripted(reply) as server, waits.remote(server.url) as remote, pytest.raises(kind, match=message):
        remote.ask("GET", "/v1/model", limit=100)
    assert waits.seconds == []


def test_a_reply_that_is_too_long_or_no_json_is_refused(waits):
    deep = b"[" * 60_000
    replies = [answer(200, body) for body in (b"x" * 101, b"[]", b"\xff", deep)]
    with scripted(*replies) as server:
        with waits.remote(server.url) as remote:
            with pytest.raises(FileFormatError, match="more than 100 bytes"):
                remote.ask("GET", "/", limit=100)
            for _ in replies[1:]:
                with pytest.raises(FileFormatError, match="no JSON"):
                    remote.ask("GET", "/", limit=len(deep)).json()


@pytest.mark.parametrize(
    "url",
    ["server", "ftp://server", "http://example.org", "http://10.0.0.1:8000", "https://", "https://a:b", "https://[::1"],
)
def test_a_url_that_cannot_be_or_would_show_the_token_is_refused(url):
    with pytest.raises(UsageError, match=r"is no URL|use https"):
        Remote(url, TRUST)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (9, r"not valid yet; this device's clock says 20\d\d-.*, set it"),
        (10, "has expired, or this device's clock .* is ahead"),
        (62, "is for another name"),
        (19, "was not signed by an authority that this system knows"),
    ],
)
def test_each_way_in_which_a_certificate_is_wrong_has_its_sentence(code, message):
    error = ssl.SSLCertVerificationError("certificate verify failed")
    error.verify_code, error.verify_message = code, "openssl's words"
    with Remote("https://example.org", TRUST) as remote:
        assert re.search(message, remote._about_certificate(error))


def test_what_stays_on_this_machine_goes_through_no_proxy(waits, monkeypatch):
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with scripted(answer(200)) as server, scripted() as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        with waits.remote(server.url, patience=0) as remote:
            remote.ask("GET", "/v1/model", limit=100)
    assert len(server.asked) == 1 and proxy.asked == []


def test_an_answer_is_waited_for_as_long_as_is_asked(waits):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with waits.remote(f"http://127.0.0.1:{silent.getsockname()[1]}", patience=0) as remote:
            with pytest.raises(UnreachableError, match="timed out"):
                remote.ask("GET", "/v1/model", limit=100, seconds=0.05)


def test_a_pause_without_end_is_not_made(waits):
    endless = says(503, "BusyError", "no room.", f"Retry-After: {'9' * 5000}")
    long = says(503, "BusyError", "no room.", "Retry-After: 999999")
    with scripted(endless, long, answer(200)) as server, waits.remote(server.url, patience=1e4) as remote:
        remote.ask("GET", "/v1/model", limit=100)
    assert waits.seconds == [0.5, 3601.0]


def test_certificates_and_tokens_that_are_none_are_refused(tmp_path):
    (tmp_path / "no.pem").write_text("nothing")
    with pytest.raises(UsageError, match=r"cannot use the certificates .*no\.pem"):
        Remote("https://example.org", Trust("t", authority=tmp_path / "no.pem"))
    with pytest.raises(UsageError, match=r"the key .*no\.pem belongs to a certificate"):
        Remote("https://example.org", Trust("t", key=tmp_path / "no.pem"))
    for text in ("", "two words", "x" * 600, "\x07"):
        (tmp_path / "token").write_text(text)
        with pytest.raises(UsageError, match="holds no token"):
            read_token(tmp_path / "token")
    with pytest.raises(UsageError, match="cannot read a token"):
        read_token(tmp_path / "missing")
    (tmp_path / "token").write_text("collafuse_x\n")
    assert read_token(tmp_path / "token") == "collafuse_x"
