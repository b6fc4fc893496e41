"""Autoguidance: the early version that a training keeps, its file, and what both make together."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from collafuse.core.errors import ConfigError, FileFormatError, MismatchError
from collafuse.learning import training as loop
from collafuse.learning import weights
from collafuse.learning.autoguidance import AutoGuided, Early
from collafuse.learning.weights import TrainedModel
from tests.learning.test_training import DESIGNS, interrupted, trainer
from tests.learning.test_validation import scripted
from tests.tiny import NETWORK, Recorder, denoiser


class Snapshots(Recorder):
    """Keeps the averaged weights of every step that is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = {}

    def sampled(self, step, denoiser):
        self.weights[step] = {name: tensor.clone() for name, tensor in denoiser.state_dict().items()}


def same(state, other) -> bool:
    return state.keys() == other.keys() and all(torch.equal(state[name], other[name]) for name in state)


def with_early(seed: int = 1, **changes) -> TrainedModel:
    model = TrainedModel(denoiser(), "server", 0.5, 80.0, 40, early=Early(denoiser(seed=seed), 10))
    return dataclasses.replace(model, **changes)


# --- what a training keeps ----------------------------------------------------------------------------------


@DESIGNS
@pytest.mark.parametrize(("steps", "early"), [(6, 2), (8, 2), (9, 2), (10, 2), (4, 1)])
def test_the_averages_of_a_quarter_of_the_training_are_its_early_version(tmp_path, network, steps, early):
    seen = Snapshots()
    training = trainer(tmp_path, seen, network=network, steps=steps, sample_every=1)
    final = training.run()
    assert training.early.steps == early and same(training.early.denoiser.state_dict(), seen.weights[early])
    assert not same(final.state_dict(), seen.weights[early])


def test_keeping_it_changes_nothing_else(tmp_path, uninterrupted_averages):
    seen = Snapshots()
    assert same(trainer(tmp_path, seen).run().state_dict(), uninterrupted_averages)
    assert seen.sheets == [] and list(seen.weights) == [6]  # no sheet of the early version


@pytest.fixture(scope="module")
def uninterrupted_averages(tmp_path_factory):
    """Of a training that keeps no early version."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "EARLY_SHARE", 0.0)
        training = trainer(tmp_path_factory.mktemp("plain"))
        final = training.run().state_dict()
    assert training.early is None
    return final


@pytest.mark.parametrize("stop", [1, 2, 3, 5])
def test_a_resumed_training_has_the_same_one(tmp_path, stop):
    whole = trainer(tmp_path / "whole", checkpoint_every=1)
    whole.run()
    interrupted(tmp_path / "parts", at=stop, checkpoint_every=1)
    resumed = trainer(tmp_path / "parts", checkpoint_every=1)
    resumed.run(resume=True)
    assert resumed.early.steps == whole.early.steps == 2
    assert same(resumed.early.denoiser.state_dict(), whole.early.denoiser.state_dict())


def test_a_training_that_is_done_gives_it_again(tmp_path):
    first = trainer(tmp_path)
    first.run()
    again = trainer(tmp_path)
    again.run(resume=True)
    assert same(again.early.denoiser.state_dict(), first.early.denoiser.state_dict())


def test_one_that_goes_on_from_before_there_were_any_has_none(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(loop, "EARLY_SHARE", 0.0)
        interrupted(tmp_path, at=4)
    resumed = trainer(tmp_path)
    with pytest.raises(ConfigError, match="autoguidance=2 needs .* quarter of the training, which is at step 3"):
        resumed.run(resume=True, ready=lambda step: resumed.early_weights.check(step, 2.0))
    resumed.run(resume=True, ready=lambda step: resumed.early_weights.check(step, 1.0))
    assert resumed.early is None


@pytest.mark.parametrize("steps", [1, 2])
def test_a_training_of_hardly_a_step_has_none(tmp_path, steps):
    training = trainer(tmp_path, steps=steps, warmup_steps=0)
    with pytest.raises(ConfigError, match="which has too few steps; set it to 1, or .* three steps or more"):
        training.early_weights.check(0, 2.0)
    training.run()
    assert training.early is None


def test_one_that_has_it_or_will_may_be_guided(tmp_path):
    interrupted(tmp_path, at=4)
    for resume in (False, True):
        training = trainer(tmp_path)
        training.run(resume=resume, ready=lambda step, training=training: training.early_weights.check(step, 2.0))
        assert training.early is not None


def test_it_is_earlier_than_the_step_that_is_kept(tmp_path):
    """With validation a step may be kept that came before."""
    late, soon = scripted(tmp_path / "late"), scripted(tmp_path / "soon")
    soon.script = [0.1, *late.script[1:]]
    for training in (late, soon):
        training.run()
    assert (late.step_kept, late.early.steps) == (4, 2)
    assert soon.step_kept == 1 and soon.early is None


# --- on disk ------------------------------------------------------------------------------------------------


def test_it_lies_beside_the_weights_and_comes_back(tmp_path):
    model, path = with_early(), tmp_path / "weights.safetensors"
    weights.save(path, model)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["early.safetensors", "weights.safetensors"]
    back = weights.load_with_early(path, "server")
    assert back.steps == 40 and same(back.denoiser.state_dict(), model.denoiser.state_dict())
    assert back.early.steps == 10 and same(back.early.denoiser.state_dict(), model.early.denoiser.state_dict())
    assert weights.load(path).early is None and weights.load(path).id == back.id
    assert weights.load(tmp_path / weights.EARLY).steps == 10  # weights as any others


def test_weights_without_one_leave_no_older_one_beside_them(tmp_path):
    path = tmp_path / "weights.safetensors"
    weights.save(path, with_early())
    weights.save(path, with_early(early=None))
    assert not (tmp_path / weights.EARLY).exists() and weights.load_with_early(path).early is None


def test_without_one_nothing_can_be_guided_by_it(tmp_path):
    path = tmp_path / "weights.safetensors"
    weights.save(path, with_early(early=None))
    said = r"autoguidance=2.5 needs an earlier version of the trained server, .*early.safetensors.*set .* to 1"
    with pytest.raises(MismatchError, match=said):
        weights.load_sampling(path, "server", 2.5)
    assert weights.load_sampling(path, "server", 1.0).steps == 40


def test_another_networks_is_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    weights.save(path, with_early())
    wider = denoiser(NETWORK.model_copy(update={"channels": 16}))
    weights.save(tmp_path / "other" / "weights.safetensors", with_early(denoiser=wider, early=None))
    (tmp_path / "other" / "weights.safetensors").replace(tmp_path / weights.EARLY)
    with pytest.raises(MismatchError, match="is no earlier version of weights.safetensors: network .*channels=16"):
        weights.load_sampling(path, "server", 2.0)
    assert weights.load_sampling(path, "server", 1.0).early is None  # where it is not needed nobody looks


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sigma_low": 3.0, "sigma_high": 7.0}, r"levels \(3.0, 7.0\), expected \(0.5, 80.0\)"),
        ({"steps": 40}, "is of step 40, no earlier than weights.safetensors of step 40"),
    ],
)
def test_one_of_another_training_is_refused(tmp_path, changes, said):
    path, other = tmp_path / "weights.safetensors", tmp_path / "other" / "weights.safetensors"
    weights.save(path, with_early())
    weights.save(other, with_early(early=None, **{"steps": 10} | changes))
    other.replace(tmp_path / weights.EARLY)
    with pytest.raises(MismatchError, match=said):
        weights.load_sampling(path, "server", 2.0)


def test_what_is_guided_by_another_is_another(tmp_path):
    ids = []
    for seed in (1, 2):
        weights.save(tmp_path / "weights.safetensors", with_early(seed))
        ids.append(weights.load_sampling(tmp_path / "weights.safetensors", "server", 2.0).id)
    assert ids[0] != ids[1]


def test_a_warm_start_takes_what_a_guided_model_learned():
    ours = denoiser(seed=5)
    weights.warm_start(ours, with_early().autoguided(2.0))
    assert same(ours.state_dict(), with_early().denoiser.state_dict())


def test_a_damaged_one_is_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    weights.save(path, with_early())
    (tmp_path / weights.EARLY).write_bytes((tmp_path / weights.EARLY).read_bytes()[:-8])
    with pytest.raises(FileFormatError, match="early.safetensors"):
        weights.load_sampling(path, "server", 2.0)


# --- both together ------------------------------------------------------------------------------------------


def inputs(count: int = 3):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 1, 4, 4, generator=generator)
    return x, torch.tensor([0.1, 1.0, 7.0])[:count], torch.eye(3)[torch.arange(count) % 3]


@pytest.mark.parametrize("weight", [1.5, 2.0, 4.0])
def test_it_goes_on_from_the_early_estimate_through_the_trained_one(weight):
    model = with_early()
    trained, early = (one(*inputs()) for one in (model.denoiser, model.early.denoiser))
    found = model.autoguided(weight).denoiser(*inputs())
    assert torch.allclose(found, early + weight * (trained - early), atol=1e-6)
    assert (found - trained).abs().max() > 0.1


def test_a_weight_of_one_is_the_model_itself():
    model = with_early()
    assert model.autoguided(1.0) is model


def test_a_guided_model_has_an_id_of_its_own_and_its_learned_denoiser():
    model = with_early(id="a")
    ids = {model.autoguided(weight).id for weight in (1.0, 2.0, 3.0)}
    assert len(ids) == 3 and model.autoguided(2.0).learned is model.denoiser
    guided = model.autoguided(2.0)
    assert (guided.steps, guided.sigma_low, guided.label_names) == (40, 0.5, ("a", "b"))


def test_both_networks_compute_in_the_precision_that_is_asked_for():
    model = with_early().autoguided(2.0).denoiser
    assert isinstance(model, AutoGuided) and not model.mixed_precision
    model.mixed_precision = "cpu"
    assert model.trained.mixed_precision == model.early.mixed_precision == "cpu"
    assert not torch.equal(model(*inputs()), with_early().autoguided(2.0).denoiser(*inputs()))
