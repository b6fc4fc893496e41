"""Metrics of a training as JSON lines, and on request to TensorBoard or Weights & Biases.

Nothing logs in or opens a connection at import; a tracker is opened when it is named and closed at the end.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib import import_module
from pathlib import Path
from typing import Any

from ..core.atomic import storage_error, write_bytes
from ..core.errors import RuntimeMissingError, UsageError

TRACKERS = ("tensorboard", "wandb")


class MetricsLog:
    """Appends records to ``folder/metrics.jsonl`` and hands them to the trackers."""

    def __init__(self, folder: Path, trackers: Sequence[str] = ()) -> None:
        self.path = folder / "metrics.jsonl"
        check_trackers(trackers)
        self._trackers = [_open_tracker(name, folder) for name in trackers]

    def write(self, record: dict[str, Any]) -> None:
        """One record; ``step`` is its position. Raises StorageError when the disk is full."""
        line = json.dumps({"time": datetime.now(timezone.utc).isoformat(timespec="seconds"), **record})
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise storage_error(self.path, error) from error
        for tracker in self._trackers:
            tracker.write(_flat(record), record["step"])

    def rewind(self, step: int) -> None:
        """Drop the records after ``step``: a training that resumes there writes them again."""
        if not self.path.exists():
            return
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if _step_of(line) <= step]
        if len(kept) < len(lines):
            write_bytes(self.path, "".join(kept).encode(), overwrite=True)

    def close(self) -> None:
        """Close the trackers."""
        for tracker in self._trackers:
            tracker.close()


def _step_of(line: str) -> float:
    """The step of a record; infinite for a line that was cut short when the machine stopped."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        return math.inf


def _flat(record: dict[str, Any]) -> dict[str, float]:
    flat: dict[str, float] = {}
    for key, value in record.items():
        if isinstance(value, dict):
            flat |= {f"{key}/{inner}": number for inner, number in value.items()}
        elif key != "step":
            flat[key] = value
    return flat


def check_trackers(names: Sequence[str]) -> None:
    """Raise UsageError for a tracker that nobody knows, RuntimeMissingError for one that is not installed."""
    for name in names:
        if name not in TRACKERS:
            raise UsageError(f"tracker {name!r} is not known; use one of {', '.join(TRACKERS)}.")
        try:
            import_module("torch.utils.tensorboard" if name == "tensorboard" else name)
        except ImportError as error:
            raise RuntimeMissingError(f"{name} is not installed; pip install 'collafuse[tracking]'.") from error


def _open_tracker(name: str, folder: Path) -> Any:
    return _TensorBoard(folder) if name == "tensorboard" else _WeightsAndBiases(folder)


class _TensorBoard:
    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"))

    def write(self, values: dict[str, float], step: int) -> None:
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)

    def close(self) -> None:
        self._writer.close()


class _WeightsAndBiases:
    def __init__(self, folder: Path) -> None:
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(project="collafuse", name=folder.name, dir=str(folder), reinit="create_new")

    def write(self, values: dict[str, float], step: int) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()
