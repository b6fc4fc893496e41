"""edge_client.trust: whose bundles are loaded, and none older than one before."""

from __future__ import annotations

import pytest

from collafuse.core import bundle as bundles
from collafuse.core.errors import FileFormatError, TrustError, UsageError
from collafuse.core.signing import SigningKey, public_of
from edge_client import Finisher, doctor, trust
from edge_client.bench import bench
from tests.bundles import halving_bundle
from tests.core.test_signing import signed_bundle

pytest.importorskip("cryptography", reason="the sign extra is not installed")


@pytest.fixture
def site(tmp_path):
    """A key, and the public half of it on a device."""
    return SigningKey.new(tmp_path / "site.key"), public_of(tmp_path / "site.key")


def read(data: bytes) -> bundles.Bundle:
    return bundles.from_bytes(data, "a.onnx")


def test_a_bundle_of_a_trusted_key_is_loaded_and_said_to_be(site, tmp_path):
    key, keys = site
    (tmp_path / "a.onnx").write_bytes(signed_bundle(key))
    said: list[str] = []
    Finisher.load(tmp_path / "a.onnx", trust=keys, say=said.append)
    assert said == ["The bundle is signed by site on 2023-11-14 22:13:20 UTC."]


def test_an_unsigned_and_a_foreign_bundle_are_refused_before_they_are_loaded(site, tmp_path):
    stranger = SigningKey.new(tmp_path / "stranger.key")
    for data, what in ((halving_bundle(), "is not signed"), (signed_bundle(stranger), "which is none of the keys in")):
        (tmp_path / "a.onnx").write_bytes(data)
        with pytest.raises(TrustError, match=rf"a\.onnx .*{what}.*; finish --allow-untrusted loads it all"):
            Finisher.load(tmp_path / "a.onnx", trust=site[1])
        Finisher.load(tmp_path / "a.onnx")  # a device where no key was given loads any


def test_a_forged_bundle_is_refused(site):
    key, keys = site
    data = signed_bundle(key)
    bare = data.replace(read(data).digest.encode(), bundles.NO_DIGEST.encode())
    forged = bundles.with_digest(bare.replace(b'"steps": 3', b'"steps": 2'))
    with pytest.raises(TrustError, match=r"a\.onnx is not what .* signed; it was forged"):
        trust.require(read(forged), "a.onnx", keys)
    assert not trust.seen_file(keys).exists()


def test_an_older_bundle_is_refused_once_a_newer_one_was_accepted(site):
    key, keys = site
    older, newer = read(signed_bundle(key, at=1000)), read(signed_bundle(key, at=2000))
    trust.require(older, "a.onnx", keys)
    trust.require(newer, "a.onnx", keys)
    trust.require(newer, "a.onnx", keys)
    with pytest.raises(TrustError, match="signed on 1970-01-01 00:16:40 UTC, and one of 1970-01-01 00:33:20 UTC was"):
        trust.require(older, "a.onnx", keys)


def test_keys_in_a_folder_that_cannot_be_written_are_asked_all_the_same(site, monkeypatch):
    """Those that came with a device's system, for example."""
    key, keys = site
    monkeypatch.setattr(trust.os, "access", lambda path, mode: False)
    said = trust.require(read(signed_bundle(key, at=1000)), "a.onnx", keys)
    assert f"cannot be remembered in {keys.parent}: an older one would be loaded as well" in said
    assert not trust.seen_file(keys).exists()
    monkeypatch.undo()
    assert "remembered" not in trust.require(read(signed_bundle(key, at=1000)), "a.onnx", keys)


def test_a_user_without_a_home_has_no_keys_and_is_told_where_they_could_be(site, monkeypatch):
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setattr(trust.Path, "home", homeless)
    assert trust.keys_in_force(None) is None
    with pytest.raises(UsageError, match="no home folder to keep keys in; set XDG_CONFIG_HOME"):
        trust.pin(site[1])


def homeless():
    raise RuntimeError("Could not determine home directory.")


def test_each_client_has_times_of_its_own(site):
    key, keys = site
    trust.require(read(signed_bundle(key, at=2000)), "a.onnx", keys)
    trust.require(read(signed_bundle(key, at=1000, client="east")), "a.onnx", keys)


@pytest.mark.parametrize("text", ["", "[]", '{"a": "b"}'])
def test_times_that_were_damaged_do_not_let_an_older_bundle_in(site, text):
    key, keys = site
    trust.seen_file(keys).write_text(text)
    with pytest.raises(FileFormatError, match=r"\.seen"):
        trust.require(read(signed_bundle(key)), "a.onnx", keys)


def test_pinned_keys_add_up_and_are_in_force(site, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    key, keys = site
    assert trust.keys_in_force(None) is None
    other = SigningKey.new(tmp_path / "other.key")
    trust.pin(keys)
    assert trust.pin(public_of(tmp_path / "other.key")) == {key.public: "site", other.public: "other"}
    pinned = trust.keys_in_force(None)
    assert pinned == tmp_path / "config/collafuse/trusted-keys" and trust.keys_in_force(keys) == keys
    assert trust.require(read(signed_bundle(other)), "a.onnx", pinned).startswith("signed by other on ")


def test_what_stands_in_the_file_of_pinned_keys_stays_as_it_is(site, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    key, keys = site
    pinned = tmp_path / "config/collafuse/trusted-keys"
    pinned.parent.mkdir(parents=True)
    mine = f"# the site's key, until spring\n\n{keys.read_text().strip()}"  # an editor left no newline at the end
    pinned.write_text(mine)
    other = SigningKey.new(tmp_path / "other.key")
    trust.pin(keys)
    trust.pin(public_of(tmp_path / "other.key"))
    assert pinned.read_text() == f"{mine}\n{public_of(tmp_path / 'other.key').read_text()}"
    assert list(trust.pin(keys)) == [key.public, other.public]


def test_no_more_keys_are_pinned_than_would_be_read(site, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    _, keys = site
    many = tmp_path / "many"
    many.write_text("".join(f"collafuse-ed25519 {number:064x} site {number}\n" for number in range(680)))
    trust.pin(many)
    before = trust.pinned_file().read_bytes()
    many.write_text("".join(f"collafuse-ed25519 {number:064x} site {number}\n" for number in range(680, 780)))
    with pytest.raises(UsageError, match="remove the lines of keys that are no longer in use"):
        trust.pin(many)
    assert trust.pinned_file().read_bytes() == before and len(trust.pin(keys)) == 681


def test_doctor_and_bench_refuse_what_finishing_would_refuse(site, tmp_path, monkeypatch):
    key, keys = site
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    trust.pin(keys)
    path = tmp_path / "a.onnx"
    path.write_bytes(halving_bundle())
    checks = list(doctor.examine(path))
    refusal = next(check for check in checks if check.name == "trust")
    assert "a.onnx is not signed" in refusal.found and doctor.exit_code(checks) == TrustError.exit_code
    with pytest.raises(TrustError, match="is not signed"):
        bench(path, ["collafuse", "finish"], provider="cpu")

    path.write_bytes(signed_bundle(key))
    checks = list(doctor.examine(path))
    assert next(check for check in checks if check.name == "trust").found.startswith("signed by site on")
    assert doctor.exit_code(checks) == 0
    assert not trust.seen_file(trust.pinned_file()).exists()  # looking at a bundle does not accept it
