"""Signatures: which site made a bundle, said in the file itself.

A signed bundle has a third metadata entry, ``collafuse_signature``: a JSON object with

    key        64 hexadecimal digits   the public key (ed25519)
    signed     whole number            when, in seconds since 1970
    signature  128 hexadecimal digits  over "collafuse bundle 1", a zero byte, and the SHA-256 of the whole file with
                                       the digits of ``collafuse_sha256`` replaced by zeros, those of the signature by f

A private key is a PEM file (PKCS 8). Public keys are lines ``collafuse-ed25519 KEY NAME`` of a text file; a file of
several is a list of whom to trust. The mathematics is that of the package ``cryptography`` (extra: sign).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .atomic import refuse_existing, storage_error, write_bytes
from .errors import FileFormatError, RuntimeMissingError
from .metadata import Fields, parse_json

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

DOMAIN = b"collafuse bundle 1\0"
NO_SIGNATURE = "f" * 128
LATEST = 1 << 40
"""The latest time that a signature may say, in seconds since 1970."""
MAX_KEY_FILE_BYTES = 64 << 10
PUBLIC = "collafuse-ed25519"
HEX = re.compile(r"[0-9a-f]+")


@dataclass(frozen=True)
class Signature:
    """Who signed a bundle and when; ``message`` is what was signed, as it is in the file that was read."""

    key: str
    signed: int
    value: str
    message: bytes

    @property
    def date(self) -> str:
        """When it was signed, for people."""
        return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(self.signed))


def entry(key: str, signed: int) -> str:
    """The metadata text of a bundle that is about to be signed."""
    return json.dumps({"key": key, "signed": signed, "signature": NO_SIGNATURE}, sort_keys=True)


def message(data: bytes, no_digest: bytes) -> bytes:
    """What is signed of a bundle's bytes that carry neither digest nor signature yet."""
    if data.count(NO_SIGNATURE.encode()) != 1 or data.count(no_digest) != 1:
        raise FileFormatError("the graph holds a placeholder of the signature or the digest twice; export it again.")
    return DOMAIN + hashlib.sha256(data).digest()


def read_entry(text: bytes, without_digest: bytes, source: str) -> Signature:
    """The signature that a bundle carries, not verified. ``without_digest``: the file with the digest's zeros."""
    fields = Fields(parse_json(text, source), f"{source}, signature")
    key, value = fields.text("key"), fields.text("signature")
    signed = fields.integer("signed", at_least=0, at_most=LATEST)
    fields.done()
    for name, digits, length in (("key", key, 64), ("signature", value, 128)):
        if len(digits) != length or not HEX.fullmatch(digits):
            raise FileFormatError(f"{source} has a {name} that is not {length} digits 0-9a-f; get it anew.")
    if without_digest.count(value.encode()) != 1:
        raise FileFormatError(f"{source} holds its signature twice; refused.")
    plain = without_digest.replace(value.encode(), NO_SIGNATURE.encode())
    return Signature(key, signed, value, DOMAIN + hashlib.sha256(plain).digest())


def is_valid(signature: Signature) -> bool:
    """Whether the owner of the key signed just this file. Raises RuntimeMissingError without ``cryptography``."""
    _require_cryptography()
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(signature.key))
        key.verify(bytes.fromhex(signature.value), signature.message)
    except (InvalidSignature, ValueError):
        return False
    return True


class SigningKey:
    """A site's private key. Made by :meth:`new`, read by :meth:`read`."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private

    @property
    def public(self) -> str:
        """The public key, 64 hexadecimal digits."""
        return self._private.public_key().public_bytes_raw().hex()

    def sign(self, what: bytes) -> str:
        """128 hexadecimal digits."""
        return self._private.sign(what).hex()

    @classmethod
    def new(cls, path: Path) -> SigningKey:
        """Make a key: the private half into ``path``, which only its owner may read, the public one beside it.

        Raises OutputExistsError where either is there already, StorageError, RuntimeMissingError.
        """
        _require_cryptography()
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        public_path = public_of(path)
        refuse_existing(path, False, "another name")
        refuse_existing(public_path, False, "another name")
        made = cls(Ed25519PrivateKey.generate())
        text = made._private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        with ExitStack() as undo:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                # A part of a key is none, and would only keep the command from being given again.
                undo.callback(path.unlink, missing_ok=True)
                with os.fdopen(descriptor, "wb") as file:
                    file.write(text)
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                raise storage_error(path, error) from error
            write_bytes(public_path, f"{PUBLIC} {made.public} {path.stem}\n".encode())
            undo.pop_all()
        return made

    @classmethod
    def read(cls, path: Path) -> SigningKey:
        """A private key's file. Raises FileFormatError, RuntimeMissingError."""
        _require_cryptography()
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        try:
            private = load_pem_private_key(_read_small(path), password=None)
        except (ValueError, TypeError) as error:
            raise FileFormatError(f"{path} holds no private key; make one with collafuse keys new.") from error
        if not isinstance(private, Ed25519PrivateKey):
            raise FileFormatError(f"{path} holds another kind of key, expected ed25519; see collafuse keys new.")
        return cls(private)


def public_of(path: Path) -> Path:
    """Where the public half of a key is written."""
    return path.with_name(f"{path.name}.pub")


def read_public_keys(path: Path) -> dict[str, str]:
    """The keys of a text file with their names. Raises FileFormatError for any other line, or when there is none."""
    keys: dict[str, str] = {}
    for number, line in enumerate(_read_small(path).decode("utf-8", "replace").splitlines(), 1):
        words = line.split(maxsplit=2)
        if not words or words[0].startswith("#"):
            continue
        name = words[2] if len(words) == 3 else ""
        if len(words) < 2 or words[0] != PUBLIC or len(words[1]) != 64 or not HEX.fullmatch(words[1]):
            raise FileFormatError(f"{path}, line {number} is no public key; expected {PUBLIC}, 64 digits and a name.")
        if not name.isprintable():
            raise FileFormatError(f"{path}, line {number} has a name that cannot be shown; write another.")
        keys[words[1]] = name
    if not keys:
        raise FileFormatError(f"{path} holds no public key; expected lines as in the .pub file of collafuse keys new.")
    return keys


def _read_small(path: Path) -> bytes:
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_KEY_FILE_BYTES + 1)
    except OSError as error:
        raise FileFormatError(f"cannot read {path}: {error.strerror}; check the name of the key's file.") from error
    if len(data) > MAX_KEY_FILE_BYTES:
        raise FileFormatError(f"{path} is larger than {MAX_KEY_FILE_BYTES} bytes; expected a file of keys.")
    return data


def _require_cryptography() -> None:
    try:
        import cryptography  # noqa: F401
    except ImportError as error:
        raise RuntimeMissingError(
            "signatures need the package cryptography, which is not installed here; pip install 'collafuse[sign]'."
        ) from error
