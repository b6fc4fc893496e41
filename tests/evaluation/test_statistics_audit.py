"""The audit of a run whose sites sent statistics: exact ones, a budget that is kept, and one that is not."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from collafuse.core.atomic import write_bytes
from collafuse.core.mechanism import Budget
from collafuse.core.moments import moments_of, noised, statistics_of
from collafuse.core.statistics import Statement, to_bytes
from collafuse.data.dealing import SiteData, load_sites
from collafuse.data.imageset import ImageSet
from collafuse.evaluation import audit as audits
from collafuse.evaluation import models_attacked
from collafuse.evaluation.attacks.statistics import counted, rows_of
from collafuse.evaluation.report import write_page
from collafuse.evaluation.statistics_audit import StatisticsAudit, _known, _split
from collafuse.evaluation.statistics_tables import verdict
from collafuse.evaluation.tables import write_results
from collafuse.evaluation.whole_run import WholeRun
from collafuse.nodes.runfolder import RunFolder
from collafuse.nodes.summary import blocks
from tests.evaluation.attacks.worlds import blobs
from tests.tiny import CPU

ABOUT = Statement((1, 8, 8), 16, Budget(8.0, 1e-5), clip=0.9)


def file_of(images: ImageSet, about: Statement, share: float, seed: int) -> bytes:
    """Statistics with so much of the noise that their budget demands."""
    names, noise = images.label_names, np.random.default_rng(seed)
    own = moments_of(blocks(images, rows_of(images, names)), about, len(names))
    made = noised(own, about, lambda shape: share * noise.standard_normal(shape))
    return to_bytes(statistics_of(made, about, names, simulated=True))


@pytest.fixture(scope="module")
def private_run(statistics_run: RunFolder, tmp_path_factory) -> Path:
    """The same run with budgets: north keeps its own, east saves half of the noise, south sends a second file of the
    same images."""
    path = tmp_path_factory.mktemp("private") / "run"
    shutil.copytree(statistics_run.path, path)
    sites = load_sites(statistics_run.read_config())
    files = (
        ("north", "north", ABOUT, 1.0),
        ("east", "east", ABOUT, 0.5),
        ("south", "south", replace(ABOUT, budget=Budget(100.0, 1e-5)), 1.0),
        ("south", "south.2", replace(ABOUT, budget=Budget(90.0, 1e-5)), 1.0),
    )
    for seed, (name, file, about, share) in enumerate(files):
        data = file_of(sites[name].train, about, share, seed)
        write_bytes(path / f"server/releases/{file}.safetensors", data, overwrite=True)
    return path


def _audit(path: Path) -> StatisticsAudit:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"GENERATED": 32, "MOST_MEMBERS": 60}.items():
            patch.setattr(models_attacked, name, value)
        found = audits.audit(RunFolder(path), CPU)
    assert isinstance(found, StatisticsAudit)
    return found


@pytest.fixture(scope="module")
def exact(statistics_run: RunFolder) -> StatisticsAudit:
    return _audit(statistics_run.path)


@pytest.fixture(scope="module")
def private(private_run: Path) -> StatisticsAudit:
    return _audit(private_run)


def test_exact_statistics_have_figures_for_every_site_and_give_away_who_was_counted(exact):
    assert [site.counted.name for site in exact.sites] == ["north", "east", "south"]
    assert all("its statistics give away which images were counted (likelihood ratio" in one for one in exact.alarms)
    assert {one.partition(":")[0] for one in exact.alarms} == {"north", "east", "south"}
    titles = [table.title for table in exact.tables]
    assert titles == [
        "What the server received",
        "Membership inference: was this image counted?",
        "Membership inference: was this image trained on?",
        "Memorisation: is what was trained on repeated?",
        "Formal guarantee of the statistics",
    ]
    assert list(exact.membership) == ["client north", "client east", "client south"]
    received = exact.tables[0]
    row = dict(zip(received.columns, received.rows[0], strict=True))
    assert row["budget"] == "none: exact" and row["counts as sent"] == "0: 143, 1: 152"
    assert row["numbers of these images, noise of its own"] == "kept"


def test_a_verdict_on_exact_statistics_promises_nothing(exact):
    said = exact.verdict[0]
    assert said.startswith("north, statistics of 2 labels, 64 numbers of an image, exact. No image was released")
    unprotected = said.partition("Not protected: ")[2].partition("No better than guessing")[0]
    assert "each label's share: the counts are exact (0: 143, 1: 152)" in unprotected
    assert "likelihood ratio has an AUC of" in unprotected and "who need only subtract" in unprotected
    assert "Formally nothing is guaranteed: without a budget" in said


def test_a_budget_that_is_kept_is_no_alarm_and_says_what_it_rules_out(private):
    assert not [one for one in private.alarms if one.startswith("north")]
    said = private.verdict[0]
    assert "with noise for epsilon 8, delta 1e-05" in said and "counts are exact" not in said
    assert "where 1 % of other images are accused, at most 25% of the counted ones are found (AUC at most 0.88)" in said
    assert "A count is told to about ± 4.2 images." in said
    row = dict(zip(private.tables[-1].columns, private.tables[-1].rows[0], strict=True))
    assert (row["client"], row["epsilon"], row["found at 1 % false alarms, at most"]) == ("north", "8", "25.5%")


def test_a_budget_that_is_not_kept_is_an_alarm_and_guarantees_nothing(private):
    assert any(one.startswith("east: there is too little noise on") for one in private.alarms)
    assert "Formally nothing is guaranteed: the noise is not what the budget demands." in private.verdict[1]


def test_statistics_of_the_same_images_in_two_files_are_an_alarm(private):
    assert any(one.startswith("south:") and "counted more than once" in one for one in private.alarms)
    assert "Formally it is not known what is guaranteed" in private.verdict[2]
    assert len([row for row in private.tables[-1].rows if row[0] == "south"]) == 2


def test_a_budget_too_large_to_be_one_is_called_so(private):
    south = replace(private.sites[2], promises=())
    assert "at most 100% of the counted ones are found (AUC at most 1.00), so much that it rules out little" in verdict(
        south
    )


def test_what_chance_seldom_does_is_not_called_guessing_nor_sure(private):
    """Between the interval that is shown and an alarm."""
    north = private.sites[0]

    def said(deviates):
        changed = [
            replace(one, membership=replace(one.membership, auc=0.5 + deviates * one.membership.error))
            for one in north.traced
        ]
        return verdict(replace(north, traced=tuple(changed)))

    assert "Perhaps not protected" not in said(1.0) and "No better than guessing: whether an image" in said(1.0)
    assert "Perhaps not protected" in said(3.0) and "No better than guessing" not in said(3.0)
    assert "Perhaps not protected" not in said(5.0) and "likelihood ratio has" in said(5.0).partition("Formally")[0]


def test_what_was_not_measured_is_said(exact):
    said = verdict(replace(exact.sites[0], traced=()))
    assert "Whether an image was counted was not measured: with" in said and "No better than guessing" not in said


def test_the_same_seed_makes_the_same_figures_and_a_sites_do_not_depend_on_the_others(exact, statistics_run, tmp_path):
    path = shutil.copytree(statistics_run.path, tmp_path / "run")
    (path / "server/releases/east.safetensors").unlink()
    again = _audit(path)
    assert [site.counted.name for site in again.sites] == ["north", "south"]
    for name in ("north", "south"):
        one, other = (next(s for s in a.sites if s.counted.name == name) for a in (exact, again))
        assert (one.traced, one.nearest) == (other.traced, other.nearest)


def test_what_an_attacker_knows_is_never_asked_about_and_groups_stay_whole():
    images = blobs(60)
    others, known = _split(images)
    assert len(others) + len(known) == 60 and not {*map(bytes, others.digests)} & {*map(bytes, known.digests)}
    patients = replace(images, groups=np.array([f"patient {i // 5}" for i in range(60)]))
    others, known = _split(patients)
    assert (len(others), len(known)) == (30, 30) and not set(others.groups) & set(known.groups)


def test_where_few_images_of_a_label_are_held_out_an_attacker_knows_other_sites_too(statistics_run, monkeypatch):
    run = WholeRun.open(statistics_run, CPU)
    north, east = run.sites["north"], run.measured["east"]
    alike = SiteData(*(replace(part, label_names=("1", "3")) for part in east.parts))  # as if its 2s were 1s
    monkeypatch.setitem(run.measured, "east", alike)
    site = counted("north", north.train, north.held_out, run.statistics["north"])
    few = site.held_out.take(site.held_out.rows_with("1")[:5])
    found = _known(run, site, few, 0)
    assert len(found["0"]) == 0 and len(found["1"]) == 5 + sum(len(part.rows_with("1")) for part in alike.parts)
    enough = _known(run, site, site.held_out, 0)
    assert len(enough["1"]) == len(site.held_out.rows_with("1")) > 20


def test_files_of_different_settings_are_said_not_to_be_compared(statistics_run, tmp_path):
    path = shutil.copytree(statistics_run.path, tmp_path / "run")
    images = load_sites(statistics_run.read_config())["north"].train
    for name, about in (("north", ABOUT), ("north.2", replace(ABOUT, clip=0.8))):
        data = file_of(images, about, 1.0, 0)
        write_bytes(path / f"server/releases/{name}.safetensors", data, overwrite=True)
    for name in ("east", "south"):
        (path / f"server/releases/{name}.safetensors").unlink()
    received = _audit(path).tables[0]
    assert received.rows[0][-1] == "not asked"
    assert any("what the numbers are of was not asked" in note for note in received.notes)


def test_the_page_of_a_run_shows_its_audit(exact, statistics_run, tmp_path):
    run = RunFolder(shutil.copytree(statistics_run.path, tmp_path / "run"))
    folder = run.path / "evaluation"
    write_results(folder / "audit.json", exact.tables, alarms=exact.alarms, verdict=exact.verdict)
    (folder / "audit").mkdir()
    exact.picture.save(folder / "audit" / exact.picture_name)
    html = write_page(run, device=CPU)
    assert "ALARM: north: its statistics give away" in html and "was this image counted?" in html
    assert "<figcaption>statistics</figcaption>" in html


def test_the_picture_shows_every_site(exact):
    assert exact.picture_name == "statistics.png" and exact.picture.width > 3 * 350
