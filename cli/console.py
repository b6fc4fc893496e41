"""Talking to people: sentences and progress on stderr, data on stdout.

rich is loaded when something is drawn: a device that finishes in the background starts without it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from collafuse.core.errors import UsageError
from collafuse.core.metadata import escaped

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

LINE_EVERY_SECONDS = 20.0
"""Without a terminal a progress bar is a line now and then."""

LARGE_BYTES = 256 << 20
"""Reading more takes seconds, on a memory card many."""


def stderr() -> Console:
    """A console on stderr; made when needed, so that a redirected stderr is honoured."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


def _stream(stream: TextIO) -> TextIO | None:
    """It, or None where it was closed when Python started; its type hides that."""
    return stream


def say(text: str) -> None:
    """A sentence for people, on stderr, as it is; nowhere where a service was started without one."""
    if _stream(sys.stderr) is not None:
        print(text, file=sys.stderr)


def say_if_large(path: Path, what: str) -> None:
    """A sentence before a file is read that takes a while, so that nobody thinks it hangs."""
    if path.is_file() and (size := path.stat().st_size) > LARGE_BYTES:
        say(f"{what} {size / 1e6:.0f} MB in {path} ...")


def emit(values: Mapping[str, Any]) -> None:
    """Data for programs: JSON on stdout. Raises UsageError where that was closed when Python started."""
    if _stream(sys.stdout) is None:
        raise UsageError("--json writes to stdout, which is closed; leave it open, or leave --json out.")
    print(json.dumps(values, indent=2))


def show(values: Mapping[str, Any]) -> None:
    """Data for people: names and values on stdout, which may be out of anybody's file."""
    width = max(map(len, values))
    for name, value in values.items():
        print(escaped(f"{name:<{width}}  {_plain(value)}"))


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {v}" for k, v in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(str, value))
    if isinstance(value, float):
        return f"{value:.6g}"
    return "-" if value is None else str(value)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on stdout."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    Console(highlight=False, width=None if sys.stdout.isatty() else 140).print(table)


class Reporter:
    """Progress bars with an estimate on a terminal, a line now and then elsewhere; one per node."""

    def __init__(self, progress: Progress | None) -> None:
        self.progress = progress

    def say(self, text: str) -> None:
        """A sentence for people, above the bars."""
        if self.progress is None:
            say(text)
        else:
            self.progress.console.print(text, markup=False)

    def observer(self, name: str) -> TrainingBar:
        """An observer of a node's training."""
        return TrainingBar(self, name)

    def bar(self, name: str, total: int) -> Bar:
        """A bar for ``total`` units of work."""
        return Bar(self.progress, name, total)


@contextmanager
def reporting() -> Iterator[Reporter]:
    """Shows progress on stderr while the block runs."""
    talk = _stream(sys.stderr)
    if talk is None or not talk.isatty():
        yield Reporter(None)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description:>14}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=stderr()) as progress:
        yield Reporter(progress)


class Bar:
    """One bar."""

    def __init__(self, progress: Progress | None, name: str, total: int, done: int = 0) -> None:
        self._progress, self._name, self._total, self._done = progress, name, total, done
        self._task = None if progress is None else progress.add_task(name, total=total, completed=done, note="")
        self._started = self._spoke = time.monotonic()
        self._first = done

    def advance(self, count: int, note: str = "") -> None:
        """``count`` more units are done."""
        self._done += count
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=self._done, note=note)
            return
        now = time.monotonic()
        finished = self._done >= self._total
        if finished or now - self._spoke > LINE_EVERY_SECONDS:
            self._spoke = now
            left = (now - self._started) / max(1, self._done - self._first) * (self._total - self._done)
            estimate = f"{now - self._started:.0f} s" if finished else f"about {left:.0f} s left"
            say(f"{self._name}: {self._done}/{self._total}, {estimate}{', ' + note if note else ''}")


class TrainingBar:
    """Watches a training; see ``collafuse.learning.observer.Observer``."""

    def __init__(self, reporter: Reporter, name: str) -> None:
        self._reporter, self._name = reporter, name
        self._bar: Bar | None = None
        self._step = 0

    def started(self, step: int, total: int) -> None:
        self._step = step
        self._bar = Bar(self._reporter.progress, self._name, total, step)

    def note(self, text: str) -> None:
        self._reporter.say(f"{self._name}: {text}")

    def logged(self, record: dict[str, Any]) -> None:
        assert self._bar is not None
        kept_back = f" ({record['validation_loss']:.4f} kept back)" if "validation_loss" in record else ""
        note = f"loss {record['loss']:.4f}{kept_back}, {record['images_per_second']:.0f} images/s"
        self._bar.advance(record["step"] - self._step, note)
        self._step = record["step"]

    def sampled(self, step: int, denoiser: Any) -> None:
        pass
