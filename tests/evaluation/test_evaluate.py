"""collafuse.evaluation.evaluate: one table for all arms, mixed cuts apart, and what cannot be compared."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from collafuse.config import from_mapping
from collafuse.core.conditioning import TextSpace
from collafuse.core.errors import DataError, MismatchError, UsageError
from collafuse.core.metadata import MAX_NAMES
from collafuse.core.texts import EncodedText
from collafuse.data.dealing import SiteData
from collafuse.evaluation import arms, features
from collafuse.evaluation.arms import Arm
from collafuse.evaluation.classifier import train_classifier
from collafuse.evaluation.evaluate import (
    FLOOR,
    _check_same_images,
    _Judge,
    _Measured,
    _names,
    _row,
    evaluate,
    groups_of,
    in_shares,
)
from collafuse.evaluation.features import Extractor
from collafuse.evaluation.generated import Generated
from collafuse.evaluation.measured import halves, load_measured
from collafuse.evaluation.table_notes import cuts_of, mix_of_labels, other_levels, reading_of
from collafuse.nodes.runfolder import RunFolder
from tests.evaluation.conftest import SETTINGS, train
from tests.tiny import CPU, image_set


@pytest.fixture(scope="module", autouse=True)
def _few_steps():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "STEPS", 120)
        yield


@pytest.fixture(scope="module")
def found(digits_run, _few_steps):
    return evaluate(digits_run, samples=40, device=CPU)


def test_every_client_and_every_pool_of_one_cut_has_every_arm(found):
    names = [FLOOR, "server + client", "server alone", "client alone", "true noise + client"]
    assert [(row.of, row.arm) for row in found.rows] == [
        (of, arm) for of in ("north", "east", "south", "north + east") for arm in names
    ]


def test_real_images_are_better_than_those_of_an_untrained_run(found):
    for of in ("north", "south", "north + east"):
        rows = {row.arm: row.figures for row in found.rows if row.of == of}
        for arm in ("server + client", "client alone"):
            assert rows[FLOOR]["frechet"].value < 0.5 * rows[arm]["frechet"].value
            assert rows[FLOOR]["coverage"].value > rows[arm]["coverage"].value
        assert rows[FLOOR]["shown"].value > 0.8


def test_the_same_seed_finds_the_same(found, digits_run):
    assert evaluate(digits_run, samples=40, device=CPU).values() == found.values()
    json.dumps(found.values(), allow_nan=False)


def test_all_sides_have_one_mix_of_labels_also_of_more_held_out_images_than_are_compared(digits_run, monkeypatch):
    """They were compared with a random part of the held-out images, whose mix is another; and what started from the
    first of these lacked one label or the other."""
    mixes = []

    def compare(made, real, strata, rng):
        mixes.append([np.bincount(side % MAX_NAMES, minlength=10) / len(side) for side in strata])
        return {}

    monkeypatch.setattr("collafuse.evaluation.evaluate.compare", compare)
    evaluate(digits_run, samples=30, device=CPU)
    assert len(mixes) == 4 * 5
    for made, real in mixes:
        assert np.abs(made - real).max() < 1 / 28  # images are whole


def test_where_the_floor_lacks_a_label_the_table_says_that_there_is_no_one_mix(digits_run, monkeypatch, found):
    assert not any("Not so of" in note for note in found.tables[0].notes)
    halved = halves

    def without_a_nought(images):
        known, floor = halved(images)
        return known, floor.take(np.setdiff1d(np.arange(len(floor)), floor.rows_with("0")))

    monkeypatch.setattr("collafuse.evaluation.evaluate.halves", without_a_nought)
    said = evaluate(digits_run, samples=30, device=CPU).tables[0].notes
    assert any("Not so of north, whose floor has too few images of a label" in note for note in said)


def test_a_run_that_sent_statistics_is_measured_too(statistics_run):
    made = evaluate(statistics_run, samples=20, device=CPU)
    assert {row.arm for row in made.rows} >= {FLOOR, "server + client"}
    assert any(table.title == "Work" for table in made.tables)


def test_energy_of_a_baseline_is_refused_at_once(tmp_path):
    """It has no two sides; the table would be missing at the end, and nothing would say why."""
    baseline = RunFolder(tmp_path / "centralised")
    baseline.write_config(from_mapping(SETTINGS | {"method": "centralised"}))
    with pytest.raises(UsageError, match="is the baseline centralised; leave it out"):
        evaluate(baseline, samples=20, energy=True, device=CPU)


def test_the_table_says_who_looked_and_how(found):
    table = found.tables[0]
    text = table.to_markdown()
    assert "a classifier trained on the data itself" in text
    assert "north + east" in text
    assert all(" ± " in str(cell) for row in table.rows for cell in row[3:])


def test_another_run_stands_beside_under_its_name(digits_run, monkeypatch):
    def perfect(folder, held_out, device):
        def generate(client, count, seed):
            images = held_out[client]
            images = images.take(np.arange(count) % len(images))
            return Generated(images.pixels.transpose(0, 2, 3, 1), images.labels, images.label_names)

        return [Arm("perfect", generate, "the held-out images themselves")]

    class Other(RunFolder):
        pass

    split = arms.METHODS[arms.DEFAULT_METHOD]
    monkeypatch.setitem(
        arms.METHODS, arms.DEFAULT_METHOD, lambda f, h, d: perfect(f, h, d) if isinstance(f, Other) else split(f, h, d)
    )
    found = evaluate(digits_run, [Other(digits_run.path)], samples=40, device=CPU)
    rows = {row.arm: row.figures for row in found.rows if row.of == "south"}
    assert rows["run: perfect"]["frechet"].value < rows[FLOOR]["frechet"].value
    assert rows["run: perfect"]["shown"].value > 0.8


def test_a_run_over_other_images_cannot_stand_beside(digits_run, tmp_path):
    other = train(tmp_path / "other", data={"dataset": "digits", "held_out": 0.2, "seed": 1})
    with pytest.raises(MismatchError, match="same images of client 'north'"):
        evaluate(digits_run, [other], samples=40, device=CPU)


def test_a_run_over_the_same_images_in_another_size_cannot_stand_beside(monkeypatch, tmp_path):
    """Images are known by their pixels as they were decoded. By a standard network the sizes were compared in silence;
    the classifier ended in torch's error about shapes."""
    one, other = (RunFolder(tmp_path / name) for name in ("one", "other"))
    other.write_config(train_config())

    def site(double):
        images = image_set(20)
        return SiteData(*[replace(images, pixels=images.pixels.repeat(double, 2).repeat(double, 3))] * 2)

    monkeypatch.setattr("collafuse.evaluation.evaluate.load_measured", lambda config: {"north": site(2)})
    with pytest.raises(MismatchError, match=r"other pixels \(\[1, 8, 8\]\) than .* \(\[1, 4, 4\]\)"):
        _check_same_images(other, one, {"north": site(1)})
    assert set(_check_same_images(other, one, {"north": site(2)})) == {"north"}


def test_a_run_beside_is_asked_for_text_as_it_was_trained_with(digits_run, monkeypatch):
    """Beside a run without text, one with it was asked for none, and its figures were those of "no condition"."""
    load, asked = load_measured, []

    def told(config, listener=None):
        def captioned(part):
            values = np.where(part.digests[:, :4] > 127, 1, -1).astype(np.float16)
            return replace(part, text=EncodedText(TextSpace("t5-4-00", 4), values))

        sites = load(config)
        return sites if listener else {n: SiteData(*map(captioned, site.parts)) for n, site in sites.items()}

    def arms(folder, held_out, device):
        asked.append(held_out)
        if len(asked) == 2:
            raise InterruptedError
        return []

    monkeypatch.setattr("collafuse.evaluation.evaluate.load_measured", told)
    monkeypatch.setattr("collafuse.evaluation.evaluate.arms_of", arms)
    with pytest.raises(InterruptedError):
        evaluate(digits_run, [digits_run], samples=20, device=CPU)
    main, beside = asked
    for name, images in main.items():
        assert images.text is None and np.array_equal(images.digests, beside[name].digests)
        assert np.array_equal(beside[name].text.rows > 0, images.digests[:, :4] > 127)


def test_the_table_says_where_each_client_of_each_runcuts_of(found):
    cuts = "north 0.5 (takes over at 1), east 0.5 (takes over at 1), south 1.5 (takes over at 3)"
    assert f"Cuts: sigma {cuts}." in found.tables[0].notes


@pytest.mark.parametrize(
    "changes",
    [
        {"client": {"handover": 1.0}},
        {"clients": {"east": {"cut": {"sigma": 0.6}}}},
        {"client": {"sampler": {"steps": 9}}},
        {"server": {"sampler": {"steps": 9}}},
    ],
)
def test_it_is_said_of_runs_that_are_sampled_along_other_levels(changes):
    main, same = _with({}), _with({"method": "centralised", "client": {"training": {"seed": 5}}})
    assert other_levels({"": main, "same": same}) == []
    (said,) = other_levels({"": main, "same": same, "other": _with(changes)})
    assert said.startswith("other: sampled along other levels")


def test_what_is_said_of_reading_is_so():
    """Of unlabelled images labels were said to be read all the same, and where no held-out image had one, "nan%"."""
    images = image_set(12)
    classifier = train_classifier(image_set(20), steps=3)
    assert reading_of(classifier, images).endswith("% of the held-out images.")
    images.labels[:] = 0
    assert "nan" not in reading_of(classifier, images) and "no held-out image has a label" in reading_of(
        classifier, images
    )
    assert "are read by" not in reading_of(None, images) and "did not see" not in mix_of_labels(
        (), (), classified=False
    )


def test_a_site_that_keeps_its_labels_is_not_said_to_have_one_mix_of_them(digits_run, monkeypatch, found):
    stubs = {"arms_of": [], "compare": {}, "work_tables": (), "classifier_of": None}
    stubs["choose"] = Extractor("zeros", lambda pixels: np.zeros((len(pixels), 1)))
    for name, stub in stubs.items():
        monkeypatch.setattr(f"collafuse.evaluation.evaluate.{name}", lambda *given, stub=stub: stub)
    config = _with_clients({"north": {"share_labels": False}})
    monkeypatch.setattr(RunFolder, "read_config", lambda folder: config)
    keeping = "Not so of what is generated for north, which keeps its labels"
    assert any(keeping in note for note in evaluate(digits_run, samples=20, device=CPU).tables[0].notes)
    assert not any(keeping in note for note in found.tables[0].notes)


def test_a_site_of_whose_labels_the_server_was_told_not_all_is_not_said_to_have_one_mix(digits_run, monkeypatch):
    """As where noise for a budget leaves too few images of one: generated images show the others alone."""

    def generate(client, count, seed):
        named = digits_run.read_config().client(client).labels
        labels = np.eye(2, dtype=np.uint8)[np.arange(count) % (1 if client == "north" else 2)]
        return Generated(np.zeros((count, 8, 8, 1), np.uint8), labels, tuple(named))

    stubs = {"arms_of": [arms.Arm("made", generate, "")], "compare": {}, "work_tables": (), "classifier_of": None}
    stubs["choose"] = Extractor("zeros", lambda pixels: np.zeros((len(pixels), 1)))
    for name, stub in stubs.items():
        monkeypatch.setattr(f"collafuse.evaluation.evaluate.{name}", lambda *given, stub=stub: stub)
    said = evaluate(digits_run, samples=20, device=CPU).tables[0].notes
    assert any("Not so of what is generated for north, of whose labels" in note for note in said)


def test_cuts_are_said_only_of_methods_that_have_them():
    handover = _with_clients({"north": {"handover": 2.0}, "east": {"handover": 1.0}, "south": {"handover": 1.0}})
    assert cuts_of(handover) == "sigma north 0.5 (takes over at 1), east 0.5, south 1.5"
    said = {name: cuts_of(handover.model_copy(update={"method": name})) for name in arms.BASELINES}
    for name in ("centralised", "local", "fedavg"):
        assert said[name] == f"none, since {name} has one model of the whole noise range"
    for name in ("reference", "reference-repaired"):  # the server stops at the cut
        assert said[name] == "sigma north 0.5, east 0.5, south 1.5"
    assert said["pfdm"] == cuts_of(handover)


def test_runs_beside_that_have_one_name_are_told_apart_by_their_paths(tmp_path):
    one, two, other = (RunFolder(tmp_path / path) for path in ("a/run", "b/run", "b/other"))
    assert list(_names([one, other])) == ["run", "other"]
    assert list(_names([one, two])) == [str(one.path), str(two.path)]
    with pytest.raises(UsageError, match="more than once"):
        _names([one, one])


def _made(clients: dict[str, tuple[int, ...]]) -> list[_Measured]:
    """So many images of each label of each client, label by label; a feature is the client's number."""
    return [
        _Measured(np.full((sum(counts), 1), float(i)), np.repeat(np.arange(len(counts)), counts), None)
        for i, counts in enumerate(clients.values())
    ]


def test_images_of_which_nothing_was_asked_show_nothing():
    """A site without labels beside one with them had a floor that showed its label in every image."""
    classifier = train_classifier(image_set(20, ("a", "b")), steps=3)
    judge = _Judge(Extractor("zeros", lambda pixels: np.zeros((len(pixels), 1))), classifier, ("a", "b"))
    unlabelled, some = (image_set(12, ("a", "b")) for _ in range(2))
    unlabelled.labels[:], some.labels[:8] = 0, 0
    rng = np.random.default_rng(0)
    assert judge.measure_real(unlabelled).shown is None
    assert "shown" not in _row("x", "y", [judge.measure_real(unlabelled)], [judge.measure_real(some)], rng).figures
    shown = judge.measure_real(some).shown
    assert np.isnan(shown[:8]).all() and (shown[8:] == classifier.shows(some.pixels, some.labels)[8:]).all()
    figures = _row("x", "y", [judge.measure_real(some)], [judge.measure_real(some)], rng).figures
    assert figures["shown"].value == shown[8:].mean()


def test_clients_have_the_share_of_a_pool_that_they_have_of_its_reference():
    references = _made({"large": (500, 500), "small": (50, 50)})
    large, small = in_shares(_made({"large": (600, 200), "small": (240, 240)}), references)
    assert (len(large.strata), len(small.strata)) == (800, 80)
    assert np.bincount(small.strata).tolist() == [40, 40] and np.bincount(large.strata).tolist() == [600, 200]
    alike = _made({"large": (500, 500), "small": (49, 50)})
    assert in_shares(alike, references) == alike


def test_a_run_that_holds_nothing_out_is_told_to(tmp_path):
    run = RunFolder(tmp_path)
    run.write_config(train_config(held_out=0.0))
    with pytest.raises(DataError, match=r"north holds out 0 images.*Give it more images, or change data\.held_out"):
        evaluate(run, samples=40, device=CPU)


def test_a_site_with_too_few_images_for_a_floor_is_refused(tmp_path):
    run = RunFolder(tmp_path)
    run.write_config(train_config(held_out=0.95))
    with pytest.raises(DataError, match=r"trains on \d+ images, at least 20 are needed, half of them for the floor"):
        evaluate(run, samples=40, device=CPU)


def test_too_few_samples_are_refused(digits_run):
    with pytest.raises(UsageError, match="samples=3"):
        evaluate(digits_run, samples=3, device=CPU)


def test_only_clients_that_take_over_at_one_level_are_pooled():
    assert groups_of(train_config()) == {
        "north": ("north",),
        "east": ("east",),
        "south": ("south",),
        "north + east": ("north", "east"),
    }


def test_clients_that_cut_apart_in_another_run_of_the_table_are_not_pooled_in_it():
    assert "north + east" not in groups_of(train_config(), _with_clients({"east": {"cut": {"sigma": 1.0}}}))
    assert "north + east" in groups_of(train_config(), train_config(), train_config())


def test_one_level_of_handover_does_not_make_two_cuts_one():
    apart = _with_clients({"north": {"handover": 4.0}, "east": {"cut": {"sigma": 1.0}}})
    assert apart.client("north").handover_sigma == apart.client("east").handover_sigma
    assert "north + east" not in groups_of(apart)


def _with(changes):
    """The settings, with these on top of each section."""
    return from_mapping(_onto(SETTINGS, changes))


def _onto(base, over):
    return {**base, **{k: _onto(base[k], v) if isinstance(base.get(k), dict) else v for k, v in over.items()}}


def _with_clients(changes):
    clients = SETTINGS["clients"]
    return from_mapping(SETTINGS | {"clients": {n: one | changes.get(n, {}) for n, one in clients.items()}})


def train_config(**data):
    return from_mapping(SETTINGS | {"data": SETTINGS["data"] | data})
