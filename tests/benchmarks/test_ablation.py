"""benchmarks.ablation_server: the server that the client ablation also finishes behind."""

from __future__ import annotations

from pathlib import Path

from benchmarks.ablation_server import _with_server
from benchmarks.client_ablation import MIDDLE, _config


def test_the_server_trains_as_its_client_does_but_for_steps_of_its_own():
    config = _config(Path("images"), 8, "site", MIDDLE, 640, 3e-3, 2.0)
    made = _with_server(config, "site", 20)
    assert made.server.training == config.client("site").training.model_copy(update={"steps": 20})
    assert made.server.training.learning_rate == 3e-3 and made.clients == config.clients
