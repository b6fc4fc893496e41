"""The client ablation: what its trainings are called, and the server that it also finishes behind."""

from __future__ import annotations

from pathlib import Path

from benchmarks.ablation_server import _with_server
from benchmarks.client_ablation import MIDDLE, _config, _in_a_name


def test_the_server_trains_as_its_client_does_but_for_steps_of_its_own():
    config = _config(Path("images"), 8, "site", MIDDLE, 640, 3e-3, 2.0)
    made = _with_server(config, "site", 20)
    assert made.server.training == config.client("site").training.model_copy(update={"steps": 20})
    assert made.server.training.learning_rate == 3e-3 and made.clients == config.clients


def test_trainings_at_rates_of_one_order_have_folders_of_their_own():
    names = [_in_a_name(rate) for rate in (1e-2, 2.5e-3, 2.4e-3, 1e-5)]
    assert len(set(names)) == 4
    for name in names:
        _config(Path("images"), 8, f"width-32-{name}-640", MIDDLE, 640, 3e-3, 2.0)  # a client of that name may be
