"""The one training loop: what a resumed training sees, what it logs, and what it leaves alone."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import os
import random
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch._inductor.config

from collafuse.config import NetworkSettings
from collafuse.core.errors import CollaFuseError, ConfigError, FileFormatError, MismatchError
from collafuse.core.rows import FileRows
from collafuse.learning.distributed import Ranks
from collafuse.learning.examples import TrainingData, batch_rows, estimate_sigma_data, to_float
from collafuse.learning.holding import Replicated
from collafuse.learning.losses import BUCKET_NAMES
from collafuse.learning.schedule import FINAL_LEARNING_RATE, learning_rate_at
from collafuse.learning.training import Trainer
from collafuse.nodes.metrics import MetricsLog
from tests.tiny import CPU, NETWORK, Recorder, denoiser, training_settings

DROPPING = NETWORK.model_copy(update={"dropout": 0.3})
MAGNITUDE = DROPPING.model_copy(update={"norm": "magnitude"})
DESIGNS = pytest.mark.parametrize("network", [DROPPING, MAGNITUDE], ids=["group", "magnitude"])


def clean_data(count: int = 10, seed: int = 0) -> TrainingData:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 1, 4, 4), generator=generator, dtype=torch.uint8)
    conditions = torch.eye(3)[torch.arange(count) % 2]
    return TrainingData(images, conditions, torch.zeros(count), sigma_high=0.5, horizontal_flip=True)


def released_data(count: int = 10, sigma_cut: float = 0.5) -> TrainingData:
    generator = torch.Generator().manual_seed(0)
    z = 0.5 + sigma_cut * torch.randn(count, 1, 4, 4, generator=generator)
    return TrainingData(z.half(), torch.eye(3)[torch.arange(count) % 2], torch.full((count,), sigma_cut), 80.0)


class Interrupt(Recorder):
    """Stops a training like Ctrl-C does, once a step has been logged."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def logged(self, record: dict[str, Any]) -> None:
        super().logged(record)
        if record["step"] == self.step:
            raise KeyboardInterrupt


def trainer(
    folder: Path,
    observer: Recorder | None = None,
    data: TrainingData | None = None,
    network: NetworkSettings = DROPPING,
    **settings: Any,
) -> Trainer:
    data = clean_data() if data is None else data
    return Trainer(denoiser(network), data, training_settings(**settings), folder, CPU, observer or Recorder())


def state(trained: Trainer) -> dict[str, torch.Tensor]:
    """Every number that a training goes on from."""
    found = {f"model.{name}": tensor for name, tensor in trained.model.state_dict().items()}
    found |= {f"ema.{name}": tensor for name, tensor in trained.ema.state_dict().items()}
    for index, moments in trained.optimizer.state_dict()["state"].items():
        found |= {f"optimizer.{index}.{name}": tensor for name, tensor in moments.items()}
    return found


def equal(one: Trainer, other: Trainer) -> bool:
    a, b = state(one), state(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def interrupted(folder: Path, at: int, **settings: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        trainer(folder, Interrupt(at), **settings).run()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    whole = trainer(tmp_path_factory.mktemp("whole"))
    whole.run()
    return whole


def on_disk(folder: Path, data: TrainingData) -> TrainingData:
    """The same data with its images left in a file."""
    array = data.images.numpy()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "images").write_bytes(array.tobytes())
    with (folder / "images").open("rb") as file:
        rows = FileRows(file, array.dtype, array.shape, source="images")
    return dataclasses.replace(data, images=rows)


@pytest.mark.parametrize("data", [clean_data(), released_data()], ids=["grey levels", "released"])
def test_images_read_from_a_file_teach_the_same_bit_for_bit(tmp_path, data):
    in_memory, from_file = Recorder(), Recorder()
    one, other = (
        trainer(tmp_path / "one", in_memory, data),
        trainer(tmp_path / "other", from_file, on_disk(tmp_path, data)),
    )
    one.run()
    other.run()
    losses = [[(r["loss"], r["loss_per_sigma"]) for r in seen.records] for seen in (in_memory, from_file)]
    assert losses[0] == losses[1] and len(losses[0]) == 6
    assert equal(one, other) and one.identity == other.identity
    assert estimate_sigma_data(data) == estimate_sigma_data(on_disk(tmp_path, data))
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("reading")]


@pytest.mark.parametrize("stop", [2, 4])
def test_a_training_from_a_file_resumes_one_from_memory(tmp_path, uninterrupted, stop):
    interrupted(tmp_path, at=stop)
    resumed = trainer(tmp_path, data=on_disk(tmp_path, clean_data()))
    resumed.run(resume=True)
    assert equal(resumed, uninterrupted)


def test_images_that_cannot_be_read_any_more_end_the_training_with_a_sentence(tmp_path):
    short = trainer(tmp_path, data=on_disk(tmp_path, clean_data()))
    os.truncate(tmp_path / "images", 40)
    with pytest.raises(FileFormatError, match="images became shorter while it was read"):
        short.run()
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("reading")]


@pytest.mark.parametrize("stop", [1, 3, 4, 5])
def test_a_resumed_training_is_bit_for_bit_the_uninterrupted_one(tmp_path, uninterrupted, stop):
    interrupted(tmp_path, at=stop)
    torch.manual_seed(stop)  # whatever state the new process is in
    observer = Recorder()
    resumed = trainer(tmp_path, observer)
    resumed.run(resume=True)
    assert observer.starts == [(3 if stop > 3 else 0, 6)]  # checkpoints are written every three steps
    assert equal(resumed, uninterrupted)


def test_a_magnitude_preserving_training_resumes_bit_for_bit_too(tmp_path):
    whole = trainer(tmp_path / "whole", network=MAGNITUDE)
    whole.run()
    interrupted(tmp_path / "resumed", at=4, network=MAGNITUDE)
    resumed = trainer(tmp_path / "resumed", network=MAGNITUDE)
    resumed.run(resume=True)
    assert equal(resumed, whole)


def test_it_resumes_from_the_newest_checkpoint_that_is_whole(tmp_path, uninterrupted):
    interrupted(tmp_path, at=5, checkpoint_every=2)
    newest = tmp_path / "checkpoints" / "step-00000004.safetensors"
    newest.write_bytes(newest.read_bytes()[:-100])
    observer = Recorder()
    resumed = trainer(tmp_path, observer, checkpoint_every=2)
    resumed.run(resume=True)
    assert observer.starts == [(2, 6)] and str(newest) in observer.notes[0]
    assert equal(resumed, uninterrupted)


def test_resuming_a_finished_training_changes_nothing(tmp_path, uninterrupted):
    trainer(tmp_path).run()
    observer = Recorder()
    again = trainer(tmp_path, observer)
    again.run(resume=True)
    assert observer.starts == [(6, 6)] and not observer.records
    assert equal(again, uninterrupted)


def test_without_resume_a_training_starts_anew(tmp_path, uninterrupted):
    interrupted(tmp_path, at=4)
    observer = Recorder()
    anew = trainer(tmp_path, observer)
    anew.run()
    assert observer.starts == [(0, 6)] and equal(anew, uninterrupted)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"learning_rate": 1e-4}, "configuration"),
        ({"seed": 1}, "configuration"),
        ({"data": clean_data(seed=1)}, "data"),
        ({"data": released_data()}, "data"),
    ],
)
def test_resuming_with_other_settings_or_data_is_refused(tmp_path, change, what):
    interrupted(tmp_path, at=4)
    with pytest.raises(MismatchError, match=f"another {what}"):
        trainer(tmp_path, **change).run(resume=True)


def test_resuming_at_another_scale_of_the_data_is_refused(tmp_path):
    # Preconditioning belongs to the weights: a warm start brings the teacher's scale, a start without one its own.
    interrupted(tmp_path, at=4)
    other = denoiser(DROPPING)
    other.sigma_data = 0.4
    with pytest.raises(MismatchError, match="another configuration"):
        Trainer(other, clean_data(), training_settings(), tmp_path, CPU, Recorder()).run(resume=True)


def test_training_leaves_all_global_random_numbers_alone(tmp_path):
    def states() -> tuple[Any, ...]:
        return torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())  # noqa: NPY002

    before = states()
    trainer(tmp_path).run()
    assert states() == before


def test_another_seed_gives_another_training(tmp_path, uninterrupted):
    other = trainer(tmp_path, seed=1)
    other.run()
    assert not equal(other, uninterrupted)


def test_the_learning_rate_rises_in_a_line_and_falls_along_a_cosine():
    settings = training_settings(steps=1100, warmup_steps=100, learning_rate=2e-3)
    rate = [learning_rate_at(step, settings) / 2e-3 for step in (0, 49, 99, 100, 600, 1099, 1100)]
    middle = (1 + FINAL_LEARNING_RATE) / 2
    assert rate == pytest.approx([0.01, 0.5, 1.0, 1.0, middle, FINAL_LEARNING_RATE, FINAL_LEARNING_RATE], abs=1e-5)


@pytest.mark.parametrize("warmup", [0, 6, 100])
def test_any_length_of_warm_up_keeps_the_rate_in_range(warmup):
    rates = [learning_rate_at(step, training_settings(warmup_steps=warmup, learning_rate=1.0)) for step in range(7)]
    assert all(0 < rate <= 1 for rate in rates)


@pytest.mark.parametrize(("warmup", "reached"), [(6, "0.001"), (24, "0.00025")])
def test_a_warm_up_that_fills_the_training_is_said_once_as_it_starts(tmp_path, warmup, reached):
    observer = Recorder()
    trainer(tmp_path, observer, warmup_steps=warmup).run()
    (note,) = observer.notes
    assert f"warmup_steps={warmup} for a training of 6 steps" in note and f"to {reached} of 0.001" in note


@pytest.mark.parametrize(("warmup", "resume"), [(5, False), (24, True)])
def test_a_warm_up_that_ends_or_a_training_that_is_done_needs_no_word(tmp_path, warmup, resume):
    trainer(tmp_path, warmup_steps=warmup).run()
    observer = Recorder()
    trainer(tmp_path, observer, warmup_steps=warmup).run(resume=resume)
    assert not observer.notes


class Weights(Recorder):
    """Keeps the weights after each step."""

    def logged(self, record: dict[str, Any]) -> None:
        self.history.append([p.detach().double().clone() for p in self.trainer.model.parameters()])


@pytest.mark.parametrize(("halflife", "ramps"), [(5, (0.4, 0.8, 1.2)), (0.5, (0.4, 0.5, 0.5))])
def test_the_averaged_weights_follow_their_formula(tmp_path, halflife, ramps):
    watching = Weights()
    watching.trainer = trainer(tmp_path, watching, steps=3, ema_halflife_images=halflife)
    expected = [p.detach().double().clone() for p in watching.trainer.ema.parameters()]
    watching.history = []
    ema = watching.trainer.run()
    for weights, effective in zip(watching.history, ramps, strict=True):  # 4 images a step; 10 % of those seen
        share = 0.5 ** (4 / effective)
        expected = [share * old + (1 - share) * new for old, new in zip(expected, weights, strict=True)]
    for found, value in zip(ema.parameters(), expected, strict=True):
        assert torch.allclose(found.double(), value, rtol=1e-5, atol=1e-7)


def test_the_loss_is_logged_per_noise_level(tmp_path):
    observer = Recorder()
    trainer(tmp_path, observer, data=released_data(), batch_size=64, steps=5, log_every=2).run()
    assert [r["step"] for r in observer.records] == [2, 4, 5]
    for record in observer.records:
        per_level = record["loss_per_sigma"]
        assert set(per_level) <= set(BUCKET_NAMES[4:])  # nothing at or below the release's 0.5
        assert min(per_level.values()) <= record["loss"] <= max(per_level.values())
        assert record["images_per_second"] > 0 and 0 < record["learning_rate"] <= 1e-3


def test_what_is_logged_is_valid_json(tmp_path):
    observer = Recorder()
    trainer(tmp_path, observer).run()
    log = MetricsLog(tmp_path)
    for record in observer.records:
        log.write(record)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line, parse_constant=pytest.fail)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]


def test_sample_sheets_come_when_due_and_at_the_end(tmp_path):
    observer = Recorder()
    trainer(tmp_path, observer, sample_every=4).run()
    assert observer.sheets == [4, 6]


@pytest.mark.parametrize(("sample_every", "gathered"), [(4, 3), (6, 2), (100, 2)])
def test_averages_are_gathered_once_for_each_sheet_and_the_early_version_and_not_again_at_the_end(
    tmp_path, monkeypatch, sample_every, gathered
):
    """Each time the ranks exchange a whole network."""
    calls, averaged = [], Replicated.averaged
    monkeypatch.setattr(Replicated, "averaged", lambda self: calls.append(self) or averaged(self))
    training = trainer(tmp_path, sample_every=sample_every)
    assert training.run() is training.ema and len(calls) == gathered
    again = trainer(tmp_path, sample_every=sample_every)
    assert again.run(resume=True) is again.ema and len(calls) == gathered + 1  # where no step is left


@pytest.mark.parametrize("log_every", [1, 5])
def test_a_loss_that_is_not_finite_stops_the_training_and_saves_no_such_weights(tmp_path, log_every):
    data = released_data()
    data.images[3] = float("inf")
    with pytest.raises(CollaFuseError, match=r"loss is .* by step \d; lower learning_rate=0\.001"):
        trainer(tmp_path, data=data, log_every=log_every, checkpoint_every=1, batch_size=10).run()
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize("at", [3, 6])
def test_weights_that_are_not_finite_are_not_saved_and_an_older_checkpoint_stays(tmp_path, at):
    training = trainer(tmp_path)
    step = training.optimizer.step

    def overflowing() -> None:
        step()
        if training.optimizer.state_dict()["state"][0]["step"] == at:
            list(training.model.parameters())[-1].data.flatten()[0] = float("inf")

    training.optimizer.step = overflowing  # the losses of this step are finite, which were computed before it
    with pytest.raises(CollaFuseError, match=rf"^2 values .* after step {at}; lower learning_rate=0\.001"):
        training.run()
    assert [path.name for path in tmp_path.rglob("*.safetensors")] == ["step-00000003.safetensors"] * (at == 6)


def test_batches_stay_above_the_floor_and_drop_labels_and_mirror_images(tmp_path):
    data = released_data(400)
    data = TrainingData(data.images, data.conditions, data.sigma_floor, 80.0, horizontal_flip=True)
    z, conditions, floor, sigma, noise = trainer(tmp_path, data=data, batch_size=400)._batch(0)
    assert (sigma >= 1.05 * floor).all() and noise.shape == z.shape
    dropped = (conditions == torch.tensor([0.0, 0.0, 1.0])).all(1)
    assert float(dropped.float().mean()) == pytest.approx(0.3, abs=0.08)
    original = to_float(data.images[batch_rows(400, 400, 0, 0)])
    mirrored = (z == original.flip(-1)).flatten(1).all(1)
    assert float(mirrored.float().mean()) == pytest.approx(0.5, abs=0.08)
    assert (z == original).flatten(1).all(1)[~mirrored].all()


def test_training_leaves_the_data_as_they_were(tmp_path):
    data = clean_data()
    before = copy.deepcopy(data)
    trainer(tmp_path, data=data).run()
    assert data.digest() == before.digest()


# --- how a step is computed ---------------------------------------------------------------------------------


@DESIGNS
def test_blocks_that_are_computed_again_learn_the_same_and_keep_less(tmp_path, network):
    kept, trained = {}, {}

    def remember(recompute: bool) -> Any:
        kept[recompute] = 0

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            kept[recompute] += tensor.nbytes
            return tensor

        return torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)

    for recompute in (False, True):
        trained[recompute] = trainer(tmp_path / str(recompute), network=network, recompute=recompute)
        with remember(recompute):
            trained[recompute].run()
    assert equal(trained[True], trained[False])  # with dropout, whose masks are drawn again
    assert kept[True] < 0.6 * kept[False]


def test_a_training_goes_on_with_another_manner_of_computing_a_step(tmp_path):
    interrupted(tmp_path, at=4)
    observer = Recorder()
    trainer(tmp_path, observer, accumulate=2, recompute=True).run(resume=True)
    assert observer.starts == [(3, 6)]


def test_parts_that_do_not_divide_a_batch_are_refused(tmp_path):
    with pytest.raises(ValueError, match="accumulate=3 does not divide the 4 images of a step; use a divisor"):
        training_settings(accumulate=3)
    settings = training_settings(accumulate=4)
    with pytest.raises(ConfigError, match="accumulate=4 does not divide the 2 images of a step in each process"):
        Trainer(denoiser(), released_data(), settings, tmp_path, CPU, Recorder(), ranks=Ranks(0, 2))


def test_where_compiling_fails_training_goes_on_and_says_so(tmp_path, uninterrupted):
    observer = Recorder()
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}):
        plain = trainer(tmp_path, observer, compile=True)
        plain.run()
    assert equal(plain, uninterrupted)
    (note,) = observer.notes
    assert "training.compile=true does not work here and is left out: " in note


@pytest.mark.torture
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.parametrize(("norm", "how"), [("group", True), ("magnitude", True), ("group", "graphs")])
def test_a_compiled_training_learns_what_a_plain_one_does(tmp_path, norm, how):
    observers = Recorder(), Recorder()
    network = NETWORK.model_copy(update={"norm": norm})
    for observer, compiled in zip(observers, (False, how), strict=True):
        trainer(tmp_path / str(compiled), observer, network=network, compile=compiled).run()
    assert not observers[1].notes
    losses = [[record["loss"] for record in observer.records] for observer in observers]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_recorded_training_is_for_one_batch_in_one_process(tmp_path):
    with pytest.raises(ValueError, match=r"compile=graphs replays one batch and training.accumulate=2"):
        training_settings(compile="graphs", accumulate=2)
    with pytest.raises(ConfigError, match=r"compile=graphs is for one process, here are 2"):
        settings = training_settings(compile="graphs")
        Trainer(denoiser(), released_data(), settings, tmp_path, CPU, Recorder(), ranks=Ranks(0, 2))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("compiled", [True, "graphs"])
def test_a_compiled_training_on_cuda_learns_what_a_plain_one_does(tmp_path, compiled):
    losses = []
    for how in (False, compiled):
        observer, settings = Recorder(), training_settings(compile=how, mixed_precision=False)
        Trainer(denoiser(), released_data(), settings, tmp_path / str(how), torch.device("cuda"), observer).run()
        assert not observer.notes
        losses.append([record["loss"] for record in observer.records])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_training_on_cuda_resumes_and_stays_finite(tmp_path):
    data, cuda = released_data(), torch.device("cuda")
    with pytest.raises(KeyboardInterrupt):
        Trainer(denoiser(DROPPING), data, training_settings(), tmp_path, cuda, Interrupt(4)).run()
    observer = Recorder()
    Trainer(denoiser(DROPPING), data, training_settings(), tmp_path, cuda, observer).run(resume=True)
    assert observer.starts == [(3, 6)] and all(math.isfinite(r["loss"]) for r in observer.records)
