"""Tokens as the operator of a server handles them."""

import json
import shutil
import stat

import pytest

from collafuse.serving.registry import Registry


def test_a_token_is_made_listed_and_revoked(call_cli):
    text = call_cli(
        "tokens", "add", "run", "--client", "north", "--scope", "sample", "--scope", "release"
    ).stdout.strip()
    registry = Registry(call_cli.folder / "run/server/registry.sqlite")
    token = registry.authenticate(text)
    assert (token.client, token.scopes) == ("north", ("sample", "release"))
    listed = call_cli("tokens", "list", "run").stdout
    assert token.id in listed and "sample, release" in listed and "valid" in listed
    assert text not in listed
    call_cli("tokens", "revoke", "run", token.id)
    rows = json.loads(call_cli("tokens", "list", "run", "--json").stdout)["tokens"]
    assert [(row["client"], row["status"]) for row in rows] == [("north", "revoked")]
    call_cli("tokens", "revoke", "run", "beef", code=2)


def test_a_token_file_is_its_owners_alone_and_never_replaced(call_cli):
    add = ("tokens", "add", "run", "--client", "north", "--scope", "sample", "-o", "north.token")
    shown = call_cli(*add)
    path = call_cli.folder / "north.token"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    text = path.read_text().strip()
    assert text not in shown.stdout + shown.stderr
    registry = Registry(call_cli.folder / "run/server/registry.sqlite")
    assert registry.authenticate(text).client == "north"
    call_cli(*add, code=8)
    assert len(registry.tokens()) == 1


def test_a_token_that_cannot_be_kept_is_not_made(call_cli):
    call_cli("tokens", "add", "run", "--client", "a", "--scope", "sample", "-o", "nowhere/token", code=9)
    add = ("tokens", "add", "run", "--client", "a", "--scope", "sample", "-o", "token")
    call_cli(*add, "--days", 0, code=2)
    assert not (call_cli.folder / "token").exists()  # which would stand in the way of the right one
    assert Registry(call_cli.folder / "run/server/registry.sqlite").tokens() == []


@pytest.mark.parametrize("command", [("list",), ("revoke", "beef")])
def test_a_run_that_is_not_there_is_named_and_not_made(call_cli, command):
    stderr = call_cli("tokens", command[0], "nowhere", *command[1:], code=5).stderr
    assert "nowhere/server/registry.sqlite does not exist" in stderr
    assert not list(call_cli.folder.iterdir())


def test_a_client_that_the_server_does_not_know_gets_no_token_to_sample(call_trained, tmp_path):
    run = tmp_path / "run"
    ours = shutil.ignore_patterns("registry.sqlite*")  # another test may have served this run
    shutil.copytree(call_trained.folder / "run/server", run / "server", ignore=ours)
    add = ("tokens", "add", run, "--client")
    stderr = call_trained(*add, "nort", "--scope", "sample", "--scope", "release", code=3).stderr
    assert "'nort'" in stderr and "Did you mean 'north'?" in stderr
    registry = Registry(run / "server/registry.sqlite")
    assert registry.tokens() == []
    assert "'west' is new" in call_trained(*add, "west", "--scope", "release").stderr  # it joins with its release
    call_trained(*add, "operator", "--scope", "admin")
    call_trained(*add, "north", "--scope", "sample")
    assert [token.client for token in registry.tokens()] == ["west", "operator", "north"]
