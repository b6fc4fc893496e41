"""Images kept back from a training: who they are, what they measure, and that the step which knew most is kept."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from collafuse.core.errors import ConfigError
from collafuse.learning.checkpoint import settings_that_count
from collafuse.learning.examples import TrainingData
from collafuse.learning.objective import denoising_loss
from collafuse.learning.training import Trainer
from collafuse.learning.validation import MOST_IMAGES, Validation, parted
from tests.learning.test_training import DROPPING, Interrupt, clean_data, equal, on_disk, released_data, trainer
from tests.tiny import CPU, Recorder, denoiser, training_settings

LOSSES = [0.5, 0.3, 0.4, 0.2, 0.6, 0.7]  # of six steps: the fourth is the best


def kept(share: float, count: int, seed: int = 0, groups=None) -> tuple[list[int], list[int]]:
    data = TrainingData(torch.zeros(count, 1, 1, 1), torch.zeros(count, 1), torch.zeros(count), 0.5, groups=groups)
    learned, back = parted(data, training_settings(validation=share, seed=seed))
    return learned.tolist(), back.tolist()


class Scripted(Trainer):
    """Finds what the test says on what was kept back."""

    script = LOSSES

    def _validate(self, step, averaged):
        self._validation.seen(step, self.script[step - 1], averaged)
        return {"validation_loss": self.script[step - 1]}


def scripted(folder, observer=None, **changes) -> Scripted:
    settings = training_settings(validation=0.2, **changes)
    return Scripted(denoiser(DROPPING), clean_data(), settings, folder, CPU, observer or Recorder())


# --- which images -------------------------------------------------------------------------------------------


def test_none_are_kept_back_unless_it_is_asked_for():
    assert kept(0, 5) == ([0, 1, 2, 3, 4], [])


def test_every_image_is_learned_from_or_kept_back_the_same_for_a_seed():
    learned, back = kept(0.25, 40)
    assert len(back) == 10 and sorted(learned + back) == list(range(40))
    assert kept(0.25, 40) == (learned, back) != kept(0.25, 40, seed=1)


def test_no_more_are_kept_back_than_are_worth_it():
    learned, back = kept(0.5, 10_000)
    assert len(back) == MOST_IMAGES and len(learned) == 10_000 - MOST_IMAGES


def test_images_of_a_group_stay_together():
    groups = torch.arange(40) // 8
    learned, back = kept(0.45, 40, groups=groups)
    assert len(back) == 16 and not set(groups[learned].tolist()) & set(groups[back].tolist())
    assert kept(0.25, 40, groups=torch.arange(40)) == kept(0.25, 40)
    with pytest.raises(ConfigError, match="keeps back 0, since they come in 5 groups that stay together; give"):
        kept(0.1, 40, groups=groups)


@pytest.mark.parametrize(("share", "count", "kept_back"), [(0.1, 4, 0), (0.9, 1, 1)])
def test_a_share_that_leaves_none_on_a_side_is_refused(tmp_path, share, count, kept_back):
    with pytest.raises(ConfigError, match=rf"validation={share} of {count} images keeps back {kept_back}; give a"):
        trainer(tmp_path, data=clean_data(count), validation=share)


def test_a_training_never_learns_from_what_it_keeps_back(tmp_path):
    one, other = clean_data(), clean_data()
    back = parted(one, training_settings(validation=0.2))[1]
    other.images[back] = 255 - other.images[back]
    first, second = (
        trainer(tmp_path / name, data=data, validation=0.2, sigma_data=0.5) for name, data in (("a", one), ("b", other))
    )
    first.run()
    second.run()
    assert equal(first, second)


# --- what is measured ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [clean_data(), released_data()], ids=["grey levels", "released"])
def test_the_loss_is_the_objectives_on_what_was_kept_back_at_levels_of_the_whole_range(tmp_path, data):
    one = trainer(tmp_path, data=data, validation=0.2, log_sigma_mean=0.0)
    losses, levels = [], []
    for draw in one._validation.draws():
        batch = one._noised(draw)
        levels += batch.sigma.tolist()
        estimate = lambda x, sigma, batch=batch: one.ema(x, sigma, batch.conditions)  # noqa: E731
        losses.append(
            denoising_loss(estimate, batch.z, batch.sigma_floor, batch.sigma, batch.noise, one.ema.sigma_data)
        )
        assert torch.equal(batch.conditions, data.conditions[draw.rows])
    (found,) = one._validate(1, one.ema).values()
    assert found == pytest.approx(torch.cat(losses).mean().item(), rel=1e-5) and one._validate(2, one.ema) == {
        "validation_loss": found
    }
    below_the_middle = sum(level < 1 for level in levels) / len(levels)
    low, high = (1.05 * 0.5 if data.sigma_floor[0] else 0.002), data.sigma_high
    cdf = torch.distributions.Normal(0.0, 1.6).cdf
    ends = [float(cdf(torch.tensor(math.log(level)))) for level in (low, 1.0, high)]
    expected = min(1.0, (ends[1] - ends[0]) / (ends[2] - ends[0]))
    assert len(levels) >= 512 and below_the_middle == pytest.approx(expected, abs=0.01)


def test_few_images_are_looked_at_at_several_levels_and_many_once():
    few, many = Validation(torch.arange(3), 0), Validation(torch.arange(900), 0)
    rows = torch.cat([draw.rows for draw in few.draws()])
    assert len(few) == len(rows) == 513 and rows.bincount().tolist() == [171] * 3
    assert len(many) == 900
    # A distillation takes every other place for where the client takes over: each image has both kinds.
    assert rows[::2].bincount().min() > 80 and rows[1::2].bincount().min() > 80
    uniform = torch.cat([draw.uniform for draw in many.draws()]).sort().values
    assert torch.allclose(uniform, (torch.arange(900) + 0.5) / 900)


def test_what_is_measured_does_not_depend_on_how_a_step_is_dealt_out(tmp_path):
    whole, parts = (trainer(tmp_path, data=released_data(), validation=0.3, accumulate=n) for n in (1, 4))
    assert whole._validate(1, whole.ema) == {
        "validation_loss": pytest.approx(parts._validate(1, parts.ema)["validation_loss"], rel=1e-5)
    }


def test_images_in_a_file_are_measured_alike(tmp_path):
    data = released_data()
    seen = []
    for name, one in (("memory", data), ("file", on_disk(tmp_path, data))):
        observer = Recorder()
        trainer(tmp_path / name, observer, one, validation=0.3).run()
        seen.append([record["validation_loss"] for record in observer.records])
    assert seen[0] == seen[1] and len(seen[0]) == 6


def test_a_model_that_learns_its_images_by_heart_is_told_by_it(tmp_path):
    """Random pixels have nothing in common: whatever is learned of some says nothing of others."""
    data = replace(clean_data(12), horizontal_flip=False)
    observer = Recorder()
    settings = {"steps": 100, "batch_size": 12, "learning_rate": 3e-3, "log_every": 10, "label_dropout": 0.0}
    one = trainer(
        tmp_path, observer, data, DROPPING.model_copy(update={"dropout": 0.0, "channels": 16}), validation=0.5,
        ema_halflife_images=100, **settings
    )  # fmt: skip
    one.run()
    losses = [(record["loss"], record["validation_loss"]) for record in observer.records]
    assert losses[-1][0] < 0.6 * losses[0][0]
    assert one.step_kept < 100 and losses[-1][1] > 1.1 * min(loss for _, loss in losses)


# --- which step is kept -------------------------------------------------------------------------------------


def test_the_weights_of_the_best_step_are_kept_and_it_says_which(tmp_path):
    observer = Recorder()
    one = scripted(tmp_path, observer)
    trained = one.run()
    assert one.step_kept == 4 and [record["validation_loss"] for record in observer.records] == LOSSES
    said, note = observer.notes
    assert said == "keeping back 2 of 10 images to choose the best step by"
    assert note.startswith("keeping the weights of step 4 of 6: ") and "least, 0.2; in the end it is 0.7" in note
    expected = one._validation.best.weights
    assert all(torch.equal(tensor, expected[name]) for name, tensor in trained.state_dict().items())
    assert not all(torch.equal(tensor, trained.state_dict()[name]) for name, tensor in one.ema.state_dict().items())


def test_the_last_step_is_kept_without_a_word_where_nothing_was_better(tmp_path, monkeypatch):
    monkeypatch.setattr(Scripted, "script", sorted(LOSSES, reverse=True))
    observer = Recorder()
    one = scripted(tmp_path, observer)
    trained = one.run()
    assert one.step_kept == 6 and len(observer.notes) == 1
    assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), one.ema.parameters(), strict=True))


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_a_loss_that_is_no_number_is_never_the_best(tmp_path, monkeypatch, bad):
    monkeypatch.setattr(Scripted, "script", [bad, 0.5, bad, 0.6, bad, bad])
    assert scripted(tmp_path).run() and scripted(tmp_path / "again").step_kept == 6
    one = scripted(tmp_path / "third")
    one.run()
    assert one.step_kept == 2


@pytest.mark.parametrize("at", [4, 5])
def test_a_resumed_training_keeps_what_an_uninterrupted_one_keeps(tmp_path, at):
    """Interrupted before and after the best step; the checkpoint is of the third."""
    whole = scripted(tmp_path / "whole").run()
    with pytest.raises(KeyboardInterrupt):
        scripted(tmp_path / "half", Interrupt(at)).run()
    resumed = scripted(tmp_path / "half")
    trained = resumed.run(resume=True)
    assert resumed.step_kept == 4
    assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), whole.parameters(), strict=True))


def test_the_best_step_before_the_checkpoint_is_not_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(Scripted, "script", [0.5, 0.1, 0.4, 0.2, 0.6, 0.7])
    whole = scripted(tmp_path / "whole").run()
    with pytest.raises(KeyboardInterrupt):
        scripted(tmp_path / "half", Interrupt(5)).run()
    for start in (3, 6):  # the second time everything is done already
        resumed = scripted(tmp_path / "half", observer := Recorder())
        trained = resumed.run(resume=True)
        assert observer.starts == [(start, 6)] and resumed.step_kept == 2
        assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), whole.parameters(), strict=True))


def test_a_training_from_before_there_was_a_validation_goes_on():
    without = settings_that_count(training_settings())
    assert "validation" not in without and settings_that_count(training_settings(validation=0.1)) == without | {
        "validation": 0.1
    }


def test_a_fresh_start_has_no_best(tmp_path):
    one = Validation(torch.arange(4), 0)
    one.restore({"model.weight": torch.zeros(2)})
    assert one.best is None and one.saved() == {}


def test_data_with_one_image_to_learn_from_trains(tmp_path):
    data = TrainingData(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(2, 3), torch.zeros(2), 0.5)
    one = trainer(tmp_path, data=data, validation=0.5)
    one.run()
    assert one.learned.tolist() in ([0], [1])
