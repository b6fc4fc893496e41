"""collafuse audit as a user runs it."""

import json
import shutil

from PIL import Image

from collafuse.evaluation.tables import read_results


def test_audit_prints_the_verdict_first_and_leaves_figures_and_a_picture(trained, call_cli, tmp_path, monkeypatch):
    from collafuse.evaluation import audit, features, models_attacked

    for name, value in {"GENERATED": 32, "MOST_MEMBERS": 40}.items():
        monkeypatch.setattr(models_attacked, name, value)
    monkeypatch.setattr(audit, "MOST_RECONSTRUCTED", 32)
    monkeypatch.setattr(features, "STEPS", 5)
    shutil.copytree(trained / "run", tmp_path / "run")
    shutil.copy(trained / "north.onnx", tmp_path / "run")
    shown = call_cli("audit", "run").stdout
    assert shown.startswith("# Audit\n\nnorth, cut at sigma 0.5") and "**Membership inference" in shown
    tables, values = read_results(tmp_path / "run" / "evaluation" / "audit.json")
    assert len(tables) == 7 and len(values["verdict"]) == 3
    assert "bundle north.onnx" in json.dumps([table.to_json() for table in tables])
    with Image.open(tmp_path / "run" / "evaluation" / values["pictures"][0]) as picture:
        assert picture.width > 600


def test_a_server_alone_is_refused_with_the_reason(trained, call_cli, tmp_path):
    shutil.copytree(trained / "run" / "server", tmp_path / "at-server" / "server")
    assert "without its sites' images" in call_cli("audit", "at-server", code=4).stderr


def test_a_run_of_statistics_is_audited_too(call_cli, tmp_path, monkeypatch):
    from collafuse.evaluation import models_attacked

    for name, value in {"GENERATED": 32, "MOST_MEMBERS": 40}.items():
        monkeypatch.setattr(models_attacked, name, value)
    budget = [f"client.statistics.{setting}" for setting in ("epsilon=8", "coefficients=16", "clip=0.9")]
    call_cli("train", "digits-statistics.yaml", *(part for one in budget for part in ("--set", one)), "-o", "run")
    printed = json.loads(call_cli("audit", "run", "--json").stdout)
    tables, values = read_results(tmp_path / "run" / "evaluation" / "audit.json")
    assert printed["verdict"] == values["verdict"] and printed["tables"] == [table.to_json() for table in tables]
    assert values["verdict"][0].startswith(
        "north, statistics of 3 labels, 16 numbers of an image, with noise for epsilon"
    )
    assert len(values["verdict"]) == 3 and not any("budget" in alarm for alarm in values["alarms"])
    with Image.open(tmp_path / "run" / "evaluation" / values["pictures"][0]) as picture:
        assert picture.width > 600
