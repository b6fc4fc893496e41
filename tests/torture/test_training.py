"""A training that is killed again and again loses at most one save interval, and ends where one ends that was not."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from collafuse.core import tensorfile
from collafuse.core.atomic import PARTIAL_PREFIX
from collafuse.core.errors import FileFormatError
from collafuse.learning.examples import TrainingData
from collafuse.learning.training import Trainer
from tests.nursery import Nursery
from tests.tiny import CPU, NETWORK, Recorder, denoiser, training_settings
from tests.torture.amounts import amount
from tests.torture.experiment import CONFIG, INTERVAL, SITES, STEPS


def node_folders(run: Path) -> list[Path]:
    return [run / "server", *(run / "clients" / name for name in SITES)]


def last_logged(folder: Path) -> int:
    """The last step that a node wrote down whole."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("\n")), default=0)


def newest_whole(folder: Path) -> int:
    """The step of the newest checkpoint that verifies."""
    for path in sorted(folder.glob("checkpoints/step-*"), reverse=True):
        try:
            return tensorfile.read(path, "checkpoint", 1).fields.integer("step", at_least=0, at_most=STEPS)
        except FileFormatError:
            continue
    return 0


def half_written(run: Path) -> set[Path]:
    return set(run.rglob(f"{PARTIAL_PREFIX}*"))


def trained_weights(run: Path) -> dict[str, bytes]:
    return {folder.name: (folder / "weights.safetensors").read_bytes() for folder in node_folders(run)}


class Killer:
    """Kills a command at a random moment, every other time when a file is half written."""

    def __init__(self, run: Path, seed: int) -> None:
        self.run, self.random = run, random.Random(seed)
        self.kills = self.inside_saves = 0

    def strike(self, nursery: Nursery, process: int, longest: float) -> int:
        """The exit code of the command, which is 0 where it was done before."""
        before, inside = half_written(self.run), self.kills % 2 == 1
        deadline = time.monotonic() + self.random.uniform(0, longest)
        while True:
            late = time.monotonic() > deadline
            if late and (not inside or half_written(self.run) - before):
                break
            if not Path(f"/proc/{process}/stat").exists() or _is_over(process):
                break
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
        code = nursery.wait()
        if code == -signal.SIGKILL:
            self.kills += 1
            self.inside_saves += bool(half_written(self.run) - before)
        return code


def _is_over(process: int) -> bool:
    """Whether a process has ended and waits to be collected."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def training(run: Path) -> tuple[object, ...]:
    return "train", "tiny.yaml", "-o", run, "--device", "cpu"


def lives(nursery: Nursery, folder: Path, kills: int) -> Iterator[tuple[Path, Killer]]:
    """Run after run, each killed until it is done; ends when there have been enough kills."""
    done = 0
    for index in range(kills + 1):
        run = folder / f"run-{index}"
        killer = Killer(run, seed=index)
        while done + killer.kills < kills:
            code = killer.strike(nursery, nursery.start(*training(run), "--resume"), longest=1.5)
            assert code in (0, -signal.SIGKILL), nursery.log.read_text()
            yield run, killer
            if code == 0:
                break
        done += killer.kills
        if done >= kills:
            assert_resumes(nursery, run)
            return


def assert_resumes(nursery: Nursery, run: Path) -> None:
    nursery.start(*training(run), "--resume")
    assert nursery.wait() == 0, nursery.log.read_text()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="watches processes as Linux shows them")
@amount(1, 50)
def test_a_training_that_is_killed_goes_on_and_ends_as_one_that_was_not(tmp_path, nursery, amount, figure):
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    inside = lost = 0
    nursery = nursery.at(tmp_path)
    runs: dict[Path, Killer] = {}
    for run, killer in lives(nursery, tmp_path, amount):
        runs[run] = killer
        for node in node_folders(run):
            lost = max(lost, last_logged(node) - newest_whole(node))
            assert lost <= INTERVAL, node
    for run in runs:
        same = tmp_path / f"{run.name}-unkilled"
        arguments = ("--releases", run / "server/releases", "--accept-simulated", "-o", same, "--device", "cpu")
        nursery.start("train-server", "tiny.yaml", *arguments)
        assert nursery.wait() == 0, nursery.log.read_text()
        assert (same / "server/weights.safetensors").read_bytes() == trained_weights(run)["server"]
    nursery.start(*training(tmp_path / "unkilled"))
    assert nursery.wait() == 0, nursery.log.read_text()
    unkilled = trained_weights(tmp_path / "unkilled")
    for run, killer in runs.items():
        inside += killer.inside_saves
        trained = trained_weights(run)
        assert all(trained[name] == unkilled[name] for name in SITES)  # a site's own images are the same each time
        assert not [path for path in half_written(run) if path.parent.name == "checkpoints"]
    kills = sum(killer.kills for killer in runs.values())
    assert kills == amount
    figure(
        f"kill -9: {kills}/{kills} resumed, {inside} of them inside a save; at most {lost} steps lost (saved every "
        f"{INTERVAL}); {len(runs)} runs bit-identical to ones that were not killed"
    )


class StopAt(Recorder):
    """Ends a training at a step, as a power cut would."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def logged(self, record: dict) -> None:
        if record["step"] == self.step:
            raise KeyboardInterrupt


def released(seed: int) -> TrainingData:
    """What a server learns from: releases at two cuts, in half precision."""
    generator = torch.Generator().manual_seed(seed)
    floor = torch.tensor([0.5, 1.0]).repeat(8)
    images = (torch.randn(16, 1, 4, 4, generator=generator) * (0.25 + floor**2).sqrt().reshape(-1, 1, 1, 1)).half()
    conditions = torch.eye(3)[torch.arange(16) % 3]
    return TrainingData(images, conditions, floor, sigma_high=80.0)


@pytest.mark.torture  # in short: tests/learning/test_training.py
def test_resumed_is_bit_identical_to_uninterrupted(tmp_path, figure):
    steps, seeds = 200, 20
    for seed in range(seeds):
        settings = training_settings(steps=steps, seed=seed, checkpoint_every=30)
        stop = random.Random(seed).randrange(31, steps)

        def trainer(folder: str, observer: Recorder, settings=settings, seed=seed) -> Trainer:
            model = denoiser(NETWORK, seed=seed)
            return Trainer(model, released(seed), settings, tmp_path / f"{folder}-{seed}", CPU, observer)

        whole = trainer("whole", Recorder())
        whole.run()
        with pytest.raises(KeyboardInterrupt):
            trainer("cut", StopAt(stop)).run()
        observer = Recorder()
        resumed = trainer("cut", observer)
        resumed.run(resume=True)
        assert 0 < observer.starts[0][0] <= stop
        for one, other in ((whole.model, resumed.model), (whole.ema, resumed.ema)):
            assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    figure(f"resumed against uninterrupted, {steps} steps: bit-identical for {seeds}/{seeds} seeds")
