"""How reading data tells its caller how far it is; a command shows it, the library prints nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Counter(Protocol):
    """Counts the units of one piece of work."""

    def advance(self, count: int) -> None:
        """``count`` more units are done."""


Progress = Callable[[str, int], Counter]
"""Makes a counter for a piece of work by its name and its number of units."""


class _Unseen:
    def advance(self, count: int) -> None:
        pass


def unseen(name: str, total: int) -> Counter:
    """Counts nothing: for a caller who shows nothing."""
    return _Unseen()
