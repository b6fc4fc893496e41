"""A listener that keeps what it hears."""

from __future__ import annotations


class Heard:
    """See ``collafuse.data.listening.Listener``."""

    def __init__(self) -> None:
        self.bars: dict[str, int] = {}
        self.said: list[str] = []
        self.advanced = 0

    def bar(self, name: str, total: int) -> Heard:
        self.bars[name] = total
        return self

    def advance(self, count: int) -> None:
        self.advanced += count

    def say(self, text: str) -> None:
        self.said.append(text)
