"""What a run was when it was measured, so that nobody takes figures of before for those of now."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from ..core.tensorfile import file_digest
from ..learning.weights import EARLY
from ..nodes.runfolder import CONFIG, RunFolder

WEIGHTS = ("server", "clients/*", "models/*")
"""Folders of nodes, and of a baseline's models."""
SAMPLING = {"sampler", "mixed_precision", "send_previous"}


def standing_of(run: RunFolder) -> str:
    """Identifies a run's models and how they sample: ``train --resume --set client.sampler.steps=24`` changes the
    second alone. Empty for what is no whole run, which whoever opens it says better."""
    if not (run.path / CONFIG).is_file():
        return ""
    config = run.read_config()
    nodes = {"server": config.server, **{f"clients/{name}": client for name, client in config.clients.items()}}
    sampling = {n: without_idle(node.model_dump(mode="json", include=SAMPLING)) for n, node in nodes.items()}
    digest = hashlib.sha256(json.dumps([config.method, sampling]).encode())
    names = ("weights.safetensors", EARLY)
    for path in sorted(path for folder in WEIGHTS for name in names for path in run.path.glob(f"{folder}/{name}")):
        digest.update(f"{path.relative_to(run.path)} {file_digest(path)}".encode())
    return digest.hexdigest()[:16]


def without_idle(node: dict[str, Any]) -> dict[str, Any]:
    """A node's settings as plain values, without autoguidance where it is off, so that what was measured before there
    was any counts."""
    if node["sampler"]["autoguidance"] == 1.0:
        del node["sampler"]["autoguidance"]
    return node
