"""Expressions over labels, such as ``Eyeglasses and not (Smiling or "Wavy Hair")``.

    expression = all {"or" all}      all = one {"and" one}      one = {"not"} (name | "(" expression ")")

A name is a run of characters without spaces, brackets and quotes, or anything between quotes. Nothing is ever
evaluated as Python.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import ConfigError

WORDS = ("and", "or", "not")
MAX_LENGTH = 4000
MAX_DEPTH = 50
_TOKEN = re.compile(r"""\s*(?:([()])|"([^"]*)"|'([^']*)'|([^\s()"']+))""")
Rows = NDArray[np.bool_]


@dataclass(frozen=True)
class Expression:
    """A parsed expression: ``names`` in the order in which they occur, ``tree`` of nested tuples."""

    text: str
    names: tuple[str, ...]
    tree: Any

    def rows(self, having: Callable[[str], Rows]) -> Rows:
        """Which images fit, bool [N], where ``having(name)`` says which carry a label."""
        return _rows(self.tree, having)


def parse(text: str) -> Expression:
    """The expression in a text. Raises ConfigError saying where it goes wrong."""
    parser = _Parser(text)
    tree = parser.either(0)
    if parser.here is not None:
        raise parser.wrong("'and', 'or' or the end")
    return Expression(text, tuple(dict.fromkeys(parser.names)), tree)


def _rows(tree: Any, having: Callable[[str], Rows]) -> Rows:
    operator, *parts = tree
    if operator == "name":
        return having(parts[0])
    rows, *others = (_rows(part, having) for part in parts)
    if operator == "not":
        return ~rows
    for other in others:
        rows = rows & other if operator == "and" else rows | other
    return rows


class _Parser:
    def __init__(self, text: str) -> None:
        self._text, self._place = text, 0
        self.names: list[str] = []
        if len(text) > MAX_LENGTH:
            raise ConfigError(f"the expression has {len(text)} characters; at most {MAX_LENGTH} are read.")
        self._next()

    def _next(self) -> None:
        """Step to the next token: ``here`` is its text, ``quoted`` whether it stood in quotes."""
        self.here: str | None = None
        if not self._text[self._place :].strip():
            return
        match = _TOKEN.match(self._text, self._place)
        if match is None:  # only a quote that never ends fits nothing
            raise ConfigError(f"the expression {self._text!r} has a quote that does not end.")
        self._place = match.end()
        self.quoted = match[2] is not None or match[3] is not None
        self.here = match[match.lastindex or 0]

    def _take(self, word: str) -> bool:
        found = self.here == word and not self.quoted
        if found:
            self._next()
        return found

    def wrong(self, expected: str) -> ConfigError:
        found = "ends" if self.here is None else f"has {self.here!r}"
        return ConfigError(
            f"the expression {self._text!r} {found} where {expected} is expected; write it as in "
            "'Eyeglasses and not (Smiling or \"Wavy Hair\")'."
        )

    def either(self, depth: int) -> Any:
        parts = [self._all(depth)]
        while self._take("or"):
            parts.append(self._all(depth))
        return parts[0] if len(parts) == 1 else ("or", *parts)

    def _all(self, depth: int) -> Any:
        parts = [self._one(depth)]
        while self._take("and"):
            parts.append(self._one(depth))
        return parts[0] if len(parts) == 1 else ("and", *parts)

    def _one(self, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise ConfigError(f"the expression is nested more than {MAX_DEPTH} deep.")
        negated = False
        while self._take("not"):
            negated = not negated
        if self._take("("):
            tree = self.either(depth + 1)
            if not self._take(")"):
                raise self.wrong("')'")
        else:
            tree = self._name()
        return ("not", tree) if negated else tree

    def _name(self) -> Any:
        if self.here is None or (not self.quoted and self.here in (*WORDS, "(", ")")):
            raise self.wrong("a name")
        self.names.append(self.here)
        tree = ("name", self.here)
        self._next()
        return tree
