"""Whose bundles a device loads: those signed by a key that was pinned here, and none older than one seen before.

A device where no key was pinned and that was given none loads any bundle that passes the other checks.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from collafuse.core import signing
from collafuse.core.atomic import write_bytes
from collafuse.core.bundle import Bundle
from collafuse.core.errors import FileFormatError, TrustError, UsageError
from collafuse.core.metadata import parse_json

MAX_SEEN_BYTES = 1 << 20
OTHERWISE = "Get one from the site that the key is of; finish --allow-untrusted loads it all the same."


def pinned_file() -> Path:
    """Where ``collafuse keys pin`` keeps keys: in XDG_CONFIG_HOME, by default ~/.config, below ``collafuse/``.

    Raises UsageError for a user without a home.
    """
    given = Path(os.environ.get("XDG_CONFIG_HOME", ""))
    try:
        return (given if given.is_absolute() else Path.home() / ".config") / "collafuse" / "trusted-keys"
    except RuntimeError as error:
        raise UsageError(
            "this user has no home folder to keep keys in; set XDG_CONFIG_HOME to a folder that stays."
        ) from error


def pin(path: Path) -> dict[str, str]:
    """Add the public keys of a file to the pinned ones and return all of them with their names.

    Lines and comments that stand there stay. Raises UsageError where the file would be larger than is ever read.
    """
    pinned = pinned_file()
    known = signing.read_public_keys(pinned) if pinned.exists() else {}
    added = {key: name for key, name in signing.read_public_keys(path).items() if known.get(key) != name}
    data = pinned.read_bytes() if known else b""
    if data and not data.endswith(b"\n"):
        data += b"\n"
    data += "".join(f"{signing.PUBLIC} {key} {name}".rstrip() + "\n" for key, name in added.items()).encode()
    if len(data) > signing.MAX_KEY_FILE_BYTES:
        raise UsageError(
            f"{pinned} would have {len(data)} bytes with {path}, of which {signing.MAX_KEY_FILE_BYTES} are read; "
            "remove the lines of keys that are no longer in use."
        )
    write_bytes(pinned, data, overwrite=True)
    return known | added


def keys_in_force(given: Path | None) -> Path | None:
    """The file of keys to hold bundles against: the one that was given, else the pinned one, else none."""
    if given is not None:
        return given
    try:
        pinned = pinned_file()
    except UsageError:  # without a home, nothing can have been pinned in it
        return None
    return pinned if pinned.exists() else None


def require(bundle: Bundle, source: str, keys: Path, *, remember: bool = True) -> str:
    """Return who signed a bundle, in words, once it is known to be trusted; remember when it was signed.

    Where the folder of the keys is not this user's to write, as on a device whose system is read-only, that cannot be
    remembered, and the words say so.

    Raises TrustError for one that is unsigned, signed by another key, changed after it was signed, or older than one
    of its kind that was accepted with these keys before; FileFormatError for files of keys that are none;
    RuntimeMissingError without ``cryptography``.
    """
    trusted, signature = signing.read_public_keys(keys), bundle.signature
    if signature is None:
        raise TrustError(f"{source} is not signed, and here only bundles of the keys in {keys} are loaded. {OTHERWISE}")
    if signature.key not in trusted:
        raise TrustError(f"{source} is signed by {signature.key}, which is none of the keys in {keys}. {OTHERWISE}")
    if not signing.is_valid(signature):
        raise TrustError(f"{source} is not what {signature.key} signed; it was forged. Get it anew.")
    unremembered = _refuse_older(bundle, signature, source, keys, remember)
    name = trusted[signature.key]
    return f"signed by {name or signature.key} on {signature.date}{unremembered}"


def seen_file(keys: Path) -> Path:
    """Where the times of accepted bundles are kept: beside the keys."""
    return keys.with_name(f"{keys.name}.seen")


def _refuse_older(bundle: Bundle, signature: signing.Signature, source: str, keys: Path, remember: bool) -> str:
    """A site may have several bundles of a client at once, one of each precision and graph; each has its own time.

    Returns what to add where the time cannot be remembered.
    """
    path = seen_file(keys)
    seen = _read_seen(path)
    kind = " ".join((signature.key, bundle.info.precision, bundle.info.graph, bundle.info.client))
    before = seen.get(kind, 0)
    if signature.signed < before:
        newer = signing.Signature(signature.key, before, "", b"").date
        raise TrustError(
            f"{source} was signed on {signature.date}, and one of {newer} was accepted here before; an older bundle "
            f"may be one that was withdrawn. {OTHERWISE}"
        )
    if signature.signed <= before:
        return ""
    if not os.access(path.parent, os.W_OK):
        return f", which cannot be remembered in {path.parent}: an older one would be loaded as well"
    if remember:
        write_bytes(path, json.dumps(seen | {kind: signature.signed}, sort_keys=True).encode(), overwrite=True)
    return ""


def _read_seen(path: Path) -> dict[str, int]:
    """What was accepted before. A damaged file is refused: whoever could empty it could bring an old bundle back."""
    if not path.exists():
        return {}
    try:
        with path.open("rb") as file:
            values = parse_json(file.read(MAX_SEEN_BYTES), str(path))
    except OSError as error:
        raise FileFormatError(f"cannot read {path}: {error.strerror}; check who may read it.") from error
    if not all(type(value) is int for value in values.values()):
        raise FileFormatError(f"{path} is damaged; restore it, or remove it to forget which bundles were accepted.")
    return values
