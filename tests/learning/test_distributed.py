"""Training in several processes, over gloo on a CPU: what it computes, what it resumes, and how it ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from collafuse.core.atomic import write_bytes
from collafuse.core.errors import ConfigError
from collafuse.core.release import to_bytes
from collafuse.learning import distributed
from collafuse.learning.distributed import ALONE, Ranks, meeting
from tests.learning.two_ranks import KINDS, early_of, trainer
from tests.nodes.sites import NETWORK, TRAINING, release_of
from tests.tiny import CPU, Recorder

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")
ROOT = Path(__file__).parents[2]


def torchrun(*arguments: object) -> subprocess.Popen[str]:
    """Two processes of this machine, by torchrun's own launcher."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, *map(str, arguments)], env=environment, cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


class HalfWay(Recorder):
    """Stops a training a step after its first checkpoint."""

    def logged(self, record):
        super().logged(record)
        if record["step"] == self.trainer.settings.checkpoint_every + 1:
            raise KeyboardInterrupt


def leave_half_done(folder):
    """A training that one process began."""
    observer = HalfWay()
    observer.trainer = trainer(folder, observer)
    with pytest.raises(KeyboardInterrupt):
        observer.trainer.run()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The records of a training in one process."""
    observer = Recorder()
    trainer(tmp_path_factory.mktemp("alone"), observer).run()
    return observer.records


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What two processes left: trainings of their own, and those that they took over half-way from one process."""
    folder = tmp_path_factory.mktemp("ranks")
    leave_half_done(folder / "one")
    leave_half_done(folder / "parts-one")
    started = torchrun(Path(__file__).with_name("two_ranks.py"), folder)
    _, said = started.communicate(timeout=240)
    assert started.returncode == 0, said
    return folder


def curve(records, first=1):
    return [(r["step"], r["loss"], r["loss_per_sigma"]) for r in records if r["step"] >= first]


def logged(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def agrees(one, other, rel=1e-5):
    """The same steps, and losses this near each other at every level."""
    assert [step for step, _, _ in one] == [step for step, _, _ in other] and len(one) > 1
    for (_, loss, levels), (_, loss_too, levels_too) in zip(one, other, strict=True):
        assert loss == pytest.approx(loss_too, rel=rel) and levels == pytest.approx(levels_too, rel=rel)
    return True


@pytest.mark.slow
def test_two_ranks_follow_the_losses_of_one_process(folder, alone):
    assert agrees(curve(logged(folder / "two-on-0")), curve(alone))


def test_so_they_do_with_weights_that_are_brought_back_to_their_size(folder, tmp_path):
    observer = Recorder()
    trainer(tmp_path / "magnitude", observer).run()
    assert agrees(curve(logged(folder / "magnitude-on-0")), curve(observer.records))


def test_parts_of_a_batch_follow_the_losses_of_the_whole(tmp_path, alone):
    observer = Recorder()
    trainer(tmp_path, observer, accumulate=4).run()
    assert agrees(curve(observer.records), curve(alone))


def test_two_ranks_go_on_with_what_one_began(folder, alone):
    assert agrees(curve(logged(folder / "one-on-0")), curve(alone, first=21))


def test_one_process_goes_on_with_what_two_began(folder, alone):
    (folder / "two" / "checkpoints" / "step-00000040.safetensors").unlink()
    observer = Recorder()
    trainer(folder / "two", observer).run(resume=True)
    assert observer.starts == [(20, 40)]
    assert agrees(curve(observer.records), curve(alone, first=21))


# --- in parts -----------------------------------------------------------------------------------------------


def run_alone(folder, **options):
    observer = Recorder()
    trainer(folder, observer).run(**options)
    return observer


@pytest.mark.parametrize(("name", "rel"), [("parts", 1e-5), ("parts-magnitude", 1e-5), ("parts-float32", 1e-3)])
def test_ranks_that_hold_a_part_each_follow_the_losses_of_one_process(folder, tmp_path, name, rel):
    assert agrees(curve(logged(folder / f"{name}-on-0")), curve(run_alone(tmp_path / name).records), rel)


def test_two_ranks_in_parts_go_on_with_what_one_began(folder, tmp_path):
    assert agrees(curve(logged(folder / "parts-one-on-0")), curve(run_alone(tmp_path / "parts").records, first=5))


def test_one_process_goes_on_with_what_two_began_in_parts(folder, tmp_path):
    shutil.copytree(folder / "parts", tmp_path / "parts")
    (tmp_path / "parts" / "checkpoints" / "step-00000008.safetensors").unlink()
    resumed = run_alone(tmp_path / "parts", resume=True)
    assert resumed.starts == [(4, 8)]
    assert agrees(curve(resumed.records), curve(run_alone(tmp_path / "whole-parts").records, first=5))


def test_each_rank_holds_its_part_and_gets_the_whole_of_the_result(folder):
    told = {name: [json.loads((folder / f"{name}-on-{rank}.json").read_text()) for rank in (0, 1)] for name in KINDS}
    assert all(0.4 < one["held"] < 0.6 for name in KINDS if "parts" in name for one in told[name])
    assert all(one["held"] == 1 for one in told["two"])
    assert all(first["weights"] == second["weights"] for first, second in told.values())
    assert [one["sheets"] for one in told["parts"]] == [[4, 8], []]


@pytest.mark.parametrize("name", ["validation", "parts-validation"])
def test_all_ranks_keep_the_step_that_the_first_one_measured_as_the_best(folder, tmp_path, name):
    observer = Recorder()
    (one := trainer(tmp_path / name, observer)).run()
    measured = [record["validation_loss"] for record in logged(folder / f"{name}-on-0")]
    assert measured == pytest.approx([record["validation_loss"] for record in observer.records], rel=1e-4)
    told = [json.loads((folder / f"{name}-on-{rank}.json").read_text()) for rank in (0, 1)]
    best = 1 + int(np.argmin(measured))
    assert best < len(measured) and [about["step_kept"] for about in told] == [best] * 2 == [one.step_kept] * 2


@pytest.mark.parametrize(("name", "step"), [("two", 10), ("parts", 2), ("parts-one", 2)])
def test_the_first_rank_has_the_early_version_that_one_process_has(folder, tmp_path, name, step):
    (alone := trainer(tmp_path / name.removesuffix("-one"), Recorder())).run()
    first, second = (json.loads((folder / f"{name}-on-{rank}.json").read_text())["early"] for rank in (0, 1))
    assert first == pytest.approx(early_of(alone), rel=1e-5) and first[0] == step and second is None


def test_only_the_first_rank_tells_anything(folder):
    assert not (folder / "two-on-1").exists()


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_the_ranks_share_a_batch_without_gap_or_overlap(size):
    images = [i for rank in range(size) for i in range(8)[Ranks(rank, size).share(8)]]
    assert images == list(range(8))


def test_a_batch_that_cannot_be_dealt_evenly_is_refused():
    with pytest.raises(ConfigError, match="batch_size=8 cannot be dealt evenly to 3 processes; use 6"):
        Ranks(1, 3).share(8)


def test_a_process_that_nobody_launched_is_alone(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    with meeting(CPU) as (ranks, device):
        assert ranks == ALONE and ranks.leads and device == CPU
        values = torch.ones(2)
        assert ranks.total(values) is values and ranks.same(7, CPU) == 7


class SlowStore:
    """Takes its time over an answer."""

    def __init__(self):
        self.asked, self.answered = threading.Event(), False

    def add(self, key, amount):
        self.asked.set()
        time.sleep(0.2)
        self.answered = True
        return 1


def test_none_ends_while_its_sign_of_life_is_still_inside_torch(monkeypatch):
    """An interpreter that ends then aborts the process: "terminate called without an active exception"."""
    monkeypatch.setattr(distributed, "PULSE_SECONDS", 0.01)
    store = SlowStore()
    pulse = distributed._Pulse(store, Ranks(0, 2))
    pulse.start()
    assert store.asked.wait(10)
    pulse.stop()
    assert store.answered and not pulse.is_alive()


def test_a_sign_of_life_that_never_began_is_not_waited_for():
    distributed._Pulse(SlowStore(), Ranks(0, 2)).stop()


# --- the command itself -------------------------------------------------------------------------------------


@pytest.fixture
def command(tmp_path):
    """Arguments of train-server on a tiny release, in a folder of its own."""
    write_bytes(tmp_path / "releases" / "a.safetensors", to_bytes(release_of(0.5)))
    server = {"network": NETWORK, "training": TRAINING, "sampler": {"steps": 4}}
    config = {
        "data": {"dataset": "folder", "path": "images", "image_size": 4, "channels": 1},
        "server": server,
        "clients": {"a": {"cut": {"sigma": 0.5}}},
    }
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    run = ("--releases", tmp_path / "releases", "-o", tmp_path / "run", "--device", "cpu", "--json")
    return ("-m", "cli", "train-server", tmp_path / "config.yaml", *run)


def test_the_command_trains_on_two_ranks_and_one_of_them_speaks(command, tmp_path):
    started = torchrun(*command)
    printed, said = started.communicate(timeout=240)
    assert started.returncode == 0, said
    assert json.loads(printed)["clients"] == ["a"]  # which two of them would not be
    assert said.count("Trained the server with 8 images") == 1
    server = tmp_path / "run" / "server"
    assert (server / "weights.safetensors").exists() and len(logged(server)) == TRAINING["steps"]


@pytest.mark.torture
def test_a_dead_rank_ends_the_job_within_a_minute_and_says_so(command, tmp_path):
    started = torchrun(*command, "--set", "server.training.steps=1000000")
    try:
        metrics = tmp_path / "run" / "server" / "metrics.jsonl"
        deadline = time.monotonic() + 240
        while not metrics.exists() and time.monotonic() < deadline and started.poll() is None:
            time.sleep(0.1)
        assert metrics.exists()
        os.kill(process_of_rank(1, started.pid), signal.SIGKILL)
        since = time.monotonic()
        _, said = started.communicate(timeout=60)
    finally:
        started.kill()
    assert started.returncode != 0 and time.monotonic() - since < 60
    assert "error: rank 0: " in said and "--resume" in said and "Signal 9 (SIGKILL)" in said


def process_of_rank(rank: int, launcher: int) -> int:
    """The launcher's child with this rank in its environment."""
    for children in Path(f"/proc/{launcher}/task").glob("*/children"):
        for child in children.read_text().split():
            if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
                return int(child)
    raise AssertionError(f"no process of rank {rank} below {launcher}")
