"""Metrics as JSON lines, and the trackers that are opened only when they are named."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from collafuse.core.errors import RuntimeMissingError, StorageError, UsageError
from collafuse.nodes.metrics import MetricsLog

RECORD = {"step": 50, "loss": 0.25, "loss_per_sigma": {"0.5-1": 0.5, "1-2": 0.125}}


def test_each_record_is_one_line_of_json_and_a_second_log_appends(tmp_path):
    for step in (50, 100):
        log = MetricsLog(tmp_path / "node")
        log.write({**RECORD, "step": step})
        log.close()
    lines = [json.loads(line) for line in (tmp_path / "node" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [50, 100]
    assert lines[0].items() >= RECORD.items() and lines[0]["time"].endswith("+00:00")


def test_a_resumed_training_repeats_no_step_and_a_cut_line_is_dropped(tmp_path):
    log = MetricsLog(tmp_path)
    log.rewind(0)  # nothing there yet
    for step in (50, 100, 150):
        log.write({**RECORD, "step": step})
    whole = log.path.read_text()
    log.rewind(150)
    assert log.path.read_text() == whole
    log.path.write_text(whole + whole[:30])
    log.rewind(100)
    log.write({**RECORD, "step": 150})
    assert [json.loads(line)["step"] for line in log.path.read_text().splitlines()] == [50, 100, 150]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "node").write_text("a file, not a folder")
    with pytest.raises(StorageError, match=r"metrics\.jsonl"):
        MetricsLog(tmp_path / "node").write(RECORD)


def test_an_unknown_tracker_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(UsageError, match="tracker 'mlflow' is not known; use one of tensorboard, wandb"):
        MetricsLog(tmp_path, ["mlflow"])


def test_tensorboard_reads_what_was_logged(tmp_path):
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed; pip install 'collafuse[tracking]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = MetricsLog(tmp_path, ["tensorboard"])
    log.write(RECORD)
    log.close()
    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(found.Tags()["scalars"]) == {"loss", "loss_per_sigma/0.5-1", "loss_per_sigma/1-2"}
    assert [(e.step, e.value) for e in found.Scalars("loss_per_sigma/1-2")] == [(50, 0.125)]


def test_weights_and_biases_gets_what_was_logged(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="Weights & Biases is not installed; pip install 'collafuse[tracking]'")
    monkeypatch.setenv("WANDB_MODE", "offline")  # it keeps the run in the folder and logs in nowhere
    log = MetricsLog(tmp_path, ["wandb"])
    log.write(RECORD)
    log.close()
    assert list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="Weights & Biases is installed")
def test_a_tracker_that_is_not_installed_is_named_with_what_to_do(tmp_path):
    with pytest.raises(RuntimeMissingError, match=r"wandb is not installed; pip install 'collafuse\[tracking\]'"):
        MetricsLog(tmp_path, ["wandb"])


def test_importing_seeds_nothing_opens_no_connection_and_no_tracker():
    program = """
        import random, socket, sys
        import numpy, torch

        def refuse(*arguments, **options):
            raise AssertionError("a connection at import")
        socket.socket.connect = socket.getaddrinfo = refuse

        def state():
            return random.getstate(), str(numpy.random.get_state()), torch.get_rng_state().tolist()
        before = state()
        import collafuse.nodes.metrics, collafuse.learning.training, collafuse.nodes.experiment, export.writer
        assert state() == before
        assert not {"wandb", "tensorboard", "torch.utils.tensorboard"} & set(sys.modules)
    """
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], cwd=root, check=True)
