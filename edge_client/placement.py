"""Where the operators of a graph really ran.

onnxruntime gives whatever a provider does not take to the CPU, and where the provider does not start at all, it gives
it everything, with no more than a line on stderr. Its own profile of a run says which provider ran what; that is
the same in every version since 1.18, while the list of a session's providers only says what was registered.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from collections import Counter
from pathlib import Path

MAX_PROFILE_BYTES = 64 << 20

Placement = Counter[tuple[str, str]]
"""How often each (provider, operator) ran; a provider that compiles parts of a graph calls each part an operator."""


def read_profile(path: Path) -> Placement:
    """The placement in a profile that onnxruntime wrote; empty when there is none or it says nothing."""
    with contextlib.suppress(OSError, ValueError, RecursionError, AttributeError, TypeError):
        if path.stat().st_size <= MAX_PROFILE_BYTES:
            events = [e["args"] for e in json.loads(path.read_bytes()) if e.get("cat") == "Node" and "args" in e]
            return Counter((e["provider"], e["op_name"]) for e in events if "provider" in e and "op_name" in e)
    return Counter()


def shortfall(placement: Placement, runtime_name: str) -> str | None:
    """Why this does not count as running on the provider, or None when it does.

    Shapes are computed on the CPU under every provider. The arithmetic of these networks is in their convolutions:
    all of them must be on the provider, and something must be where there are none.
    """
    if not placement:
        return (
            "onnxruntime's profile of a run says nothing of where it ran; is there room in TMPDIR, where it is written?"
        )
    if not any(provider == runtime_name for provider, _ in placement):
        return "onnxruntime ran no operator of the bundle on it"
    elsewhere = Counter[str]()
    for (provider, operator), count in placement.items():
        if provider != runtime_name and "Conv" in operator:
            elsewhere[provider] += count
    if not elsewhere:
        return None
    return f"of the bundle's convolutions, {', '.join(f'{n} ran on {provider}' for provider, n in elsewhere.items())}"


def share(placement: Placement, runtime_name: str) -> str:
    """How many operators ran there, for people."""
    there = sum(n for (provider, _), n in placement.items() if provider == runtime_name)
    return f"{there} of {placement.total()} operators"


class Complaints:
    """What native libraries print to stderr while this is entered; they tell their reasons nowhere else."""

    def __init__(self) -> None:
        self.text = ""

    def __enter__(self) -> Complaints:
        self._file = self._saved = None
        with contextlib.suppress(OSError):  # no stderr, or no room: then there is nothing to keep or no place for it
            self._file = tempfile.TemporaryFile()
            self._saved = os.dup(2)
            os.dup2(self._file.fileno(), 2)
        return self

    def __exit__(self, *_: object) -> None:
        if self._saved is not None:
            os.dup2(self._saved, 2)
            os.close(self._saved)
        if self._file is not None:
            self._file.seek(0)
            self.text = self._file.read(1 << 16).decode(errors="replace")
            self._file.close()

    def reason(self) -> str:
        """The first reason in it, such as a library that is missing; empty when there is none."""
        found = re.search(r"with error: ([^\n\x1b]+)", self.text)
        return found.group(1).strip()[:200] if found else ""
