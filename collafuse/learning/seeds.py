"""Random numbers by their place: one seed, and any number of streams that do not meet."""

from __future__ import annotations

import hashlib


def keyed_seed(seed: int, *parts: int | str) -> int:
    """A 63-bit seed from a base seed and a place, such as a step number."""
    text = "/".join(str(part) for part in (seed, *parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1
