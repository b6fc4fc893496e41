"""A run that is sampled with autoguidance: who makes images of it is guided, who attacks it asks what was learned."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from cli.app import build
from collafuse.config import from_mapping
from collafuse.data.dealing import load_sites
from collafuse.evaluation import baselines, models_attacked
from collafuse.evaluation.arms import SplitRun
from collafuse.evaluation.plan import Settings, key_of
from collafuse.evaluation.whole_run import WholeRun, asked
from collafuse.evaluation.work import work_tables
from collafuse.learning import weights
from collafuse.learning.autoguidance import AutoGuided
from collafuse.nodes.runfolder import RunFolder
from tests.evaluation.conftest import SETTINGS, train
from tests.tiny import CPU, Recorder

GUIDED = {
    name: SETTINGS[name] | {"sampler": SETTINGS[name]["sampler"] | {"autoguidance": weight}}
    for name, weight in (("server", 2.0), ("client", 3.0))
}


@pytest.fixture(scope="module")
def guided_run(tmp_path_factory) -> RunFolder:
    return train(tmp_path_factory.mktemp("guided") / "run", **GUIDED)


def split_of(run: RunFolder) -> SplitRun:
    return SplitRun(run, {name: site.held_out for name, site in load_sites(run.read_config()).items()}, CPU)


def weights_of(*denoisers) -> list[float]:
    assert all(isinstance(one, AutoGuided) for one in denoisers)
    return [one.weight for one in denoisers]


def test_whoever_makes_images_of_a_run_is_guided_as_it_says(guided_run):
    for run in (split_of(guided_run), WholeRun.open(guided_run, CPU)):
        assert weights_of(run.server.model.denoiser, run.models["north"].denoiser) == [2.0, 3.0]


def test_an_attack_asks_what_a_model_learned(guided_run):
    run = WholeRun.open(guided_run, CPU)
    model, images = run.models["north"], run.sites["north"].train.take(np.arange(3))
    x, conditions = images.x0(), run.told("north", images, model.space)
    found = asked(model, CPU)(x, 0.4, conditions)
    learned = weights.load(guided_run.client("north").weights).denoiser
    with torch.inference_mode():
        expected = learned(torch.from_numpy(x), 0.4, torch.from_numpy(conditions)).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_an_audit_says_that_a_guided_bundle_was_asked_as_a_whole(guided_run, tmp_path):
    path = guided_run.path / "north.onnx"
    build()(["export-client", str(guided_run.path), "--client", "north", "-o", str(path)], standalone_mode=False)
    try:
        names = [tensor.name for tensor in onnx.load(path).graph.initializer]
        assert any(".early." in name for name in names) and any(".trained." in name for name in names)
        said = []
        found = models_attacked.memberships(WholeRun.open(guided_run, CPU), 0, said.append)
    finally:
        path.unlink()
    assert "bundle north.onnx" in found and len(said) == 1 and "north.onnx holds two networks" in said[0]


def test_the_work_is_of_both_networks_and_the_training_of_one(guided_run, digits_run):
    guided, plain = (
        [dict(zip(table.columns, row, strict=True)) for row in table.rows]
        for table in (work_tables(split_of(run), run)[0] for run in (guided_run, digits_run))
    )
    for one, other in zip(guided, plain, strict=True):
        assert one["MACs per image"] == 2 * other["MACs per image"] and one["parameters"] == 2 * other["parameters"]
        assert one["MACs in training"] == other["MACs in training"]


def test_a_plan_keeps_what_it_measured_before_there_was_any(digits_run, guided_run):
    keys = [
        str(key_of(WholeRun.open(run, CPU), "north", 0.5, Settings(), "classifier")) for run in (digits_run, guided_run)
    ]
    assert "autoguidance" not in keys[0] and "'autoguidance': 2.0" in keys[1] and "'autoguidance': 3.0" in keys[1]


@pytest.mark.parametrize("method", ["centralised", "reference"])
def test_a_baseline_is_guided_by_what_lies_beside_its_weights(tmp_path, method):
    run = RunFolder(tmp_path / "run")
    config = from_mapping(SETTINGS | GUIDED | {"method": method})
    baselines.train(config, run, CPU, lambda name: Recorder())
    assert all((path.parent / weights.EARLY).is_file() for path in run.models.glob("*/weights.safetensors"))
    guided = baselines.generate(run, "north", 6, 1, CPU)
    run.write_config(from_mapping(SETTINGS | {"method": method}))
    plain = baselines.generate(run, "north", 6, 1, CPU)
    assert not np.array_equal(guided.pixels, plain.pixels)
    for path in run.models.rglob(weights.EARLY):
        path.write_bytes(b"damaged")
    assert np.array_equal(baselines.generate(run, "north", 6, 1, CPU).pixels, plain.pixels)  # nobody needs it
