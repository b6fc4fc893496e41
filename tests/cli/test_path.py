"""The whole path through the real command line, every command in a process of its own."""

import json
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from collafuse.core import intermediate as intermediates
from tests.cli.test_serve import http, serving, token_of


def test_train_export_deliver_finish_inspect(run_trained, tmp_path):
    report = json.loads(
        run_trained("finish", "north.onnx", "north.safetensors", "-o", tmp_path / "out", "--json").stdout
    )
    assert report["images"] == 5 and report["nfe"] == 6
    pictures = sorted((tmp_path / "out").glob("0*.png"))
    assert [p.name for p in pictures] == [f"{i:06d}.png" for i in range(5)]
    with Image.open(pictures[4]) as picture:
        assert picture.size == (8, 8) and picture.mode == "L"
        assert picture.text["collafuse:labels"] == "2"
        assert picture.text["collafuse:sigma"] == "1"
        assert {"collafuse:bundle", "collafuse:server_model", "collafuse:steps"} <= set(picture.text)
    for name, kind in (
        ("north.onnx", "bundle"),
        ("north.safetensors", "intermediate"),
        ("run/server/releases/east.safetensors", "release"),
        ("run/server/weights.safetensors", "weights"),
    ):
        assert json.loads(run_trained("inspect", name, "--json").stdout)["kind"] == kind


def test_export_in_reduced_precision_calibrates_on_what_train_left(run_trained, tmp_path):
    command = ("export-client", "run", "--client", "north", "-o", tmp_path / "small.onnx", "--precision", "int8")
    done = run_trained(*command, "--json")
    made = json.loads(done.stdout)
    assert made["precision"] == "int8" and made["loss"]["images"] == 128
    described = json.loads(run_trained("inspect", tmp_path / "small.onnx", "--json").stdout)
    assert described["loss_against_fp32"] == made["loss"] and described["graph"] == "step"
    assert f"PSNR {made['loss']['psnr_db']:.1f} dB" in done.stderr
    run_trained("finish", tmp_path / "small.onnx", "north.safetensors", "-o", tmp_path / "out")
    assert (tmp_path / "out" / "sheet.png").is_file()


def test_the_same_seed_delivers_the_same_bytes(run_trained, tmp_path):
    run_trained("deliver", "run", "--client", "north", "-n", 5, "--seed", 1, "-o", tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (run_trained.folder / "north.safetensors").read_bytes()


def test_the_fastest_batch_is_found_and_changes_no_picture(call_trained, tmp_path):
    out = tmp_path / "auto.safetensors"
    words = ("deliver", "run", "--client", "north", "-n", 5, "--seed", 1)
    assert "images per evaluation are fastest here" in call_trained(*words, "--batch-size", "auto", "-o", out).stderr
    call_trained(*words, "-o", tmp_path / "usual.safetensors")
    same_pictures(out, tmp_path / "usual.safetensors")
    assert "auto" in call_trained(*words, "--batch-size", "many", "-o", tmp_path / "c.safetensors", code=2).stderr


@pytest.mark.torture  # torch takes minutes to compile
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_a_compiled_network_delivers_and_serves_the_same_pictures(run_trained, tmp_path):
    words = ("deliver", "run", "--client", "north", "-n", 5, "--seed", 1, "--batch-size", 4)
    done = run_trained(*words, "--compile", "-o", tmp_path / "compiled.safetensors")
    assert "left out" not in done.stderr
    run_trained(*words, "-o", tmp_path / "plain.safetensors")
    same_pictures(tmp_path / "compiled.safetensors", tmp_path / "plain.safetensors")
    token = token_of(run_trained, "sample")
    with serving(run_trained.folder, "--accept-simulated", "--slots", "4", "--compile") as (_, url):
        with http(url, token) as client:
            answer = client.post("/v1/intermediates", json={"client": "north", "count": 5, "seed": 1})
    (tmp_path / "served.safetensors").write_bytes(answer.raise_for_status().content)
    same_pictures(tmp_path / "served.safetensors", tmp_path / "plain.safetensors")


def same_pictures(one, other):
    made = [intermediates.read(path) for path in (one, other)]
    np.testing.assert_allclose(made[0].x, made[1].x, atol=1e-3)
    assert np.array_equal(made[0].labels, made[1].labels)


@pytest.mark.torture  # at length what the README's commands do in `make test`
def test_separate_machines(run_cli):
    """Release at each site, train the server on the files alone, train a client, then the same path."""
    sites = ("north", "east", "south")
    for name in sites:
        done = run_cli(
            "release", "digits.yaml", "--client", name, "--new-ledger", "-o", f"inbox/{name}.safetensors", "--json"
        )
        assert json.loads(done.stdout)["images"] > 100
    again = run_cli("release", "digits.yaml", "--client", "north", "-o", "second.safetensors", code=7)
    assert "--spend-again" in again.stderr
    assert not (run_cli.folder / "second.safetensors").exists()
    run_cli("train-server", "digits.yaml", "--releases", "inbox", "-o", "at-server")
    run_cli("train-client", "digits.yaml", "--client", "east", "-o", "at-east")
    run_cli("export-client", "at-east", "--client", "east", "-o", "east.onnx")
    small = ("export-client", "at-east", "--client", "east", "-o", "small.onnx", "--precision", "fp16")
    assert "pass --calibration FILE, made at the server by collafuse deliver" in run_cli(*small, code=2).stderr
    run_cli("deliver", "at-server", "--client", "east", "-n", 16, "--label", 4, "-o", "east.safetensors")
    run_cli("finish", "east.onnx", "east.safetensors", "-o", "pictures")
    run_cli(*small, "--calibration", "east.safetensors", "--graph", "whole")
    with Image.open(run_cli.folder / "pictures" / "sheet.png") as sheet:
        assert np.asarray(sheet).std() > 0
    distill = ("train-client", "digits.yaml", "--client", "east", "-o", "at-east", "--distill")
    run_cli(*distill, "--set", "client.distillation.steps=4")
    run_cli("export-client", "at-east", "--client", "east", "--distilled", "-o", "once.onnx")
    assert json.loads(run_cli("finish", "once.onnx", "east.safetensors", "-o", "once", "--json").stdout)["nfe"] == 1
    assert not (run_cli.folder / "at-server" / "clients").exists()
    assert not (run_cli.folder / "at-east" / "server").exists()


def test_simulated_releases_are_refused_by_train_server_without_the_flag(run_trained, tmp_path):
    command = ("train-server", "digits.yaml", "--releases", "run/server/releases", "-o", tmp_path / "run")
    assert "--accept-simulated" in run_trained(*command, code=7).stderr
    assert not (tmp_path / "run").exists()
    run_trained(*command, "--accept-simulated")


@pytest.mark.slow
def test_demo_runs_the_whole_path(run_cli):
    done = run_cli("demo", "-o", "demo")
    for picture in ("cuts.png", "north-server-beside-finished.png"):
        with Image.open(run_cli.folder / "demo" / "pictures" / picture) as image:
            assert np.asarray(image).std() > 0
    assert "Try next" in done.stdout and "north" in done.stdout


def test_an_interrupted_training_resumes_and_a_finished_one_is_not_overwritten(run_cli):
    run_cli("train", "digits.yaml", "-o", "run")
    weights = (run_cli.folder / "run/server/weights.safetensors").read_bytes()
    assert "--resume" in run_cli("train", "digits.yaml", "-o", "run", code=8).stderr
    run_cli("train", "digits.yaml", "-o", "run", "--resume")
    assert (run_cli.folder / "run/server/weights.safetensors").read_bytes() == weights


def test_an_interrupted_finish_says_how_to_go_on(trained, tmp_path, monkeypatch, capsys):
    """In this process, so that the interruption comes at a known place."""
    from cli.app import main
    from edge_client import finishing

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(finishing, "finish_to_folder", interrupted)
    words = ("finish", str(trained / "north.onnx"), str(trained / "north.safetensors"), "-o", str(tmp_path / "out"))
    monkeypatch.setattr(sys, "argv", ["collafuse", *words])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 130 and "the same command goes on from here" in capsys.readouterr().err
