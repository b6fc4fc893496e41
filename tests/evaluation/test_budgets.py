"""The plan of a run of statistics: what a budget costs at each cut, and which cut and budget fit."""

from __future__ import annotations

import io
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from collafuse.core.errors import ConfigError
from collafuse.evaluation import budgets as modules
from collafuse.evaluation import features, trial
from collafuse.evaluation.budget_report import conclusions, drawn, picture, tables
from collafuse.evaluation.budgets import BudgetFigures, simulated
from collafuse.evaluation.cuts import cuts_for
from collafuse.evaluation.demands import Demands, best_cut
from collafuse.evaluation.plan import Settings, key_of, plan
from collafuse.evaluation.whole_run import WholeRun
from collafuse.nodes.runfolder import RunFolder
from collafuse.nodes.statistics import gaussians_of
from tests.tiny import CPU, Recorder

EXACT = BudgetFigures(
    client="north",
    sigma=1.0,
    epsilon=None,
    delta=None,
    as_sent=True,
    found=1.0,
    frechet=2.0,
    frechet_spread=0.1,
    times_low=1.0,
    times_high=1.0,
    refused="",
    floor=1.0,
    nfe=4,
    ms=2.0,
)
FREE = replace(EXACT, epsilon=8.0, delta=1e-5, as_sent=False, found=0.7, times_low=0.99, times_high=1.03, frechet=2.02)
DEAR = replace(FREE, epsilon=1.0, found=0.02, times_low=1.9, times_high=2.1, frechet=4.0)
NONE = replace(
    DEAR, epsilon=0.1, frechet=None, frechet_spread=None, times_low=None, times_high=None, refused="too few."
)
ROWS = [EXACT, FREE, DEAR, NONE]


def test_of_budgets_within_the_limit_the_one_with_the_best_images_is_chosen():
    assert best_cut(ROWS, Demands(max_epsilon=8)) == FREE and best_cut(ROWS, Demands(max_epsilon=1)) == DEAR
    assert best_cut(ROWS, Demands(max_frechet=3)) == EXACT
    assert best_cut(ROWS, Demands(max_epsilon=1, max_frechet=3)) is None
    (said,) = conclusions(ROWS, Demands(max_epsilon=8))
    assert "with a budget of epsilon 8 (1e-05)" in said and "is 2.02 (real images: 1)" in said


def test_exact_statistics_and_a_release_that_would_not_be_made_meet_no_limit_of_their_own():
    assert Demands(max_epsilon=1e9).unmet(EXACT) == ["guarantee"]
    assert best_cut([NONE], Demands(max_epsilon=8)) is None
    assert "At none of these would statistics be sent." in conclusions([NONE], Demands(max_epsilon=8))[0]


def test_a_demand_that_no_release_meets_is_named_though_one_would_not_be_made():
    """It was said to be met somewhere, since a release that would not be made fails for that alone."""
    (said,) = conclusions(ROWS, Demands(max_epsilon=0, max_frechet=1))
    assert "At none of those that would be sent is the budget small enough, or are images good enough." in said
    (said,) = conclusions(ROWS, Demands(max_epsilon=0.5))  # of the budget that is small enough none would be sent
    assert "At none of those that would be sent is the budget small enough." in said
    (said,) = conclusions(ROWS, Demands(max_epsilon=1, max_frechet=3))
    assert "each demand alone is met somewhere" in said
    assert "At none of these is the budget small enough." in conclusions([EXACT, FREE], Demands(max_epsilon=0))[0]


def test_the_plan_says_which_budgets_cost_nothing_and_which_surely_do():
    (said,) = conclusions(ROWS, Demands())
    assert "At sigma 1 noise costs nothing down to epsilon 8; pictures are surely worse at 1; no statistics" in said
    assert said.endswith("would be sent at 0.1.")
    (said,) = conclusions([EXACT, replace(FREE, times_low=0.8, times_high=1.4)], Demands())
    assert "sets spread too far to tell" in said


def test_where_no_exact_statistics_would_be_sent_sets_are_not_said_to_spread():
    """As of a label with fewer than 50 images, which noise for a budget hides."""
    refused = replace(NONE, epsilon=None, delta=None, refused="fewer than 50 images.")
    untold = replace(FREE, times_low=None, times_high=None)
    (said,) = conclusions([refused, untold], Demands())
    assert "At sigma 1 no exact statistics would be sent, beside which it could be told what noise costs." in said
    assert "spread" not in said and "no exact" not in conclusions(ROWS, Demands())[0]


def test_a_limit_on_recognition_is_answered_where_no_image_is_sent():
    assert "none can be recognised (--max-reid)" in conclusions(ROWS, Demands(max_reid=0.05))[0]
    assert "--max-reid" not in conclusions(ROWS, Demands(max_epsilon=8))[0]


def test_the_picture_and_the_table_show_every_budget_and_why_there_is_no_release():
    rows = [*ROWS, *(replace(row, client="east", sigma=3.0) for row in ROWS)]
    with Image.open(io.BytesIO(picture(rows, Demands(max_epsilon=8, max_frechet=3)))) as image:
        assert image.width > 700
    (table,) = tables(rows, Demands(max_epsilon=8), "note")
    assert [row[2] for row in table.rows[:4]] == ["none, exact, as sent", "8 (1e-05)", "1 (1e-05)", "0.1 (1e-05)"]
    assert table.rows[3][4] == "no release" and "No release with 0.1 (1e-05): too few." in table.notes
    assert [row[-1] for row in table.rows[:2]] == ["no: guarantee", "yes, the best"]
    names = [text.get_text() for text in drawn(rows, Demands()).axes[0].get_legend().get_texts()]
    assert names == ["real images", "exact statistics", "epsilon 8", "epsilon 1", "epsilon 0.1: no release"]


def test_the_chosen_budget_stands_on_the_picture_however_long_a_clients_name_is():
    long = "hospital-of-saint-bartholomew-and-the-seven-sleepers-of-ephesus"
    figure = drawn([replace(FREE, client=name) for name in (long, "north")], Demands(max_epsilon=8.0))
    figure.draw_without_rendering()
    for axis in figure.axes[:2]:
        assert axis.get_title(loc="left").endswith("epsilon 8")
        assert axis.get_tightbbox().x1 < axis.get_window_extent().x1 + 40


def test_of_statistics_any_cut_can_be_tried(statistics_run):
    run = WholeRun.open(statistics_run, CPU)
    assert cuts_for(run, "south", (0.5, 3.0, 80.0)) == [0.5, 3.0]
    ladder = cuts_for(run, "south", None)
    assert len(ladder) == 5 and ladder[0] == 0.1 and 1.5 in ladder


# --- what the server would add up ----------------------------------------------------------------------------


def test_exact_statistics_simulated_are_those_that_the_sites_sent(statistics_run):
    run = WholeRun.open(statistics_run, CPU)
    again = simulated(run, None, seed=0)
    assert again.sites == run.server.sites and again.model.label_names == run.server.model.label_names
    sent = gaussians_of(run.statistics, run.server.sites)
    for ours, theirs in zip(again.model.denoiser.gaussians, sent.denoiser.gaussians, strict=True):
        np.testing.assert_allclose(ours.eigenvalues, theirs.eigenvalues, rtol=1e-5, atol=1e-9)


def test_noise_of_a_budget_is_repeated_by_the_seed_alone(statistics_run):
    run = WholeRun.open(statistics_run, CPU)
    means = [simulated(run, 50.0, seed).model.denoiser.gaussians[-1].mean for seed in (0, 0, 1)]
    assert np.array_equal(means[0], means[1]) and not np.array_equal(means[0], means[2])
    exact = simulated(run, None, 0).model.denoiser.gaussians[-1].mean
    closer, further = (np.abs(simulated(run, e, 0).model.denoiser.gaussians[-1].mean - exact).max() for e in (100, 50))
    assert 0 < closer < further


def test_a_budget_whose_noise_leaves_too_few_images_of_a_label_makes_no_release(statistics_run):
    refused = simulated(WholeRun.open(statistics_run, CPU), 0.01, seed=0)
    assert refused.model is None and refused.refused


def test_a_site_with_too_few_images_sends_no_exact_statistics(statistics_run, monkeypatch):
    run = WholeRun.open(statistics_run, CPU)
    few = replace(run.sites["north"], train=run.sites["north"].train.take(np.arange(60)))
    refused = simulated(replace(run, sites={**run.sites, "north": few}), None, seed=0)
    assert refused.model is None and refused.refused.startswith("north: ") and "50" in refused.refused


@pytest.mark.slow
def test_a_cut_is_measured_once_for_all_budgets_and_kept(statistics_run, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "STEPS", 5)
    monkeypatch.setattr(trial.Trial, "device_cost", lambda *given: (3, 1.0))  # as of images: see test_plan
    shutil.copytree(statistics_run.path, tmp_path / "run")
    trained, drawn_by = [], []

    def observer(name):
        trained.append(name)
        return Recorder()

    made = modules.simulated
    monkeypatch.setattr("collafuse.evaluation.plan.simulated", lambda *given: drawn_by.append(given[1]) or made(*given))
    settings = Settings(cuts=(1.5,), epsilons=(100.0, 0.01), train_steps=2)
    found = plan(RunFolder(tmp_path / "run"), settings, CPU, observer)
    assert trained == ["north 1.5", "east 1.5", "south 1.5"] and drawn_by == [None, 100.0, 0.01] and not found.cuts
    exact, noised, none = found.budgets[:3]
    assert (exact.epsilon, noised.epsilon, none.epsilon) == (None, 100.0, 0.01) and exact.as_sent
    assert math.isfinite(exact.frechet + noised.frechet) and exact.times_low == exact.times_high == 1
    assert none.frechet is None and none.refused and 0 < noised.times_low < noised.times_high
    assert plan(RunFolder(tmp_path / "run"), settings, CPU, observer) == found and len(trained) == 3
    run = WholeRun.open(RunFolder(tmp_path / "run"), CPU)
    others = replace(settings, epsilons=(50.0,))
    assert key_of(run, "north", 1.5, settings, "f") != key_of(run, "north", 1.5, others, "f")


def rows_of(run, monkeypatch, **sent):
    """North's rows where sites sent statistics of these budgets; distances are 3 of what was sent, of others 2."""
    clients = dict(run.config.clients)
    for name, epsilon in sent.items():
        statistics = clients[name].statistics.model_copy(update={"epsilon": epsilon})
        clients[name] = clients[name].model_copy(update={"statistics": statistics})
    cut = modules.BudgetCut.__new__(modules.BudgetCut)
    cut.run, cut.name, cut.sigma = run, "north", 1.5
    cut.config = run.config.model_copy(update={"clients": clients})
    cut.settings = cut.config.client("north")
    monkeypatch.setattr(trial.Trial, "train", lambda *given: None)
    monkeypatch.setattr(trial.Trial, "device_cost", lambda *given: (4, 1.0))
    monkeypatch.setattr(trial.Trial, "floor", lambda *given: 1.0)
    distance = {True: [3.0] * 5, False: [2.0] * 5}
    monkeypatch.setattr(modules.BudgetCut, "_distances_from", lambda cut, one, model: distance[bool(one.sites)])
    return cut.figures([modules.Sent(epsilon, None, {}) for epsilon in (None, 1.0, 8.0, 32.0)])


def test_what_was_sent_with_a_budget_stands_beside_exact_statistics(statistics_run, monkeypatch):
    run = WholeRun.open(statistics_run, CPU)
    rows = rows_of(run, monkeypatch, north=8.0, east=8.0, south=8.0)
    assert [(row.epsilon, row.as_sent) for row in rows] == [(None, False), (32.0, False), (8.0, True), (1.0, False)]


def test_what_sites_sent_with_different_budgets_stands_for_none_of_them(statistics_run, monkeypatch):
    """A site that added no noise was compared with itself as exact, though others' noise was in the sum."""
    rows = rows_of(WholeRun.open(statistics_run, CPU), monkeypatch, east=8.0)
    assert [(row.epsilon, row.as_sent) for row in rows[:2]] == [(None, True), (None, False)] and len(rows) == 5
    assert rows[0].times_low == pytest.approx(1.5) and rows[1].times_low == rows[-1].times_low == 1
    (table,) = tables(rows, Demands(), "note")
    assert [row[5] for row in table.rows[:2]] == ["1.5-1.5: worse", None]


def test_an_impossible_budget_is_refused_before_anything_is_trained(statistics_run):
    with pytest.raises(ConfigError, match="epsilon=1000"):
        plan(statistics_run, Settings(epsilons=(1000.0,)), CPU, lambda name: pytest.fail("something was trained"))
