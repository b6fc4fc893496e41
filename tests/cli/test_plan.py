"""collafuse plan as a user runs it."""

import shutil

from PIL import Image

from collafuse.evaluation.tables import read_results


def test_plan_names_the_cut_that_fits_and_asks_again_at_no_cost(trained, call_cli, tmp_path, monkeypatch):
    from collafuse.evaluation import features

    monkeypatch.setattr(features, "STEPS", 5)
    shutil.copytree(trained / "run", tmp_path / "run")
    command = ("plan", "run", "--cut", 0.6, "--train-steps", 2)
    first = call_cli(*command, "--max-reid", 0.999)
    assert first.stdout.startswith("# Plan\n\nnorth: cut at sigma 0.6") and "2/2" in first.stderr
    again = call_cli(*command, "--max-reid", 0)
    assert "no cut meets what is asked. At none of these are few enough releases recognised." in again.stdout
    assert "2/2" not in again.stderr  # nothing was trained
    (table,), values = read_results(tmp_path / "run" / "evaluation" / "plan.json")
    assert len(table.rows) == len(values["cuts"]) == 1 and values["demands"]["max_reid"] == 0
    with Image.open(tmp_path / "run" / "evaluation" / values["pictures"][0]) as picture:
        assert picture.width > 300


def test_an_impossible_demand_is_refused(trained, call_cli):
    assert "--max-reid" in call_cli("plan", trained / "run", "--max-reid", 2, code=2).stderr
