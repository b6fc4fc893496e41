"""collafuse.core.loopback: what does not leave this machine."""

from __future__ import annotations

import pytest

from collafuse.core.loopback import is_loopback


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_this_machine(host):
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "127.0.0.1.example.org", "localhost.example.org", ""])
def test_anything_that_others_can_reach(host):
    assert not is_loopback(host)
