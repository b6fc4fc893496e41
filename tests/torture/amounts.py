"""How much of each torture: a little in ``make test``, all of it in ``make torture``."""

from __future__ import annotations

from typing import Any

import pytest


def amount(short: int, full: int) -> Any:
    """Runs a test with ``amount`` at ``short``, and with the marker ``torture`` at ``full``."""
    return pytest.mark.parametrize("amount", [short, pytest.param(full, marks=pytest.mark.torture)])
