"""collafuse evaluate as a user runs it."""

import errno
import json
import shutil

import pytest
from PIL import Image

from collafuse.core.atomic import storage_error
from collafuse.core.errors import StorageError
from collafuse.evaluation.audit import Audit
from collafuse.evaluation.evaluate import Evaluation
from collafuse.evaluation.plan import Plan
from collafuse.evaluation.tables import Table


@pytest.fixture
def run(trained, tmp_path):
    # Without the tokens of a service that another test may have started on the same run.
    return shutil.copytree(trained / "run", tmp_path / "run", ignore=shutil.ignore_patterns("registry.sqlite*"))


def test_a_run_is_evaluated_into_a_table_and_a_file(run, call_cli, monkeypatch):
    monkeypatch.setattr("collafuse.evaluation.features.STEPS", 50)
    table = call_cli("evaluate", "run", "--samples", 30, "--seed", 1).stdout
    assert table.startswith("**Quality against held-out images**")
    assert "**Work**" in table
    kept = json.loads((run / "evaluation" / "evaluation.json").read_text())
    assert kept["samples"] == 30
    assert {row["arm"] for row in kept["figures"]} >= {"real images (floor)", "server + client"}


def test_as_json_work_bytes_and_energy_are_there_too(call_cli, monkeypatch):
    """As of audit and plan; only the figures of quality were, and --energy --json said nothing of energy."""
    found = Evaluation("features", (), (Table("Energy", ("client",), (("north",),)),))
    monkeypatch.setattr("collafuse.evaluation.evaluate.evaluate", lambda *given, **settings: found)
    monkeypatch.setattr("collafuse.evaluation.standing.standing_of", lambda run: "as it is")
    shown = json.loads(call_cli("evaluate", "run", "--against", "other", "--energy", "--json").stdout)
    assert shown["standing_beside"] == {str(call_cli.folder / "other"): "as it is"}
    assert [table["title"] for table in shown["tables"]] == ["Energy"] and shown["standing"] == "as it is"
    assert shown["tables"] == json.loads((call_cli.folder / "run/evaluation/evaluation.json").read_text())["tables"]


MEASURED = {
    "evaluate": ("evaluate", Evaluation("features", (), ())),
    "audit": ("audit", Audit((), {}, Image.new("RGB", (1, 1)), ())),
    "plan": ("plan", Plan((), (), "")),
}


@pytest.mark.parametrize("command", MEASURED)
def test_figures_are_of_the_run_as_it_was_when_they_were_begun(call_cli, monkeypatch, command):
    """A training that goes on meanwhile leaves other models, and a report is to say so."""
    standing = ["before"]
    module, found = MEASURED[command]

    def measure(*given, **settings):
        standing.append("trained on")
        return found

    monkeypatch.setattr(f"collafuse.evaluation.{module}.{command}", measure)
    monkeypatch.setattr("collafuse.evaluation.standing.standing_of", lambda run: standing[-1])
    monkeypatch.setattr("collafuse.evaluation.plan_report.picture", lambda *given: b"")
    assert json.loads(call_cli(command, "run", "--json").stdout)["standing"] == "before"


@pytest.mark.parametrize("command", MEASURED)
def test_what_took_minutes_is_shown_though_the_disk_is_full(call_cli, monkeypatch, command):
    module, found = MEASURED[command]

    def full(path, *given, **settings):
        raise storage_error(path, OSError(errno.ENOSPC, "No space left on device"))

    monkeypatch.setattr(f"collafuse.evaluation.{module}.{command}", lambda *given, **settings: found)
    monkeypatch.setattr("collafuse.evaluation.plan_report.picture", lambda *given: b"")
    monkeypatch.setattr("collafuse.evaluation.tables.write_results", full)
    done = call_cli(command, "run", "--json", code=StorageError.exit_code)
    assert "tables" in json.loads(done.stdout) and "the disk is full" in done.stderr


def test_a_client_of_which_no_cut_could_be_tried_is_not_left_out_of_a_plan(call_cli, monkeypatch):
    """It was said on stderr alone, and the page showed a plan of the others."""
    monkeypatch.setattr("collafuse.evaluation.plan.plan", lambda *given, **settings: Plan((), (), "", ("south",)))
    monkeypatch.setattr("collafuse.evaluation.plan_report.picture", lambda *given: b"")
    said = "south: none of the cuts that were named (--cut) can be tried."
    assert json.loads(call_cli("plan", "run", "--json").stdout)["conclusions"] == [said]


def test_an_output_of_ones_own_is_not_overwritten(run, call_cli, tmp_path):
    (tmp_path / "mine.json").write_text("mine")
    assert "exists already" in call_cli("evaluate", "run", "-o", "mine.json", code=8).stderr
    assert (tmp_path / "mine.json").read_text() == "mine"


def test_an_evaluated_run_can_still_be_replaced(run, call_cli):
    (run / "evaluation").mkdir()
    call_cli("train", "digits.yaml", "-o", "run", "--overwrite")
    assert not (run / "evaluation").exists()


def test_a_run_becomes_one_page_that_is_made_anew(run, call_cli, tmp_path):
    call_cli("report", "run")
    first = (run / "report.html").read_text()
    assert first.startswith("<!doctype html>")
    call_cli("report", "run")
    (tmp_path / "mine.html").write_text("mine")
    assert "exists already" in call_cli("report", "run", "-o", "mine.html", code=8).stderr
