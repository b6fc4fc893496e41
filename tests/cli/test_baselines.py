"""A configuration as a baseline, through the command line."""

import json

import pytest

REFUSED = {
    "deliver": ("deliver", "run", "--client", "north", "-n", 2, "-o", "x.safetensors"),
    "export-client": ("export-client", "run", "--client", "north", "-o", "north.onnx"),
    "serve": ("serve", "run"),
}


def test_any_configuration_becomes_a_baseline_and_stays_one(call_cli):
    setting = ("--set", "method=centralised")
    made = json.loads(call_cli("train", "digits.yaml", "-o", "run", *setting, "--json").stdout)
    assert made == {"run": "run", "method": "centralised", "models": ["whole"]}
    for name, command in REFUSED.items():
        stderr = call_cli(*command, code=7).stderr
        assert "baseline 'centralised'" in stderr and name in stderr and "method: collafuse" in stderr
    assert not list(call_cli.folder.glob("*.safetensors")) and not list(call_cli.folder.glob("*.onnx"))
    assert "method=centralised" in call_cli("train", "digits.yaml", "-o", "run", "--resume", code=6).stderr
    call_cli("train", "digits.yaml", "-o", "run", "--overwrite")
    assert not (call_cli.folder / "run" / "models").exists()


@pytest.mark.parametrize(
    "command",
    [
        "release digits.yaml --client north -o a.safetensors",
        "train-client digits.yaml --client north -o site",
        "train-server digits.yaml --releases nowhere -o site",
        "demo -o site",
    ],
)
def test_a_part_of_the_method_is_not_trained_as_a_baseline(call_cli, command):
    stderr = call_cli(*command.split(), "--set", "method=local", code=3).stderr
    assert "method=local is a baseline" in stderr
    assert not list(call_cli.folder.iterdir())


def test_an_unknown_method_is_refused_with_those_there_are(call_cli):
    assert "'centralised'" in call_cli("train", "digits.yaml", "-o", "run", "--set", "method=central", code=3).stderr


def test_a_baseline_has_no_warm_start(call_cli):
    command = ("train", "digits.yaml", "-o", "run", "--set", "method=local", "--warm-start")
    assert "--warm-start" in call_cli(*command, code=2).stderr
    assert not (call_cli.folder / "run").exists()
