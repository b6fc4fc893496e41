"""Who is let in: tokens, TLS, and what a stranger costs."""

from __future__ import annotations

import shutil
import ssl

import httpx
import pytest

from collafuse.core.errors import ConfigError, RefusedError, UsageError
from collafuse.serving.authentication import _address
from collafuse.serving.engine import Engine
from collafuse.serving.listening import Address
from collafuse.serving.service import Service
from tests.serving.conftest import CPU, Limits, Server, train
from tests.serving.parts import SECONDS

ASKED = {"client": "north"}


def test_each_kind_of_bad_token_is_refused_with_its_reason(serve):
    running = serve()
    registry = running.service.registry
    expired = registry.add_token("north", ["sample"], days=1e-9)[0]
    revoked, known = registry.add_token("north", ["sample"])
    registry.revoke(known.id)
    release_only = running.token("north", "release")
    foreign = running.token("east")
    cases = [
        (None, 401, "a token is needed"),
        ("Basic abc", 401, "a token is needed"),
        ("Bearer nonsense", 401, "not known here"),
        (f"Bearer {foreign[:-2]}xx", 401, "not known here"),
        (f"Bearer {expired}", 401, "expired on"),
        (f"Bearer {revoked}", 401, "was revoked on"),
        (f"Bearer {release_only}", 403, "this needs sample"),
        (f"Bearer {foreign}", 403, "belongs to client 'east', not to 'north'"),
    ]
    with httpx.Client(base_url=running.url, timeout=SECONDS) as http:
        for header, status, says in cases:
            headers = {} if header is None else {"Authorization": header}
            reply = http.post("/v1/intermediates", json=ASKED, headers=headers)
            assert (reply.status_code, says in reply.json()["message"]) == (status, True), (header, reply.text)
            assert ("www-authenticate" in reply.headers) == (status == 401)
    assert running.service.engine.state().steps == 0


def test_who_tries_tokens_is_told_to_wait_and_a_good_token_is_not_affected(serve):
    running = serve()
    replies = []
    with httpx.Client(base_url=running.url, timeout=SECONDS) as http:
        while len(replies) < 600 and (not replies or replies[-1].status_code != 429):  # a slow machine earns some back
            replies.append(http.get("/v1/model", headers={"Authorization": f"Bearer x{len(replies)}"}))
    assert [reply.status_code for reply in replies[:60]] == [401] * 60
    assert replies[-1].status_code == 429
    assert int(replies[-1].headers["retry-after"]) >= 1
    revoked, token = running.service.registry.add_token("north", ["sample"])
    running.service.registry.revoke(token.id)
    with running.http() as http:
        assert http.get("/v1/model").status_code == 200
    with running.http(revoked) as http:  # who had a good one does not guess, and hears what became of it
        assert http.get("/v1/model").status_code == 401


@pytest.mark.parametrize(
    ("peer", "named", "address"),
    [
        ("127.0.0.1", b"6.6.6.6, 192.0.2.7", "192.0.2.7"),
        ("127.0.0.1", b"2001:db8::1", "2001:db8::1"),
        ("127.0.0.1", b"a stranger's words", "127.0.0.1"),
        ("127.0.0.1", None, "127.0.0.1"),
        ("192.0.2.9", b"6.6.6.6", "192.0.2.9"),  # no proxy of ours: it may say what it likes
    ],
)
def test_a_strangers_address_is_what_a_proxy_on_this_machine_says(peer, named, address):
    headers = [] if named is None else [(b"x-forwarded-for", named)]
    assert _address({"client": (peer, 1), "headers": headers}) == address


def test_a_registry_that_cannot_be_read_is_the_operators_business(serve, caplog):
    running = serve()
    token, path = running.token(), running.service.registry.path
    path.unlink()
    path.write_bytes(b"no database" * 1000)
    with running.http(token) as http:
        reply = http.get("/v1/model")
    assert reply.status_code == 503
    assert int(reply.headers["retry-after"]) >= 1
    assert "tell its operator" in reply.json()["message"] and str(path) not in reply.text
    assert f"the registry {path} cannot be used" in caplog.text


def test_a_revoked_token_is_refused_by_a_server_that_runs_already(serve):
    running = serve()
    text, token = running.service.registry.add_token("north", ["sample"])
    with running.http(text) as http:
        assert http.get("/v1/model").status_code == 200
        running.service.registry.revoke(token.id)
        assert http.get("/v1/model").status_code == 401


def test_a_simulated_run_is_served_only_on_request(tmp_path):
    folder = train(tmp_path, simulated=True)
    engine = Engine(Server.load(folder, CPU))
    with pytest.raises(RefusedError, match=r"simulated releases \(east, north\).*--accept-simulated"):
        Service.open(folder, engine, Limits(), accept_simulated=False)
    assert Service.open(folder, engine, Limits(), accept_simulated=True).engine is engine


def test_a_server_that_does_not_say_counts_as_simulated(tmp_path, trained_folder):
    sites = tmp_path / "sites.json"
    sites.write_text(trained_folder.sites.read_text().replace('"simulated": false', '"simulated_": false'))
    for name in ("weights.safetensors", "config.yaml"):
        shutil.copy(trained_folder.path / name, tmp_path / name)
    folder = type(trained_folder)(tmp_path)
    with pytest.raises(RefusedError, match="simulated"):
        Service.open(folder, Engine(Server.load(folder, CPU)), Limits(), accept_simulated=False)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"host": "0.0.0.0"}, "plain HTTP would show every token"),
        ({"host": "example.org"}, "plain HTTP"),
        ({"certificate": "a.pem"}, "belong together"),
        ({"client_ca": "ca.pem"}, "needs TLS"),
    ],
)
def test_plain_http_stays_on_this_machine(settings, says):
    with pytest.raises(UsageError, match=says):
        Address(**settings)
    assert Address(host="::1").certificate is Address(host="localhost").key is None


def test_a_taken_port_and_certificates_that_are_none_are_named(serve, tmp_path):
    taken = int(serve().url.rsplit(":", 1)[1])
    with pytest.raises(UsageError, match=rf"127\.0\.0\.1:{taken}.*choose another --port"):
        serve(address=Address(port=taken))
    (tmp_path / "no.pem").write_text("no certificate")
    with pytest.raises(ConfigError, match="certificates cannot be used"):
        serve(address=Address(port=0, certificate=tmp_path / "no.pem", key=tmp_path / "no.pem"))


def test_tls_with_a_private_authority(serve, authority):
    address = Address(port=0, certificate=authority / "server.pem", key=authority / "server.key")
    running = serve(address=address)
    running.verify = ssl.create_default_context(cafile=authority / "ca.pem")
    with running.http() as http:
        assert http.post("/v1/intermediates", json=ASKED).status_code == 200
    with pytest.raises(httpx.ConnectError, match="self-signed|unable to get local issuer|certificate verify failed"):
        httpx.get(f"{running.url}/livez", timeout=SECONDS)
    with pytest.raises(httpx.RemoteProtocolError):
        httpx.get(f"{running.url.replace('https', 'http')}/livez", timeout=SECONDS)


def test_clients_show_a_certificate_where_that_is_asked_for(serve, authority):
    files = {"certificate": authority / "server.pem", "key": authority / "server.key"}
    running = serve(address=Address(port=0, client_ca=authority / "ca.pem", **files))
    running.verify = context = ssl.create_default_context(cafile=authority / "ca.pem")
    with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError, httpx.ConnectError)), running.http() as http:
        http.get("/livez")
    context.load_cert_chain(authority / "device.pem", authority / "device.key")
    with running.http() as http:
        assert http.get("/livez").status_code == 200
