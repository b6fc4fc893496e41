"""Reading JSON metadata that somebody else wrote: every field by name, type and range, nothing left over."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable
from typing import Any

from .errors import FileFormatError

MAX_NAMES = 4096
"""The largest number of labels in one file."""
MAX_NAME = 200
"""The longest label name, in characters."""
MAX_TEXT = 4096
"""The longest text in metadata, in characters."""

WITHOUT_JOINERS = dict.fromkeys(map(ord, "\u200c\u200d"))
"""For str.translate."""


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    seen = dict(pairs)
    if len(seen) != len(pairs):
        raise ValueError("a key occurs twice")
    return seen


def parse_json(text: str | bytes, source: str) -> dict[str, Any]:
    """A JSON object without duplicate keys. Raises FileFormatError naming the source."""
    try:
        value = json.loads(text, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(
            f"{source} carries metadata that is not valid JSON ({error}); get the file anew."
        ) from error
    if not isinstance(value, dict):
        raise FileFormatError(f"{source} carries metadata that is not a JSON object; get the file anew.")
    return value


def shown(value: object, longest: int = 80) -> str:
    """What a file holds, for a message: escaped, so that it cannot steer a terminal, and not too long."""
    text = repr(value)
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def escaped(text: str) -> str:
    """The text for a terminal: as an escape what would steer it, as it is what can be seen, and joiners."""
    return "".join(c if c.isprintable() or ord(c) in WITHOUT_JOINERS else repr(c)[1:-1] for c in text)


def shown_names(names: Iterable[str]) -> str:
    """As :func:`shown`, for several names in alphabetical order."""
    return shown(sorted(names), longest=300)[1:-1]


def is_name(value: object) -> bool:
    """Whether this may be the name of a label: a text of 1 to MAX_NAME printable characters."""
    return isinstance(value, str) and 0 < len(value) <= MAX_NAME and value.isprintable()


def is_sentence(value: object, longest: int) -> bool:
    """Whether this may be a prompt: a text of 1 to ``longest`` printable characters.

    So are joiners here, without which Persian, say, cannot be spelled: they are not seen, but steer no terminal.
    """
    return isinstance(value, str) and 0 < len(value) <= longest and value.translate(WITHOUT_JOINERS).isprintable()


def _is_finite(value: Any) -> bool:
    """Whether this is a number that a float can hold, and not true or false."""
    # A whole number in JSON may have thousands of digits, which float() and isfinite() cannot take.
    if type(value) is int:
        return abs(value) < 1 << 1023
    return type(value) is float and math.isfinite(value)


class Fields:
    """Takes the fields out of one metadata object, checking each; ``done`` refuses what is left.

    Raises FileFormatError with the field, its value and what was expected.
    """

    def __init__(self, values: dict[str, Any], source: str) -> None:
        self._values = dict(values)
        self._source = source

    def _bad(self, key: str, value: Any, expected: str) -> FileFormatError:
        return FileFormatError(
            f"{self._source}: metadata {key}={shown(value)}, expected {expected}; get the file anew."
        )

    def holds(self, key: str) -> bool:
        """Whether a field is there that has not been taken."""
        return key in self._values

    def take(self, key: str) -> Any:
        """The raw value of a field that must be there."""
        if key not in self._values:
            raise FileFormatError(f"{self._source}: metadata lacks {key!r}; get the file anew from its maker.")
        return self._values.pop(key)

    def number(
        self, key: str, *, above: float = -math.inf, at_least: float = -math.inf, at_most: float = math.inf
    ) -> float:
        """A finite number in (above, at_most] and not below at_least."""
        value = self.take(key)
        if not _is_finite(value) or not above < value <= at_most or value < at_least:
            low = f"[{at_least:g}" if at_least > above else f"({above:g}"
            raise self._bad(key, value, f"a number in {low}, {at_most:g}]")
        return float(value)

    def integer(self, key: str, *, at_least: int, at_most: int) -> int:
        """A whole number in [at_least, at_most]."""
        value = self.take(key)
        if not isinstance(value, int) or isinstance(value, bool) or not at_least <= value <= at_most:
            raise self._bad(key, value, f"a whole number from {at_least} to {at_most}")
        return value

    def boolean(self, key: str) -> bool:
        """true or false."""
        value = self.take(key)
        if not isinstance(value, bool):
            raise self._bad(key, value, "true or false")
        return value

    def text(self, key: str, *, one_of: Collection[str] | None = None) -> str:
        """A text of at most MAX_TEXT printable characters, optionally one of a given set."""
        value = self.take(key)
        if not isinstance(value, str) or len(value) > MAX_TEXT or not (value.isprintable() or value == ""):
            raise self._bad(key, value, "a short printable text")
        if one_of is not None and value not in one_of:
            raise self._bad(key, value, f"one of {', '.join(sorted(one_of))}")
        return value

    def names(self, key: str) -> tuple[str, ...]:
        """A list of at most MAX_NAMES different names; see :func:`is_name`."""
        value = self.take(key)
        ok = isinstance(value, list) and len(value) <= MAX_NAMES and all(map(is_name, value))
        if not ok or len(set(value)) != len(value):
            raise self._bad(key, value, f"at most {MAX_NAMES} different names")
        return tuple(value)

    def sentences(self, key: str, *, most: int, longest: int) -> tuple[str, ...]:
        """A list of at most so many texts; see :func:`is_sentence`."""
        value = self.take(key)
        if not (isinstance(value, list) and len(value) <= most and all(is_sentence(text, longest) for text in value)):
            raise self._bad(key, value, f"at most {most} printable texts of 1 to {longest} characters")
        return tuple(value)

    def integers(self, key: str, *, length: int, at_least: int, at_most: int) -> tuple[int, ...]:
        """A list of exactly ``length`` whole numbers."""
        value = self.take(key)
        ok = isinstance(value, list) and len(value) == length
        ok = ok and all(type(v) is int and at_least <= v <= at_most for v in value)
        if not ok:
            raise self._bad(key, value, f"{length} whole numbers from {at_least} to {at_most}")
        return tuple(value)

    def numbers(self, key: str, *, max_length: int) -> tuple[float, ...]:
        """A list of at most ``max_length`` finite numbers."""
        value = self.take(key)
        ok = isinstance(value, list) and len(value) <= max_length
        ok = ok and all(_is_finite(v) for v in value)
        if not ok:
            raise self._bad(key, value, f"at most {max_length} finite numbers")
        return tuple(float(v) for v in value)

    def texts(self, key: str, *, longest: int = 200) -> dict[str, str]:
        """An object of at most 32 printable texts of at most so many characters."""
        value = self.take(key)
        ok = isinstance(value, dict) and len(value) <= 32
        ok = ok and all(isinstance(v, str) for v in value.values())
        if not ok or not all(len(t) <= longest and t.isprintable() for t in (*value, *value.values())):
            raise self._bad(key, value, "at most 32 short printable texts")
        return dict(value)

    def nested(self, key: str) -> Fields:
        """The fields of an object inside this one."""
        value = self.take(key)
        if not isinstance(value, dict):
            raise self._bad(key, value, "an object")
        return Fields(value, f"{self._source}, {key}")

    def rest(self) -> dict[str, Any]:
        """Everything that has not been taken, unchecked, to show to a person."""
        return dict(self._values)

    def done(self) -> None:
        """Refuse fields that nobody asked for: a file holds the allowed fields and nothing else."""
        if self._values:
            raise FileFormatError(
                f"{self._source}: metadata has unknown fields {shown_names(self._values)}; "
                "the file comes from a newer version or another program. Update collafuse or get the file anew."
            )
