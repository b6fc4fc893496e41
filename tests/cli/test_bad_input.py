"""Bad input: one clear sentence with the value, what was expected and what to do; no traceback; nothing left."""

import shutil

import pytest

from tests.cli.conftest import Cli

CONFIGS = {
    "server.netwrok.channels=8": ("netwrok", "'network'"),
    "clients.north.cut={sigma: 100}": ("100", "80"),
    "clients.north.cut={sigma: 0.001}": ("0.001", "0.002"),
    "clients.north.cut={sigma: 1, log_snr: 0}": ("sigma and log_snr", "exactly one"),
    "clients.north.cut={t: 0.5}": ("t=0.5", "schedule"),
    "data.dataset=celeba": ("celeba", "digits"),
    "server.training.steps=many": ("many", "integer"),
    "clients.north.labels=[zero]": ("zero", "0, 1"),
}


@pytest.mark.parametrize("setting", CONFIGS)
def test_a_wrong_configuration(run_cli, setting):
    stderr = run_cli("train", "digits.yaml", "-o", "run", "--set", setting, code=4 if "labels" in setting else 3).stderr
    assert all(part in stderr for part in CONFIGS[setting]), stderr
    assert not (run_cli.folder / "run").exists()


def test_a_missing_configuration(run_cli):
    assert "nowhere.yaml" in run_cli("train", "nowhere.yaml", "-o", "run", code=3).stderr


def test_a_client_that_does_not_exist(trained, tmp_path):
    cli = Cli(trained)
    assert "'north'" in cli("train-client", "digits.yaml", "--client", "nort", "-o", tmp_path / "a", code=3).stderr
    assert "nort" in cli("deliver", "run", "--client", "nort", "-n", 1, "-o", tmp_path / "b", code=7).stderr
    assert "nort" in cli("export-client", "run", "--client", "nort", "-o", tmp_path / "c.onnx", code=5).stderr
    assert not list(tmp_path.iterdir())


def test_labels_that_cannot_be_delivered(trained, tmp_path):
    cli = Cli(trained)
    out = tmp_path / "x.safetensors"
    assert "banana" in cli("deliver", "run", "--client", "north", "--label", "banana", "-o", out, code=6).stderr
    # 4 was released by east at sigma 1, above north's cut of 0.5.
    assert "'4'" in cli("deliver", "run", "--client", "north", "--label", 4, "-o", out, code=7).stderr
    assert not out.exists()


@pytest.mark.parametrize("what", ["empty", "missing", "corrupt"])
def test_image_folders_that_cannot_be_read(run_cli, what):
    root = run_cli.folder / "images"
    if what != "missing":
        (root / "cats").mkdir(parents=True)
    if what == "corrupt":
        (root / "cats" / "a.png").write_bytes(b"not an image")
    arguments = ["--set", f"data.path={root}", "--set", "data.image_size=8"]
    stderr = run_cli("train", "cifar10-small.yaml", "-o", "run", *arguments, code=4).stderr
    assert ("a.png" if what == "corrupt" else "images") in stderr
    assert not (run_cli.folder / "run").exists()


@pytest.mark.parametrize("name", ["north.onnx", "north.safetensors"])
@pytest.mark.parametrize("damage", ["cut", "foreign", "empty"])
def test_damaged_files_are_refused(trained, tmp_path, name, damage):
    for each in ("north.onnx", "north.safetensors"):
        shutil.copy(trained / each, tmp_path)
    data = (tmp_path / name).read_bytes()
    bad = {"cut": data[: len(data) // 2], "foreign": b"PK\x03\x04" + bytes(500), "empty": b""}[damage]
    (tmp_path / name).write_bytes(bad)
    stderr = Cli(tmp_path)("finish", "north.onnx", "north.safetensors", "-o", "out", code=5).stderr
    assert name in stderr
    assert not (tmp_path / "out").exists()


def test_a_bundle_of_another_client_does_not_finish_the_intermediate(trained, tmp_path):
    cli = Cli(trained)
    cli("export-client", "run", "--client", "east", "-o", tmp_path / "east.onnx")
    stderr = cli("finish", tmp_path / "east.onnx", "north.safetensors", "-o", tmp_path / "out", code=6).stderr
    assert "label" in stderr and not (tmp_path / "out").exists()


def test_existing_outputs_are_not_overwritten(trained, tmp_path):
    cli = Cli(trained)
    old = tmp_path / "old"
    old.write_bytes(b"mine")
    cli("export-client", "run", "--client", "north", "-o", old, code=8)
    cli("deliver", "run", "--client", "north", "-n", 1, "-o", old, code=8)
    cli("release", "digits.yaml", "--client", "north", "-o", old, code=8)
    assert old.read_bytes() == b"mine"
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (pictures / "000003.png").write_bytes(b"mine")
    stderr = cli("finish", "north.onnx", "north.safetensors", "-o", pictures, code=8).stderr
    assert "000003.png" in stderr and [p.name for p in pictures.iterdir()] == ["000003.png"]
    cli("finish", "north.onnx", "north.safetensors", "-o", pictures, "--overwrite")


def test_a_run_folder_that_is_none_is_not_removed(run_cli):
    (run_cli.folder / "precious").mkdir()
    (run_cli.folder / "precious" / "thesis.txt").write_text("words")
    run_cli("train", "digits.yaml", "-o", "precious", "--overwrite", code=8)
    assert (run_cli.folder / "precious" / "thesis.txt").read_text() == "words"


def test_finishing_without_a_bundle_that_exists(run_cli):
    assert "nothing.onnx" in run_cli("finish", "nothing.onnx", "x.safetensors", "-o", "out", code=5).stderr
