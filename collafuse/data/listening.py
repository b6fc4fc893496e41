"""Whoever listens while data is read: a command shows what it hears, the library prints nothing."""

from __future__ import annotations

from typing import Protocol


class Counter(Protocol):
    """Counts the units of one piece of work."""

    def advance(self, count: int) -> None:
        """``count`` more units are done."""


class Listener(Protocol):
    """Hears how far the reading is, and what was found on the way."""

    def bar(self, name: str, total: int) -> Counter:
        """A counter for a piece of work of so many units."""

    def say(self, text: str) -> None:
        """Something that a person should know, such as the files that were left out."""


class Unheard:
    """For a caller who shows nothing."""

    def bar(self, name: str, total: int) -> Counter:
        return self

    def say(self, text: str) -> None:
        pass

    def advance(self, count: int) -> None:
        pass


UNHEARD = Unheard()
