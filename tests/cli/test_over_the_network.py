"""From enrolment to finished pictures over HTTP, with the commands that a server, a site and a device have."""

import importlib
import json
import sys

import httpx
import pytest
from PIL import Image

import edge_client
from tests.cli.test_serve import serving, token_of

LEDGER = ("--set", "clients.north.ledger=ledger.sqlite")


def test_a_device_finishes_what_it_fetches_and_it_is_what_a_file_would_be(call_trained, tmp_path):
    (tmp_path / "token").write_text(token_of(call_trained, "sample"))
    ask = ("-n", 6, "--label", "1", "--seed", 4)
    token = ("--token-file", tmp_path / "token")
    with serving(call_trained.folder, "--accept-simulated", "--slots", "3") as (_, url):
        done = call_trained("finish", "north.onnx", "--server", url, *token, *ask, "-o", tmp_path / "web", "--json")
        call_trained("finish", "north.onnx", "--server", url, *token, *ask, "-o", tmp_path / "web", code=8)
        wrong = call_trained("finish", "north.onnx", "--server", url, *token, "--label", "9", "-o", tmp_path, code=6)
        assert "label '9' is not known; known are 0, 1, 2" in wrong.stderr
        (tmp_path / "token").write_text("collafuse_nonsense")
        denied = call_trained("finish", "north.onnx", "--server", url, *token, "-o", tmp_path / "no", code=13)
    assert "not known here; ask the server's operator" in denied.stderr
    assert json.loads(done.stdout)["images"] == 6
    call_trained("deliver", "run", "--client", "north", *ask, "--batch-size", 3, "-o", tmp_path / "file.safetensors")
    call_trained("finish", "north.onnx", tmp_path / "file.safetensors", "-o", tmp_path / "file")
    for index in range(6):
        with (
            Image.open(tmp_path / f"web/{index:06d}.png") as web,
            Image.open(tmp_path / f"file/{index:06d}.png") as file,
        ):
            assert web.tobytes() == file.tobytes()
            assert web.text == file.text  # the digest of the intermediates among it
    gone = call_trained(
        "finish", "north.onnx", "--server", url, *token, "--patience", 0, "-o", tmp_path / "no", code=14
    )
    assert "does not answer" in gone.stderr


@pytest.mark.slow
def test_labels_that_a_site_keeps_are_chosen_at_the_device_and_not_sent(call_cli, tmp_path):
    """The server refuses a request that names a label of such a site, so that it is answered proves the silence."""
    heeds_labels = ("--set", "client.training.learning_rate=0.01", "--set", "client.training.steps=40")
    call_cli("train", "digits.yaml", "-o", "run", "--set", "clients.north.share_labels=false", *heeds_labels)
    call_cli("export-client", "run", "--client", "north", "-o", "north.onnx")
    (tmp_path / "token").write_text(token_of(call_cli, "sample"))
    asked = ("deliver", "run", "--client", "north", "-n", 3, "--seed", 4, "-o", "file.safetensors")
    call_cli(*asked, "--label", "1", code=6)
    call_cli(*asked, "--batch-size", 3)
    with serving(call_cli.folder, "--accept-simulated", "--slots", "3") as (_, url):
        server = ("--server", url, "--token-file", "token", "-n", 3, "--seed", 4)
        call_cli("finish", "north.onnx", *server, "--attributes", "2, 1", "-o", "web")
    for name, options in (("file", ("--label", 2, "--label", 1)), ("plain", ())):
        call_cli("finish", "north.onnx", "file.safetensors", *options, "-o", name)
    web, file, plain = (Image.open(tmp_path / name / "000002.png") for name in ("web", "file", "plain"))
    assert web.text == file.text and web.text["collafuse:labels"] == "2, 1"
    assert web.tobytes() == file.tobytes() != plain.tobytes()
    refused = call_cli("finish", "north.onnx", "file.safetensors", "--attributes", "2,11", "-o", "no", code=6)
    assert "label '11' is not known; known are 0, 1, 2. Did you mean '1'?" in refused.stderr
    assert not (tmp_path / "no").exists()


def test_a_site_releases_to_a_server_that_learns_from_it(call_cli):
    (call_cli.folder / "token").write_text(token_of(call_cli, "release"))
    release = ("release", "digits.yaml", "--client", "north", "-o", "north.safetensors", *LEDGER)
    with serving(call_cli.folder, "--receive-only") as (_, url):
        to_server = ("--server", url, "--token-file", "token")
        call_cli(*release, "--server", url, "--new-ledger", code=2)  # no token: nothing was released
        sent = json.loads(call_cli(*release, *to_server, "--new-ledger", "--json").stdout)["sent"]
        again = call_cli(*release, *to_server, "--json")
    assert "is there already; it is sent as it is" in again.stderr
    assert json.loads(again.stdout)["sent"] == sent
    received = list((call_cli.folder / "run/server/releases").iterdir())
    assert [path.read_bytes() for path in received] == [(call_cli.folder / "north.safetensors").read_bytes()]
    call_cli("train-server", "digits.yaml", "--releases", "run/server/releases", "-o", "run")
    token = token_of(call_cli, "sample")
    with serving(call_cli.folder) as (_, url):
        headers = {"Authorization": f"Bearer {token}"}
        reply = httpx.post(f"{url}/v1/intermediates", json={"client": "north"}, headers=headers, timeout=60)
    assert reply.status_code == 200


def test_a_file_and_a_server_at_once_or_neither_are_refused(call_trained, tmp_path):
    call_trained("finish", "north.onnx", "-o", tmp_path / "out", code=2)
    both = ("north.safetensors", "--server", "https://server.example")
    call_trained("finish", "north.onnx", *both, "-o", tmp_path / "out", code=2)
    call_trained("finish", "north.onnx", "--server", "https://server.example", "-o", tmp_path / "out", code=2)


OF_A_SERVER = {"-n": 2, "--seed": 3, "--token-file": "t", "--ca": "a", "--cert": "c", "--key": "k"}


@pytest.mark.parametrize(("option", "value"), [*OF_A_SERVER.items(), ("--patience", 1)])
def test_an_option_that_only_a_server_heeds_is_not_ignored_beside_a_file(call_trained, tmp_path, option, value):
    command = ("finish", "north.onnx", "north.safetensors", "-o", tmp_path / "out")
    assert f"{option}: for --server URL only" in call_trained(*command, option, value, code=2).stderr
    assert not (tmp_path / "out").exists()


def test_a_device_without_httpx_finishes_files_and_says_what_a_server_needs(call_trained, tmp_path, monkeypatch):
    for name in ("remote", "fetching", "finishing"):
        # Set as it is, so that the package gets this very module back, not the one that is imported here meanwhile.
        monkeypatch.setattr(edge_client, name, importlib.import_module(f"edge_client.{name}"))
        monkeypatch.delitem(sys.modules, f"edge_client.{name}")
    monkeypatch.setitem(sys.modules, "httpx", None)
    call_trained("finish", "north.onnx", "north.safetensors", "-o", tmp_path / "out")
    assert (tmp_path / "out/sheet.png").is_file()
    (tmp_path / "token").write_text("collafuse_token")
    server = ("--server", "https://server.example", "--token-file", tmp_path / "token")
    stderr = call_trained("finish", "north.onnx", *server, "-o", tmp_path / "web", code=11).stderr
    assert "needs httpx" in stderr and "pip install 'httpx'" in stderr
