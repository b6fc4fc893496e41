"""The plan: the cut that meets what is asked, or none; cuts that are kept; and one cut of a real run."""

from __future__ import annotations

import io
import itertools
import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from collafuse.core.errors import DataError, UsageError
from collafuse.core.moments import Basis
from collafuse.data.dealing import SiteData, load_sites
from collafuse.data.listening import Unheard
from collafuse.evaluation import features, whole_run
from collafuse.evaluation import trial as trials
from collafuse.evaluation.cuts import cuts_for, say_what_is_left_out
from collafuse.evaluation.demands import Demands, best_cut
from collafuse.evaluation.features import Extractor
from collafuse.evaluation.one_cut import CutFigures, OneCut
from collafuse.evaluation.plan import Settings, key_of, plan
from collafuse.evaluation.plan_report import conclusions, drawn, picture, tables
from collafuse.evaluation.trial import recut, steps_for
from collafuse.evaluation.whole_run import WholeRun, added_up
from collafuse.nodes.runfolder import RunFolder
from collafuse.nodes.server import Server
from tests.tiny import CPU, Recorder

ROW = CutFigures(
    client="north",
    sigma=0.5,
    gallery=1000,
    reid=0.9,
    reid_low=0.88,
    reid_high=0.92,
    attribute=0.95,
    attribute_chance=0.5,
    epsilon=900.0,
    frechet=2.0,
    frechet_spread=0.1,
    frechet_statistics=4.0,
    statistics_low=1.9,
    statistics_high=2.1,
    statistics_refused="",
    floor=1.0,
    nfe=4,
    ms=1.0,
)
AS_GOOD = {"statistics_low": 0.98, "statistics_high": 1.04}
UNTOLD = {"statistics_low": 0.8, "statistics_high": 1.3}
ROWS = [
    ROW,
    replace(ROW, sigma=2.0, reid=0.3, reid_low=0.28, reid_high=0.32, frechet=3.0, ms=2.0, **AS_GOOD),
    replace(ROW, sigma=8.0, reid=0.01, reid_low=0.0, reid_high=0.02, frechet=5.0, ms=4.0, **AS_GOOD),
]


def test_of_the_cuts_that_meet_all_demands_the_one_with_the_best_images_is_chosen():
    assert best_cut(ROWS, Demands(max_reid=0.5)).sigma == 2.0
    assert best_cut(ROWS, Demands(max_reid=0.95, max_ms=2)).sigma == 0.5
    assert best_cut(ROWS, Demands(max_reid=0.05, max_ms=2)) is None
    assert "cut at sigma 2" in conclusions(ROWS, Demands(max_reid=0.5))[0]


def test_where_no_cut_fits_the_plan_says_which_demand_none_meets():
    (alone,) = conclusions(ROWS, Demands(max_ms=0.5))
    assert "no cut meets what is asked. At none of these is the device fast enough." in alone
    (together,) = conclusions(ROWS, Demands(max_reid=0.05, max_ms=2))
    assert "no cut meets what is asked at once" in together and "each demand alone is met somewhere" in together


def test_recognition_is_said_to_fall_only_where_it_does():
    said = "north: nothing was asked. "
    (fallen,) = conclusions(ROWS, Demands())
    assert fallen.startswith(
        said + "From cut 0.5 to 8 recognition falls from 90% to 1% and a picture costs 1.00 to 4.00"
    )
    (alone,) = conclusions([replace(ROWS[2], reid=0.0)], Demands())
    assert alone.startswith(said + "At cut 8, 0% of releases are recognised and a picture costs 4.00 ms.")
    (level,) = conclusions([replace(ROWS[1], reid=0.004), replace(ROWS[2], reid=0.0)], Demands())
    assert level.startswith(
        said + "From cut 2 to 8, 0% of releases are recognised and a picture costs 2.00 to 4.00 ms."
    )
    (risen,) = conclusions([replace(ROWS[1], reid=0.0), ROWS[2]], Demands())
    assert risen.startswith(said + "From cut 2 to 8, 0% to 1% of releases are recognised")


def test_sending_images_buys_nothing_only_from_where_on_statistics_do_as_well():
    assert "From sigma 2 on sending images buys nothing" in conclusions(ROWS, Demands())[0]
    lucky = [replace(ROWS[0], **AS_GOOD), ROWS[1], replace(ROWS[2], statistics_low=1.7, statistics_high=1.9)]
    assert "buys nothing" not in conclusions(lucky, Demands())[0]


def test_statistics_that_do_as_well_are_not_praised_where_the_site_would_send_none():
    few = "fewer than 50 images of 3 (20): merge labels."
    rows = [replace(row, statistics_refused=few) for row in ROWS]
    (said,) = conclusions(rows, Demands())
    assert f"As the site stands it would send no exact ones: {few}" in said
    (silent,) = conclusions([rows[0]], Demands())
    assert "exact ones" not in silent + conclusions(ROWS, Demands())[0].replace("Exact ones", "")


def test_distances_that_are_mostly_chance_do_not_prove_that_statistics_do_as_well():
    (said,) = conclusions([ROWS[0], replace(ROWS[1], floor=2.7), ROWS[2]], Demands())
    assert "real ones are as far from each other as most of that distance, at sigma 2 (90%)" in said
    assert "Hold more images out" not in conclusions(ROWS, Demands())[0]


def test_where_statistics_may_be_much_worse_the_plan_says_that_it_cannot_tell():
    (said,) = conclusions([ROWS[0], replace(ROWS[1], **UNTOLD), replace(ROWS[2], **AS_GOOD)], Demands())
    assert "From sigma 8 on sending images buys nothing" in said and "at sigma 2 (0.8-1.3 times)." in said
    (said,) = conclusions([ROWS[0], replace(ROWS[1], **UNTOLD)], Demands())
    assert "buy" not in said and "cannot be told" in said
    (all_worse,) = conclusions([ROWS[0]], Demands())
    assert "At every cut here the images that were sent buy better pictures" in all_worse
    (table,) = tables([ROWS[0], ROWS[1], replace(ROWS[2], **UNTOLD)], Demands(), "note")
    assert [row[6].rpartition(": ")[2] for row in table.rows] == ["worse)", "as good)", "cannot be told)"]


@pytest.mark.parametrize(("truth", "as_good", "pay"), [(1.0, 0.2, 0.07), (1.05, 0.07, 0.2), (1.2, 0.01, 0.8)])
def test_statistics_that_are_worse_are_seldom_called_as_good_however_sets_spread(truth, as_good, pay):
    """With sets that spread by 10 % of each side, a fifth worse was called as good in two cases of five."""
    rng, count = np.random.default_rng(0), 2000
    ours, theirs = (1 + 0.1 * rng.standard_normal((2, count, trials.SETS))) * [[[truth]], [[1.0]]]
    bounds = [trials.ratio_bounds(list(a), list(b)) for a, b in zip(ours, theirs, strict=True)]
    rows = [replace(ROW, statistics_low=low, statistics_high=high) for low, high in bounds]
    assert sum(row.statistics_suffice for row in rows) < as_good * count
    assert sum(row.images_pay for row in rows) < pay * count


def test_statistics_that_are_equal_are_called_so_where_sets_spread_alike():
    theirs = [1.0, 1.2, 0.8, 1.1, 0.9]
    low, high = trials.ratio_bounds([1.01 * f for f in theirs], theirs)
    assert low == pytest.approx(1.01) and replace(ROW, statistics_low=low, statistics_high=high).statistics_suffice


def test_a_leak_is_counted_from_guessing():
    assert ROW.leak == pytest.approx(0.9) and replace(ROW, attribute=0.4).leak == 0
    assert replace(ROW, attribute=None, attribute_chance=None).leak is None
    assert Demands(max_leak=0.5).unmet(ROW) == ["inference"]


def test_recognition_is_held_against_what_it_may_be_not_against_what_was_counted():
    """Of 100 releases 4 say nothing of 5 %: it may be 10 %."""
    few = replace(ROW, reid=0.04, reid_low=0.016, reid_high=0.098)
    assert Demands(max_reid=0.05).unmet(few) == ["recognition"]
    assert Demands(max_reid=0.1).unmet(few) == []
    assert "4.0% of releases are recognised (at most 9.8%)" in conclusions([few], Demands(max_reid=0.1))[0]


def test_impossible_demands_are_refused():
    with pytest.raises(UsageError, match="max_ms=-1"):
        Demands(max_ms=-1)


@pytest.mark.parametrize("demands", [Demands(), Demands(max_reid=0.5), Demands(max_reid=0, max_frechet=1)])
def test_the_picture_and_the_table_stand_for_several_clients(demands):
    rows = [*ROWS, *(replace(row, client="east", attribute=None, attribute_chance=None) for row in ROWS)]
    with Image.open(io.BytesIO(picture(rows, demands))) as image:
        assert image.width > 800
    (table,) = tables(rows, demands, "note")
    assert len(table.rows) == 6 and "note" in table.notes


def test_the_title_fits_above_a_single_client():
    figure = drawn(ROWS, Demands(max_reid=0.5))
    figure.draw_without_rendering()
    extent = figure.get_window_extent()
    (title,) = (text for text in figure.texts if text.get_text().startswith("Where to cut?"))
    found = title.get_window_extent()
    assert extent.x0 <= found.x0 and found.x1 <= extent.x1


def test_what_is_chosen_stands_on_the_picture_however_long_a_clients_name_is():
    long = "hospital-of-saint-bartholomew-and-the-seven-sleepers-of-ephesus"
    figure = drawn([replace(row, client=name) for name in (long, "north") for row in ROWS], Demands(max_reid=0.5))
    figure.draw_without_rendering()
    for axis in figure.axes[:2]:
        assert " ".join(axis.get_title(loc="left").split()).endswith("★ cut at sigma 2")
        assert axis.get_tightbbox().x1 < axis.get_window_extent().x1 + 40


def test_figures_at_the_axis_leave_room_between_each_other():
    """Clients of other cuts bring levels of their own, 0.738 beside 0.75."""
    sigmas = (0.5, 0.738, 0.75, 1.0, 20.0)
    figure = drawn([replace(ROWS[0], sigma=sigma) for sigma in sigmas], Demands())
    figure.draw_without_rendering()
    labels = [label for label in figure.axes[-1].get_xticklabels() if label.get_text()]
    boxes = [label.get_window_extent() for label in labels]
    assert len(labels) == 4 and all(a.x1 < b.x0 for a, b in itertools.pairwise(boxes))


def test_steps_grow_as_the_logarithm_of_the_cut(tiny_config):
    own = tiny_config.client("north")
    assert steps_for(tiny_config, "north", 0.5) == own.sampler.steps
    low, handover = own.sampler.sigma_low, own.handover
    twice = low * (0.5 * handover / low) ** 2 / handover  # twice as far in log sigma, from where it takes over
    assert steps_for(tiny_config, "north", twice) == 2 * own.sampler.steps
    changed = recut(tiny_config, "north", twice, 7)
    assert changed.client("north").cut.resolve().sigma == pytest.approx(twice)
    assert changed.client("north").training.steps == 7 and changed.client("east") == tiny_config.client("east")


def test_a_client_that_takes_over_at_pure_noise_takes_no_more_steps_for_a_higher_cut(tiny_config):
    north = tiny_config.client("north").model_copy(update={"handover": 4.0})
    config = tiny_config.model_copy(update={"clients": {**tiny_config.clients, "north": north}})
    assert steps_for(config, "north", 60.0) == steps_for(config, "north", 20.0) > steps_for(config, "north", 5.0)


def test_cuts_begin_where_the_server_has_learned_of_the_site(digits_run):
    run = WholeRun.open(digits_run, CPU)
    assert cuts_for(run, "south", None)[0] == 1.5 and len(cuts_for(run, "north", None)) == 5
    assert cuts_for(run, "south", (0.5, 3.0, 1.5, 80.0)) == [1.5, 3.0]


def test_cuts_that_are_left_out_are_named(digits_run):
    said = []
    run, listener = WholeRun.open(digits_run, CPU), Unheard()
    listener.say = said.append
    say_what_is_left_out(run, [("north", 0.6), ("east", 0.6), ("south", 3.0)], (0.6, 3.0), listener)
    assert [text.partition(":")[0] for text in said] == [
        "north is not tried at sigma 3",
        "east is not tried at sigma 3",
        "south is not tried at sigma 0.6",
    ]


def test_a_limit_that_nothing_could_be_held_against_is_said():
    rows = [replace(row, attribute=None, attribute_chance=None) for row in ROWS]
    assert "(--max-leak) says nothing" in conclusions(rows, Demands(max_leak=0.1))[0]
    assert "--max-leak" not in conclusions(ROWS, Demands(max_leak=0.1))[0]


def test_a_kept_cut_is_of_these_images_and_this_machine(digits_run, monkeypatch):
    run = WholeRun.open(digits_run, CPU)
    key = key_of(run, "north", 0.6, Settings(), "features")
    assert key == key_of(run, "north", 0.6, Settings(), "features")
    monkeypatch.setattr("edge_client.machine.identity", lambda: "another")
    assert key != key_of(run, "north", 0.6, Settings(), "features")
    monkeypatch.undo()
    fewer = SiteData(run.sites["north"].train.take(np.arange(50)), run.sites["north"].held_out)
    assert key != key_of(replace(run, sites={**run.sites, "north": fewer}), "north", 0.6, Settings(), "features")


# --- what a cut is measured with ----------------------------------------------------------------------------

GREY = Extractor("grey levels", lambda pixels: pixels.reshape(len(pixels), -1)[:, 18:24].astype(np.float64))


def noise(count: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, 1, 8, 8), dtype=np.float32)


def one_cut(run: WholeRun, **changes) -> OneCut:
    """Of north, whose images lie label by label, as in folders."""
    order = np.argsort(run.measured["north"].held_out.labels[:, 1], kind="stable")
    sorted_ = SiteData(run.measured["north"].train, run.measured["north"].held_out.take(order))
    changed = replace(run, measured={**run.measured, "north": sorted_}, **changes)
    return OneCut(changed, "north", recut(run.config, "north", 0.6, 2), GREY, 0, Recorder())


def test_of_many_held_out_images_some_of_each_label_are_compared_with_the_same_beside_every_cut(
    digits_run, monkeypatch
):
    monkeypatch.setattr("collafuse.evaluation.trial.MOST_IMAGES", 24)
    run = WholeRun.open(digits_run, CPU)
    reference = one_cut(run).reference
    assert len(reference) == 24 and reference.labels.sum(axis=0).min() > 5
    assert np.array_equal(one_cut(run).reference.digests, reference.digests)


def test_generated_images_and_the_floor_have_the_references_mix(digits_run, monkeypatch):
    cut, compared = one_cut(WholeRun.open(digits_run, CPU)), []
    monkeypatch.setattr(trials, "frechet_distance", lambda a, b: compared.append(len(a)) or 0.0)
    count = cut.count
    server = Server(cut.config, cut.run.server.model, cut._sites(), CPU)
    delivered = server.deliver("north", count, planned=server.plan_like("north", count, cut.reference, in_turn=True))
    assert len(cut.distances_of(np.zeros((count, 8, 8, 1), np.uint8), delivered)) == trials.SETS
    cut.floor()
    assert compared == [cut.mix.count] * (2 * trials.SETS)
    shares = delivered.labels[:, :2].mean(axis=0)
    assert shares == pytest.approx(cut.reference.labels.mean(axis=0))


def test_statistics_of_a_site_that_keeps_its_labels_are_of_all_its_images(digits_run):
    """Not of its first label: "no condition" is no label."""
    cut = one_cut(WholeRun.open(digits_run, CPU))
    images, space = cut.site.train, cut.site.train.space
    kept = cut._drawn(images, noise(400), space.conditions(400, None), space).mean(axis=0)
    first = cut._drawn(
        images, noise(400), space.conditions(400, np.eye(2, dtype=np.uint8)[np.zeros(400, int)]), space
    ).mean(axis=0)
    every, zeros = images.x0().mean(axis=0), images.take(images.rows_with("0")).x0().mean(axis=0)
    assert np.abs(kept - every).max() < 0.25 < np.abs(first - every).max()
    assert np.abs(first - zeros).max() < 0.25


def test_statistics_are_those_of_all_sites_as_a_server_adds_them_up(digits_run):
    """Not of the site's own images alone: where labels are kept, nothing tells one site's from another's."""
    run, rng = WholeRun.open(digits_run, CPU), np.random.default_rng(0)
    assert set(added_up(run, "north", 5_000, rng).label_names) == {"0", "1", "2", "3", "4", "5"}
    own = added_up(run, "north", 5_000, rng)
    assert {one.tobytes() for one in own.digests} == {one.tobytes() for one in run.sites["north"].train.digests}
    for name in ("north", "east"):
        run.server.sites[name] = replace(run.server.sites[name], label_names=None)
    counts = {name: len(site.train) for name, site in run.sites.items()}
    assert len(added_up(run, "north", 5_000, rng)) == sum(counts.values())
    assert len(added_up(run, "south", 5_000, rng)) == counts["south"]
    assert len(added_up(run, "north", 50, rng)) == 50


def test_statistics_are_of_as_many_coefficients_as_a_release_of_them_holds(digits_run):
    """A statistics server knows nothing of higher frequencies: of large images it is no Gaussian of all values."""
    run = WholeRun.open(digits_run, CPU)
    few = run.config.client("north").statistics.model_copy(update={"coefficients": 10})
    north = run.config.client("north").model_copy(update={"statistics": few})
    config = run.config.model_copy(update={"clients": {**run.config.clients, "north": north}})
    cut = one_cut(replace(run, config=config))
    space = run.models["north"].space
    drawn = cut._drawn(run.sites["north"].train, noise(3000), space.conditions(3000, None), space)
    along = Basis((1, 8, 8), 64).coefficients(drawn)
    apart = Basis((1, 8, 8), 10).coefficients(drawn)
    # What a release leaves out is noise alone; of what it holds there is more.
    level = cut.settings.handover_sigma
    assert apart.var(axis=0).max() > 1.5 * level**2
    above = along @ Basis((1, 8, 8), 64).matrix - apart @ Basis((1, 8, 8), 10).matrix
    assert (above**2).sum(axis=1).mean() == pytest.approx(54 * level**2, rel=0.03)


def test_whether_a_site_would_send_exact_statistics_is_what_a_release_of_them_says(digits_run):
    run = WholeRun.open(digits_run, CPU)
    assert one_cut(run)._statistics_refused() == ""
    north = run.sites["north"]
    fewer = SiteData(north.train.take(np.arange(60)), north.held_out)
    assert "fewer than 50 images of 0 (" in one_cut(run, sites={**run.sites, "north": fewer})._statistics_refused()


@pytest.mark.slow
def test_a_cut_of_a_run_is_measured_once_and_kept(digits_run, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "STEPS", 5)
    path = tmp_path / "run"
    shutil.copytree(digits_run.path, path)
    watched = []

    def observer(name):
        watched.append(name)
        return Recorder()

    starts, own = [], OneCut._drawn
    monkeypatch.setattr(OneCut, "_drawn", lambda cut, *given: starts.append(given[1]) or own(cut, *given))
    begun, begin = [], Server.begin
    monkeypatch.setattr(Server, "begin", lambda server, *given: begun.append(begin(server, *given)) or begun[-1])
    settings = Settings(cuts=(0.6,), train_steps=2)
    found = plan(RunFolder(path), settings, CPU, observer)
    row, _ = found.cuts  # 0.6 lies below south's own cut
    assert found.untried == ("south",)
    assert (row.client, row.sigma, row.gallery) == ("north", 0.6, 1000) and watched == ["north 0.6", "east 0.6"]
    assert 0.3 < row.reid < 0.99 and row.nfe == 3 and row.ms > 0 and math.isfinite(row.frechet + row.frechet_statistics)
    assert plan(RunFolder(path), settings, CPU, observer) == found and len(watched) == 2
    # Statistics draw from the noise that the server starts from, at sigma 80.
    np.testing.assert_allclose(80 * np.concatenate(starts), np.concatenate(begun), rtol=1e-6)
    assert 0 < row.statistics_low < row.statistics_high
    kept = path / "evaluation" / "plan" / "north-0.6.json"
    kept.write_text(json.dumps(json.loads(kept.read_text()) | {"key": {}}))
    monkeypatch.setattr(OneCut, "device_cost", lambda *given: (row.nfe, row.ms))  # as before, without another export
    assert plan(RunFolder(path), settings, CPU, observer).cuts[0].reid == row.reid and len(watched) == 3


def test_cuts_below_every_sites_own_are_refused(digits_run, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "STEPS", 5)
    shutil.copytree(digits_run.path, tmp_path / "run")
    with pytest.raises(UsageError, match="the server has learned nothing below"):
        plan(RunFolder(tmp_path / "run"), Settings(cuts=(0.1,)), CPU, lambda name: Recorder())


def test_budgets_are_of_statistics(digits_run):
    with pytest.raises(UsageError, match="this run's sites send images"):
        plan(digits_run, Settings(epsilons=(8.0,)), CPU, lambda name: pytest.fail("something was trained"))


def test_the_guarantee_of_a_release_is_held_against_a_limit():
    assert Demands(max_epsilon=100).unmet(ROW) == ["guarantee"] and Demands(max_epsilon=900).unmet(ROW) == []
    assert "At none of these is epsilon small enough." in conclusions(ROWS, Demands(max_epsilon=1))[0]


def test_a_site_with_too_few_images_is_told_before_anything_is_trained(digits_run, monkeypatch):
    def load(config, listener):
        sites = load_sites(config)
        few = SiteData(sites["south"].train.take(np.arange(30)), sites["south"].held_out)
        return sites | {"south": few}

    monkeypatch.setattr(whole_run, "load_sites", load)
    with pytest.raises(DataError, match="south trains on 30 images; at least 40 are needed"):
        plan(digits_run, Settings(), CPU, lambda name: pytest.fail("something was trained"))
