"""Bad input: one clear sentence with the value, what was expected and what to do; no traceback; nothing left."""

import os
import shutil
import sys

import pytest

CONFIGS = {
    "server.netwrok.channels=8": ("netwrok", "'network'"),
    "clients.north.cut={sigma: 100}": ("100", "80"),
    "clients.north.cut={sigma: 0.001}": ("0.001", "0.002"),
    "clients.north.cut={sigma: 1, log_snr: 0}": ("sigma and log_snr", "exactly one"),
    "clients.north.cut={t: 0.5}": ("t=0.5", "schedule"),
    "data.dataset=imagenet": ("imagenet", "digits"),
    "server.training.steps=many": ("many", "integer"),
    "clients.north.labels=[zero]": ("zero", "0, 1"),
}


@pytest.mark.parametrize("setting", CONFIGS)
def test_a_wrong_configuration(call_cli, setting):
    stderr = call_cli(
        "train", "digits.yaml", "-o", "run", "--set", setting, code=4 if "labels" in setting else 3
    ).stderr
    assert all(part in stderr for part in CONFIGS[setting]), stderr
    assert not (call_cli.folder / "run").exists()


def test_a_missing_configuration(call_cli):
    assert "nowhere.yaml" in call_cli("train", "nowhere.yaml", "-o", "run", code=3).stderr


@pytest.mark.parametrize(
    "command", ["train-client digits.yaml", "release digits.yaml", "deliver run", "export-client run"]
)
def test_a_client_that_does_not_exist(call_trained, trained, tmp_path, command):
    stderr = call_trained(*command.split(), "--client", "nort", "-o", tmp_path / "a", code=3).stderr
    assert "'nort'" in stderr and "Did you mean 'north'?" in stderr
    assert not list(tmp_path.iterdir())


def test_a_client_that_was_not_distilled(call_trained, tmp_path):
    arguments = ("export-client", "run", "--client", "north", "--distilled", "-o", tmp_path / "a")
    stderr = call_trained(*arguments, code=2).stderr
    assert "run holds no distilled client of north" in stderr and "train-client" in stderr and "--distill," in stderr
    assert not list(tmp_path.iterdir())


def test_labels_that_cannot_be_delivered(call_trained, trained, tmp_path):
    out = tmp_path / "x.safetensors"
    assert (
        "banana" in call_trained("deliver", "run", "--client", "north", "--label", "banana", "-o", out, code=6).stderr
    )
    # 4 was released by east at sigma 1, above north's cut of 0.5.
    assert "'4'" in call_trained("deliver", "run", "--client", "north", "--label", 4, "-o", out, code=7).stderr
    assert not out.exists()


def test_torchrun_with_a_command_that_cannot_be_shared(call_cli, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    stderr = call_cli("train", "digits.yaml", "-o", "run", code=2).stderr
    assert "2 processes of train" in stderr and "only train-server" in stderr
    assert not (call_cli.folder / "run").exists()


def test_torchrun_with_a_server_that_adds_up_statistics(call_cli, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    adding_up = ("train-server", "digits.yaml", "--set", "server.kind=statistics", "--releases", ".", "-o", "run")
    assert "work for one process; start train-server without torchrun" in call_cli(*adding_up, code=2).stderr
    assert not (call_cli.folder / "run").exists()


@pytest.mark.parametrize("what", ["empty", "missing", "corrupt"])
def test_image_folders_that_cannot_be_read(call_cli, what):
    root = call_cli.folder / "images"
    if what != "missing":
        (root / "cats").mkdir(parents=True)
    if what == "corrupt":
        (root / "cats" / "a.png").write_bytes(b"not an image")
    arguments = ["--set", f"data.path={root}", "--set", "data.image_size=8"]
    stderr = call_cli("train", "cifar10-small.yaml", "-o", "run", *arguments, code=4).stderr
    assert ("a.png" if what == "corrupt" else "images") in stderr
    assert not (call_cli.folder / "run").exists()


@pytest.mark.parametrize("name", ["north.onnx", "north.safetensors"])
@pytest.mark.parametrize("damage", ["cut", "foreign", "empty"])
def test_damaged_files_are_refused(call_trained, trained, tmp_path, name, damage):
    for each in ("north.onnx", "north.safetensors"):
        shutil.copy(trained / each, tmp_path)
    data = (tmp_path / name).read_bytes()
    bad = {"cut": data[: len(data) // 2], "foreign": b"PK\x03\x04" + bytes(500), "empty": b""}[damage]
    (tmp_path / name).write_bytes(bad)
    stderr = call_trained(
        "finish", tmp_path / "north.onnx", tmp_path / "north.safetensors", "-o", tmp_path / "out", code=5
    ).stderr
    assert name in stderr
    assert not (tmp_path / "out").exists()


def test_a_bundle_of_another_client_does_not_finish_the_intermediate(call_trained, trained, tmp_path):
    call_trained("export-client", "run", "--client", "east", "-o", tmp_path / "east.onnx")
    stderr = call_trained("finish", tmp_path / "east.onnx", "north.safetensors", "-o", tmp_path / "out", code=6).stderr
    assert "label" in stderr and not (tmp_path / "out").exists()


def test_existing_outputs_are_not_overwritten(call_trained, trained, tmp_path):
    old = tmp_path / "old"
    old.write_bytes(b"mine")
    call_trained("export-client", "run", "--client", "north", "-o", old, code=8)
    call_trained("deliver", "run", "--client", "north", "-n", 1, "-o", old, code=8)
    call_trained("release", "digits.yaml", "--client", "north", "--new-ledger", "-o", old, code=8)
    assert old.read_bytes() == b"mine"
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (pictures / "000003.png").write_bytes(b"mine")
    stderr = call_trained("finish", "north.onnx", "north.safetensors", "-o", pictures, code=8).stderr
    assert "000003.png" in stderr and [p.name for p in pictures.iterdir()] == ["000003.png"]
    call_trained("finish", "north.onnx", "north.safetensors", "-o", pictures, "--overwrite")


def test_options_of_a_reduced_precision_are_not_taken_in_silence_without_one(call_trained, tmp_path):
    command = ("export-client", "run", "--client", "north", "-o", tmp_path / "a.onnx")
    for words in (("--calibration", "north.safetensors"), ("--force",)):
        refused = call_trained(*command, *words, code=2).stderr
        assert f"{words[0]}: for --precision fp16 or int8 only" in refused
    assert not (tmp_path / "a.onnx").exists()


def test_a_run_folder_that_is_none_is_not_removed(call_cli):
    (call_cli.folder / "precious").mkdir()
    (call_cli.folder / "precious" / "thesis.txt").write_text("words")
    call_cli("train", "digits.yaml", "-o", "precious", "--overwrite", code=8)
    assert (call_cli.folder / "precious" / "thesis.txt").read_text() == "words"


def test_finishing_without_a_bundle_that_exists(call_cli):
    assert "nothing.onnx" in call_cli("finish", "nothing.onnx", "x.safetensors", "-o", "out", code=5).stderr


def test_a_command_that_needs_torch_says_so_where_there_is_none(call_cli, monkeypatch):
    for name in [m for m in sys.modules if m.startswith("collafuse.learning")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    stderr = call_cli("train", "digits.yaml", "-o", "run", code=11).stderr
    assert "torch" in stderr and "collafuse[train]" in stderr


def test_a_first_release_must_say_that_it_is_the_first(call_cli):
    stderr = call_cli("release", "digits.yaml", "--client", "north", "-o", "a.safetensors", code=7).stderr
    assert "--new-ledger" in stderr and not list(call_cli.folder.iterdir())


def test_an_older_run_stays_until_everything_else_is_known_to_be_good(call_cli):
    call_cli("train", "digits.yaml", "-o", "run")
    call_cli("train", "digits.yaml", "-o", "run", "--overwrite", "--device", "cuda:99", code=1)
    call_cli("train", "digits.yaml", "-o", "run", "--overwrite", "--set", "clients.north.labels=[zero]", code=4)
    assert (call_cli.folder / "run/server/weights.safetensors").exists()
    (call_cli.folder / "run" / "notes.txt").write_text("mine")
    assert "notes.txt" in call_cli("train", "digits.yaml", "-o", "run", "--overwrite", code=8).stderr


def test_an_older_node_stays_until_everything_else_is_known_to_be_good(call_cli):
    def weights(node):
        return (call_cli.folder / "run" / node / "weights.safetensors").read_bytes()

    client = ("train-client", "digits.yaml", "--client", "north", "-o", "run")
    call_cli("train", "digits.yaml", "-o", "old")
    server = ("train-server", "digits.yaml", "--releases", "old/server/releases", "--accept-simulated", "-o", "run")
    before = {}
    for command, node in ((client, "clients/north"), (server, "server")):
        call_cli(*command)
        before[node] = weights(node)
        call_cli(*command, "--overwrite", "--device", "cuda:99", code=1)
        call_cli(*command, "--overwrite", "--track", "mlflow", code=2)
        call_cli(*command, "--overwrite", "--set", f"{node[:6]}.training.accumulate=3", code=3)
    wider = ("--set", "client.network.channels=16")
    call_cli(*client, "--overwrite", "--init", "run/server/weights.safetensors", *wider, code=6)
    call_cli(*server, "--overwrite", "--set", "clients.north.cut={sigma: 3}", code=6)
    assert {node: weights(node) for node in before} == before
    call_cli(*client, "--overwrite", "--set", "client.training.seed=1")
    assert weights("clients/north") != before["clients/north"]
    metrics = (call_cli.folder / "run/clients/north/metrics.jsonl").read_text().splitlines()
    assert len(metrics) == 1  # of the six steps of the new one


def test_an_unknown_attribute_is_refused_with_the_closest(call_trained, tmp_path):
    command = ("deliver", "run", "--client", "north", "-n", 1, "-o", tmp_path / "a.safetensors")
    assert "label '11' is not known" in call_trained(*command, "--attributes", "1, 11", code=6).stderr
    assert not (tmp_path / "a.safetensors").exists()
    call_trained(*command, "--attributes", "1,2")


@pytest.mark.parametrize(("option", "names"), [("--attributes", ""), ("--attributes", " , "), ("--label", "")])
def test_attributes_that_name_nothing_are_not_taken_for_none_given(call_trained, tmp_path, option, names):
    for command in (("deliver", "run", "--client", "north"), ("finish", "north.onnx", "north.safetensors")):
        refused = call_trained(*command, option, names, "-o", tmp_path / "out", code=2)
        assert f"{option} names nothing" in refused.stderr
    assert not (tmp_path / "out").exists()


def test_what_was_made_for_a_label_is_not_finished_as_another(call_trained, tmp_path):
    command = ("finish", "north.onnx", "north.safetensors", "--label", "2", "-o", tmp_path / "out")
    assert "were made for 0, 1, 2 and are finished as that" in call_trained(*command, code=6).stderr
    assert not (tmp_path / "out").exists()


def test_a_release_that_is_completed_is_said_to_stand_where_it_was_drawn(call_cli, monkeypatch):
    command = ("release", "digits.yaml", "--client", "north", "-o", "a.safetensors", "--set")
    at = "clients.north.cut={{sigma: {}}}".format
    ledger = ("--set", "clients.north.ledger=ledger.sqlite")
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        call_cli(*command, at(0.5), *ledger, "--new-ledger", code=130)
    done = call_cli(*command, at(2.0), *ledger)
    assert "sigma 0.5" in done.stderr and "sigma 2" not in done.stderr, done.stderr


@pytest.mark.parametrize(
    "command",
    ["train digits.yaml", "train-server digits.yaml --releases inbox", "train-client digits.yaml --client north"],
)
def test_going_on_and_replacing_at_once(call_cli, command):
    stderr = call_cli(*command.split(), "-o", "run", "--resume", "--overwrite", code=2).stderr
    assert "--resume" in stderr and "--overwrite" in stderr and "give one of the two" in stderr
    assert not list(call_cli.folder.iterdir())
