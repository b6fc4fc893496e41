"""Checkpoints: whole or not there, the newest that verifies, of this very training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from collafuse.core.errors import FileFormatError, MismatchError
from collafuse.learning import checkpoint
from collafuse.learning.checkpoint import Identity, digest_of_settings, digest_of_tensors
from collafuse.learning.distributed import ALONE
from collafuse.learning.holding import Replicated
from tests.tiny import CPU, denoiser

HERE = Identity(config="c" * 64, data="d" * 64)


class Training:
    """A model, its average and an optimiser after one step."""

    def __init__(self, seed: int) -> None:
        self.held = Replicated(denoiser(seed=seed), CPU, ALONE)
        self.held.ema.load_state_dict(denoiser(seed=seed + 100).state_dict())
        self.optimizer = torch.optim.AdamW(self.held.model.parameters())
        self.held.model(torch.ones(1, 1, 4, 4), 0.5, torch.ones(1, 3)).sum().backward()
        self.optimizer.step()

    def save(self, folder: Path, step: int) -> Path:
        return checkpoint.save(folder, step, self.held.tensors(self.optimizer), HERE)

    def resume(self, folder: Path, identity: Identity = HERE) -> tuple[int, list[str]]:
        notes: list[str] = []
        step, tensors = checkpoint.newest(folder, identity, notes.append)
        if step:
            self.held.fill(self.optimizer, tensors)
        return step, notes


def equal(one: Training, other: Training) -> bool:
    a, b = (training.held.tensors(training.optimizer) for training in (one, other))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_everything_comes_back_exactly(tmp_path):
    one, other = Training(1), Training(2)
    one.save(tmp_path, 7)
    assert not equal(one, other)
    assert other.resume(tmp_path) == (7, [])
    assert equal(one, other)


def test_without_a_checkpoint_training_starts_at_zero(tmp_path):
    assert Training(1).resume(tmp_path / "none") == (0, [])


def test_the_newest_two_are_kept_and_nothing_half_written(tmp_path):
    training = Training(1)
    for step in (1, 20, 300):
        training.save(tmp_path, step)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000020.safetensors", "step-00000300.safetensors"]


@pytest.mark.parametrize(
    "damage", [lambda d: d[:-9], lambda d: d[:100], lambda d: b"", lambda d: d[:-1] + bytes([d[-1] ^ 1])]
)
def test_a_damaged_checkpoint_is_skipped_with_a_note_for_an_older_one(tmp_path, damage):
    older, newer, found = Training(1), Training(2), Training(3)
    older.save(tmp_path, 1)
    path = newer.save(tmp_path, 2)
    path.write_bytes(damage(path.read_bytes()))
    step, notes = found.resume(tmp_path)
    assert step == 1 and equal(found, older)
    assert len(notes) == 1 and str(path) in notes[0]


@pytest.mark.parametrize("part", ["model", "ema", "moments"])
def test_a_checkpoint_that_is_not_finite_is_skipped_for_an_older_one_and_refused_without(tmp_path, part):
    """Versions before this were refused at saving wrote such; it verifies."""
    older, newer, found = Training(1), Training(2), Training(3)
    parts = {"model": newer.held.model, "ema": newer.held.ema}
    spoilt = newer.optimizer.state if part == "moments" else parts[part].state_dict()
    last = list(spoilt.values())[-1]
    (last["exp_avg"] if part == "moments" else last).data.flatten()[0] = float("nan")
    path = newer.save(tmp_path / "alone", 2)
    with pytest.raises(FileFormatError, match=f"{path} holds 1 values that are not finite.*new run folder"):
        found.resume(tmp_path / "alone")
    older.save(tmp_path, 1)
    step, notes = found.resume(path.rename(tmp_path / path.name).parent)
    assert step == 1 and equal(found, older)
    assert len(notes) == 1 and str(tmp_path / path.name) in notes[0]


@pytest.mark.parametrize(
    ("identity", "what"),
    [
        (Identity(config="e" * 64, data=HERE.data), "configuration"),
        (Identity(config=HERE.config, data="e" * 64), "data"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused_and_nothing_loaded(tmp_path, identity, what):
    one, other, untouched = Training(1), Training(2), Training(2)
    one.save(tmp_path, 1)
    with pytest.raises(MismatchError, match=f"another {what} .*eeeeeeeeeeee.*new run folder"):
        other.resume(tmp_path, identity)
    assert equal(other, untouched)


def test_a_digest_of_settings_ignores_their_order():
    assert digest_of_settings({"a": 1, "b": (2, 3)}) == digest_of_settings({"b": (2, 3), "a": 1})
    assert digest_of_settings({"a": 1}) != digest_of_settings({"a": 2})


def test_a_digest_of_tensors_tells_values_shapes_and_types_apart():
    tensors = [torch.zeros(4), torch.ones(4), torch.zeros(2, 2), torch.zeros(4, dtype=torch.int32), torch.zeros(0)]
    assert len({digest_of_tensors(t) for t in tensors}) == len(tensors)
    assert digest_of_tensors(torch.arange(6).reshape(2, 3).T.contiguous()) == digest_of_tensors(
        torch.arange(6).reshape(2, 3).T
    )


def test_a_resumed_fused_optimiser_steps_as_the_uninterrupted_one_in_channels_last(tmp_path):
    def made():
        torch.manual_seed(0)
        model = torch.nn.Conv2d(8, 4, 3).to(memory_format=torch.channels_last)
        return model, torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)

    def step(model, optimizer, seed):
        x = torch.randn(2, 8, 5, 5, generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        model(x.to(memory_format=torch.channels_last)).square().sum().backward()
        optimizer.step()

    with torch.random.fork_rng(devices=[]):
        (model, optimizer), (other, resumed) = made(), made()
    identity = checkpoint.Identity("c", "d")
    step(model, optimizer, 1)
    checkpoint.save(tmp_path, 1, checkpoint.tensors_of(model, model, optimizer), identity)
    _, tensors = checkpoint.newest(tmp_path, identity, print)
    checkpoint.start_moments(resumed)
    with torch.no_grad():
        for name, tensor in checkpoint.tensors_of(other, other, resumed).items():
            tensor.copy_(tensors[name])
    step(model, optimizer, 2)
    step(other, resumed, 2)
    assert torch.equal(model.weight, other.weight)
