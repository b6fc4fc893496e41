"""collafuse.core.signing: who made a bundle, and files of keys."""

from __future__ import annotations

import errno
import stat
import subprocess
import sys

import pytest
from onnx import helper

from collafuse.core import bundle as bundles
from collafuse.core import signing
from collafuse.core.describe import describe
from collafuse.core.errors import FileFormatError, OutputExistsError, RuntimeMissingError, StorageError
from collafuse.core.signing import SigningKey, read_public_keys
from tests.bundles import halving_bundle, halving_info, halving_model
from tests.damage import bit_flips, truncations

pytest.importorskip("cryptography", reason="the sign extra is not installed")


@pytest.fixture(scope="module")
def key(tmp_path_factory) -> SigningKey:
    return SigningKey.new(tmp_path_factory.mktemp("keys") / "site.key")


def signed_bundle(key: SigningKey, at: int = 1_700_000_000, **changes) -> bytes:
    model = halving_model()
    texts = {
        bundles.METADATA_KEY: halving_info(**changes).to_json(),
        bundles.DIGEST_KEY: bundles.NO_DIGEST,
        bundles.SIGNATURE_KEY: signing.entry(key.public, at),
    }
    helper.set_model_props(model, texts)
    return bundles.with_digest(bundles.with_signature(model.SerializeToString(), key))


def test_a_signed_bundle_says_who_and_when_and_that_is_true(key):
    signature = bundles.from_bytes(signed_bundle(key), "a.onnx").signature
    assert (signature.key, signature.signed) == (key.public, 1_700_000_000)
    assert signature.date == "2023-11-14 22:13:20 UTC"
    assert signing.is_valid(signature)


def test_an_unsigned_bundle_has_no_signature():
    assert bundles.from_bytes(halving_bundle(), "a.onnx").signature is None


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"client": "north"', b'"client": "forge"'),
        (b'"steps": 3', b'"steps": 2'),
        (b'"signed": 1700000000', b'"signed": 1900000000'),
        (b"\x00\x00\x00\x3f" * 4, b"\x00\x00\x80\x3f" * 4),  # the weights
    ],
)
def test_a_change_with_a_right_digest_is_a_forgery(key, old, new):
    data = signed_bundle(key)
    assert data.count(old) == 1
    digest = bundles.from_bytes(data, "a.onnx").digest
    forged = data.replace(digest.encode(), bundles.NO_DIGEST.encode()).replace(old, new)
    assert not signing.is_valid(bundles.from_bytes(bundles.with_digest(forged), "a.onnx").signature)


def test_a_signature_of_another_bundle_or_by_another_key_is_a_forgery(key, tmp_path):
    one, other = signed_bundle(key), signed_bundle(key, steps=2)
    value = bundles.from_bytes(other, "a.onnx").signature.value
    own, digest = bundles.from_bytes(one, "a.onnx").signature.value, bundles.from_bytes(one, "a.onnx").digest
    bare = one.replace(digest.encode(), bundles.NO_DIGEST.encode())
    moved = bundles.with_digest(bare.replace(own.encode(), value.encode()))
    assert not signing.is_valid(bundles.from_bytes(moved, "a.onnx").signature)
    stranger = SigningKey.new(tmp_path / "stranger.key")
    claimed = bundles.with_digest(bare.replace(key.public.encode(), stranger.public.encode()))
    assert not signing.is_valid(bundles.from_bytes(claimed, "a.onnx").signature)


def test_inspect_shows_the_signature_and_refuses_a_forged_one(key, tmp_path):
    path, data = tmp_path / "a.onnx", signed_bundle(key)
    path.write_bytes(data)
    assert describe(path)["signature"] == {"key": key.public, "signed": "2023-11-14 22:13:20 UTC", "signature": "valid"}
    digest = bundles.from_bytes(data, "a.onnx").digest
    forged = data.replace(digest.encode(), bundles.NO_DIGEST.encode()).replace(b'"steps": 3', b'"steps": 2')
    path.write_bytes(bundles.with_digest(forged))
    with pytest.raises(FileFormatError, match=rf"a\.onnx is not what {key.public} signed"):
        describe(path)


def test_every_truncation_and_bit_flip_of_a_signed_bundle_is_refused(key):
    data = signed_bundle(key)
    for spoiled in (*truncations(data, 60), *bit_flips(data, 200)):
        with pytest.raises(FileFormatError, match=r"^a\.onnx"):
            bundles.from_bytes(spoiled, "a.onnx")


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", '{"key": "00", "signed": 1, "signature": "ff"}', '{"key": 1, "signed": 1, "signature": 1}']
    + [
        '{"key": "%s", "signed": %s, "signature": "%s"}' % parts  # noqa: UP031
        for parts in (("a" * 64, -1, "f" * 128), ("a" * 64, 1.5, "f" * 128), ("A" * 64, 1, "f" * 128))
    ],
)
def test_a_signature_that_is_none_is_refused(text):
    model = halving_model()
    props = {bundles.METADATA_KEY: halving_info().to_json(), bundles.DIGEST_KEY: bundles.NO_DIGEST}
    helper.set_model_props(model, {**props, bundles.SIGNATURE_KEY: text})
    with pytest.raises(FileFormatError, match=r"^a\.onnx"):
        bundles.from_bytes(bundles.with_digest(model.SerializeToString()), "a.onnx")


# --- files of keys ------------------------------------------------------------------------------------------


def test_a_private_key_is_its_owners_alone_and_comes_back(tmp_path):
    made = SigningKey.new(tmp_path / "keys" / "site.key")
    assert stat.S_IMODE((tmp_path / "keys" / "site.key").stat().st_mode) == 0o600
    assert SigningKey.read(tmp_path / "keys" / "site.key").public == made.public
    assert read_public_keys(tmp_path / "keys" / "site.key.pub") == {made.public: "site"}


def test_a_key_is_never_overwritten(tmp_path):
    SigningKey.new(tmp_path / "site.key")
    (tmp_path / "site.key").rename(tmp_path / "kept")
    with pytest.raises(OutputExistsError, match=r"site\.key\.pub exists"):
        SigningKey.new(tmp_path / "site.key")
    assert not (tmp_path / "site.key").exists()


@pytest.mark.parametrize("half", ["private", "public"])
def test_a_disk_that_is_full_leaves_no_half_of_a_key(tmp_path, monkeypatch, half):
    room = iter([half == "public", False])

    def fsync(descriptor):
        if not next(room):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", fsync)
    with pytest.raises(StorageError, match=r"site\.key.*the disk is full.*Nothing was changed there"):
        SigningKey.new(tmp_path / "site.key")
    assert list(tmp_path.iterdir()) == []


def test_several_keys_with_names_and_comments_make_a_list(tmp_path):
    (tmp_path / "keys").write_text(f"# ours\n\ncollafuse-ed25519 {'a' * 64} the north\ncollafuse-ed25519 {'b' * 64}\n")
    assert read_public_keys(tmp_path / "keys") == {"a" * 64: "the north", "b" * 64: ""}


@pytest.mark.parametrize(
    "text",
    ["", "# none\n", "ssh-ed25519 AAAA me\n", f"collafuse-ed25519 {'g' * 64}\n", "collafuse-ed25519\n", "\0" * 70_000],
)
def test_a_file_that_holds_no_keys_is_refused(tmp_path, text):
    (tmp_path / "keys").write_text(text)
    with pytest.raises(FileFormatError, match=r"keys.*(no public key|larger than)"):
        read_public_keys(tmp_path / "keys")


@pytest.mark.parametrize("text", ["", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "words"])
def test_a_file_that_is_no_private_key_is_refused(tmp_path, text):
    (tmp_path / "site.key").write_text(text)
    with pytest.raises(FileFormatError, match=r"site\.key holds no private key"):
        SigningKey.read(tmp_path / "site.key")


def test_where_the_package_is_missing_the_extra_is_named(key, monkeypatch):
    signature = bundles.from_bytes(signed_bundle(key), "a.onnx").signature
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(RuntimeMissingError, match=r"cryptography, .*collafuse\[sign\]"):
        signing.is_valid(signature)


READ_WITHOUT = """
import sys
from collafuse.core import bundle
bundle.read(sys.argv[1])
print("cryptography" in sys.modules)
"""


def test_a_bundle_is_read_without_the_package(key, tmp_path):
    (tmp_path / "a.onnx").write_bytes(signed_bundle(key))
    command = [sys.executable, "-c", READ_WITHOUT, str(tmp_path / "a.onnx")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "False"
