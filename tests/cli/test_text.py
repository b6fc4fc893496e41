"""Text from captions to finished pictures, through the real commands, with a T5 of a few thousand random weights."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cli.app import main
from collafuse.core import intermediate as intermediates
from collafuse.core import release as releases
from collafuse.evaluation import features
from tests.cli.conftest import TINY_OPTIONS, InProcess
from tests.cli.test_serve import serving, token_of

pytest.importorskip("transformers", reason="text encoders need collafuse[text]")

from tests.tinyt5 import tiny_t5

TEXT = ("--set", "data.text.encoder=t5", "--set", "data.cache=cache")
ONE_SITE = ("--set", "clients={north: {labels: ['0', '1', '2'], cut: {sigma: 0.5}, ledger: north.sqlite}}")


@pytest.fixture
def run(call_cli):
    """Commands in a folder with an encoder."""
    tiny_t5(call_cli.folder / "t5")
    return call_cli


@pytest.fixture(scope="module")
def trained_with_text(tmp_path_factory):
    """A folder with an encoder and a tiny run; read-only for tests."""
    folder = tmp_path_factory.mktemp("text")
    tiny_t5(folder / "t5")
    words = ["collafuse", "train", *TINY_OPTIONS, "digits.yaml", *TEXT, *ONE_SITE, "-o", "run"]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.chdir(folder)
        patch.setattr(sys, "argv", words)
        main()
    assert not stop.value.code
    return folder


@pytest.fixture
def run_trained(trained_with_text, tmp_path, monkeypatch, capsys):
    """Commands in a folder of the test's own with that run."""
    shutil.copytree(trained_with_text, tmp_path / "own")
    return InProcess(tmp_path / "own", monkeypatch, capsys)


def prompts_of(pictures: Path) -> list[str]:
    return [Image.open(path).text.get("collafuse:prompt", "") for path in sorted(pictures.glob("0*.png"))]


def test_from_captions_to_pictures_with_a_text_that_is_shared(run_trained):
    run, folder = run_trained, run_trained.folder
    shown = run("data", "digits.yaml", *TEXT, *ONE_SITE).stdout
    assert "have a caption, such as '" in shown and "3 labels and text of t5-8-" in shown
    release = releases.read(folder / "run/server/releases/north.safetensors")
    one, two = (release.text.rows[release.labels[:, i] == 1] for i in (1, 2))
    assert (one == one[0]).all() and (two == two[0]).all() and not np.array_equal(one[0], two[0])
    assert "t5-8-" not in (folder / "run/server/config.yaml").read_text()

    run("text", "1", "2", "--encoder", "t5", "-o", "prompts.safetensors")
    run("deliver", "run", "--client", "north", "-n", 4, "--text", "prompts.safetensors", "-o", "asked.safetensors")
    asked = intermediates.read(folder / "asked.safetensors").text
    assert np.array_equal(asked.rows, np.stack([one[0], one[0], two[0], two[0]]))
    run("export-client", "run", "--client", "north", "-o", "north.onnx")
    run("finish", "north.onnx", "asked.safetensors", "-o", "pictures")
    assert len(prompts_of(folder / "pictures")) == 4
    refused = run("finish", "north.onnx", "asked.safetensors", "--text", "prompts.safetensors", "-o", "p2", code=6)
    assert "were made for text and are finished as that" in refused.stderr

    for name, kind in (
        ("prompts.safetensors", "text"),
        ("asked.safetensors", "intermediate"),
        ("north.onnx", "bundle"),
    ):
        told = json.loads(run("inspect", name, "--json").stdout)
        assert told["kind"] == kind and told["text_encoder"].startswith("t5-8-") and told["text_width"] == 8


def test_a_device_asks_a_server_for_a_text_and_it_is_what_a_file_would_be(run_trained):
    run, folder = run_trained, run_trained.folder
    run("export-client", "run", "--client", "north", "-o", "north.onnx")
    run("text", "1", "2", "--encoder", "t5", "-o", "prompts.safetensors")
    (folder / "token").write_text(token_of(run, "sample"))
    asked = ("-n", 4, "--seed", 4, "--text", "prompts.safetensors")
    with serving(folder, "--accept-simulated", "--slots", "2") as (_, url):
        run("finish", "north.onnx", "--server", url, "--token-file", "token", *asked, "-o", "web")
    run("deliver", "run", "--client", "north", *asked, "--batch-size", 2, "-o", "file.safetensors")
    run("finish", "north.onnx", "file.safetensors", "-o", "file")
    for index in range(4):
        web, file = (Image.open(folder / name / f"{index:06d}.png") for name in ("web", "file"))
        assert web.tobytes() == file.tobytes() and web.text == file.text


def test_from_captions_to_pictures_on_separate_machines_with_a_text_that_is_kept(run):
    folder, kept = run.folder, ("--set", "client.share_text=false")
    run(
        "release",
        "digits.yaml",
        *TEXT,
        *ONE_SITE,
        *kept,
        "--client",
        "north",
        "--new-ledger",
        "-o",
        "in/north.safetensors",
    )
    assert releases.read(folder / "in/north.safetensors").text is None
    run("train-server", "digits.yaml", *ONE_SITE, "--releases", "in", "-o", "server")  # which needs no encoder
    run("train-client", "digits.yaml", *TEXT, *ONE_SITE, *kept, "--client", "north", "-o", "site")
    run("export-client", "site", "--client", "north", "-o", "north.onnx")
    (folder / "prompts.txt").write_text("1\n\n2\n")
    run("text", "--file", "prompts.txt", "--encoder", "t5", "-o", "prompts.safetensors")
    refused = run("deliver", "server", "--client", "north", "--text", "prompts.safetensors", "-o", "no", code=6)
    assert "this model was trained without text" in refused.stderr
    run("deliver", "server", "--client", "north", "-n", 4, "-o", "any.safetensors")
    run("finish", "north.onnx", "any.safetensors", "--text", "prompts.safetensors", "-o", "pictures")
    assert prompts_of(folder / "pictures") == ["1", "1", "2", "2"]


@pytest.mark.slow
def test_a_run_with_text_is_measured_and_attacked(run_trained, monkeypatch):
    monkeypatch.setattr(features, "STEPS", 5)
    run = run_trained
    figures = json.loads(run("evaluate", "run", "--samples", 20, "--json").stdout)["figures"]
    assert {row["arm"] for row in figures} > {"server + client", "true noise + client"}
    assert run("audit", "run").stdout


def test_captions_beside_images_and_in_a_table(run, tmp_path):
    images = run.folder / "images"
    images.mkdir()
    rng = np.random.default_rng(0)
    for i in range(12):
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(images / f"{i}.png")
        (images / f"{i}.txt").write_text("a cat" if i % 2 else "a smiling dog")
    (images / "0.txt").unlink()
    (images / "table.csv").write_text("image,hat,said\n" + "".join(f"{i},{i % 2},a man {i}\n" for i in range(12)))
    (run.folder / "mine.yaml").write_text(
        "data: {dataset: folder, path: images, image_size: 8, channels: 1, text: {encoder: t5, captions: files}}\n"
        "clients: {a: {cut: {sigma: 0.5}}}\n"
    )
    site = json.loads(run("data", "mine.yaml", "--json").stdout)["sites"]["a"]
    assert site["captions"] == [11, "a cat"] and site["labels"] == {}
    table = (
        "--set",
        "data.table={path: table.csv}",
        "--set",
        "data.text={encoder: t5, captions: column, column: said}",
    )
    site = json.loads(run("data", "mine.yaml", *table, "--json").stdout)["sites"]["a"]
    assert site["captions"] == [12, "a man 0"] and site["labels"] == {"hat": 6}
    run("train", "mine.yaml", "-o", "run")
    rows = releases.read(run.folder / "run/server/releases/a.safetensors").text.rows
    assert rows.any(axis=1).sum() == 11 and len(np.unique(rows, axis=0)) == 3  # a cat, a smiling dog, and nothing


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("text", "a cat", "--encoder", "none", "-o", "p"), 4, "neither a folder nor an encoder"),
        (("text", "--encoder", "t5", "-o", "p"), 2, "0 prompts; give 1 to 256"),
        (("data", "digits.yaml", "--set", "data.text.encoder=none"), 4, "hf download google-t5/t5-small"),
        (("data", "digits.yaml", "--set", "data.text={encoder: t5, captions: files}"), 3, "goes with dataset 'folder'"),
        (("data", "digits.yaml", "--set", "data.text={encoder: t5, captions: column}"), 3, "column goes with"),
        (("data", "digits.yaml", "--set", "data.text={encoder: t5, captions: column, column: a}"), 3, "give table"),
        (("train", "digits-statistics.yaml", *TEXT, "-o", "r"), 3, "share_text=false"),
        (("deliver", "none", "--client", "a", "--text", "t5/config.json", "-o", "d"), 5, "config.json"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(run, arguments, code, says):
    assert says in run(*arguments, code=code).stderr


def test_without_transformers_the_extra_is_named(run, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    refused = run("text", "a cat", "--encoder", "t5", "-o", "p", code=11)
    assert "pip install 'collafuse[text]'" in refused.stderr
    assert isinstance(run, InProcess)
