"""collafuse keys, export-client --sign and finish --trust, as a site and a device use them."""

import json

import pytest

pytest.importorskip("cryptography", reason="the sign extra is not installed")


def test_a_site_signs_and_its_device_refuses_everything_else(call_trained, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    key, signed = tmp_path / "site.key", tmp_path / "signed.onnx"
    made = json.loads(call_trained("keys", "new", "-o", key, "--json").stdout)
    export = ("export-client", "run", "--client", "north", "-o", signed, "--sign", key, "--json")
    assert json.loads(call_trained(*export).stdout)["signed_by"] == made["key"]
    shown = json.loads(call_trained("inspect", signed, "--json").stdout)["signature"]
    assert (shown["key"], shown["signature"]) == (made["key"], "valid")
    assert "any bundle is loaded" in call_trained("keys", "list").stderr

    call_trained("keys", "pin", f"{key}.pub")
    listed = json.loads(call_trained("keys", "list", "--json").stdout)
    assert listed["keys"] == {made["key"]: "site"}
    done = call_trained("finish", signed, "north.safetensors", "-o", tmp_path / "signed")
    assert "The bundle is signed by site on 20" in done.stderr
    refused = call_trained("finish", "north.onnx", "north.safetensors", "-o", tmp_path / "unsigned", code=16)
    assert "north.onnx is not signed" in refused.stderr and not (tmp_path / "unsigned").exists()
    command = ("finish", "north.onnx", "north.safetensors", "-o", tmp_path / "unsigned", "--allow-untrusted")
    assert "Warning: --allow-untrusted" in call_trained(*command).stderr


def test_other_keys_than_the_pinned_ones(call_trained, tmp_path):
    call_trained("keys", "new", "-o", tmp_path / "stranger.key")
    command = ("finish", "north.onnx", "north.safetensors", "-o", tmp_path / "out")
    said = call_trained(*command, "--trust", tmp_path / "stranger.key.pub", code=16).stderr
    assert "stranger.key.pub" in said
    assert "no public key" in call_trained(*command, "--trust", tmp_path / "stranger.key", code=5).stderr
    assert "gone" in call_trained(*command, "--trust", tmp_path / "gone", code=5).stderr
