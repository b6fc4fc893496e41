"""collafuse.evaluation.energy: what is not counted is not claimed."""

from __future__ import annotations

import pytest

from collafuse.core.errors import RuntimeMissingError
from collafuse.evaluation import energy
from tests.tiny import CPU

codecarbon = pytest.importorskip("codecarbon", reason="codecarbon is not installed")


def test_a_machine_without_counters_is_not_guessed_about(monkeypatch):
    monkeypatch.setattr("codecarbon.core.cpu.is_rapl_available", lambda: False)
    with pytest.raises(RuntimeMissingError, match="could only be assumed"):
        energy.check_counters(CPU)


def test_energy_is_divided_by_the_images_made(monkeypatch):
    # On a machine without counters codecarbon assumes a power: the same arithmetic, which is what is tested here.
    monkeypatch.setattr(energy, "SECONDS", 3.0)
    calls = []
    cpu, _ = energy.joules_per_image(lambda: calls.append(sum(range(2_000_000))))
    assert cpu is not None
    assert 0.1 < cpu * len(calls) * energy.BATCH / 3.0 < 1000  # watts of a processor
