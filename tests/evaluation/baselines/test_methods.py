"""Every baseline as a run: trained from any configuration, generated from, refused where it does not belong."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from collafuse.config import Config, load
from collafuse.core.conditioning import TextSpace
from collafuse.core.errors import ConfigError, FileFormatError, MismatchError, RefusedError, UsageError
from collafuse.core.texts import EncodedText
from collafuse.data.dealing import SiteData, load_sites
from collafuse.evaluation.arms import arms_of
from collafuse.evaluation.baselines import METHODS, generate, methods, train
from collafuse.evaluation.baselines.part import clean_data
from collafuse.learning import weights
from collafuse.nodes.experiment import run_experiment
from collafuse.nodes.runfolder import RunFolder
from tests.tiny import CPU, Recorder, image_set

MODELS = {
    "centralised": {"whole"},
    "fedavg": {"whole"},
    "local": {"north", "east", "south"},
    **{name: {"server", "north", "east", "south"} for name in ("reference", "reference-repaired", "pfdm")},
}


def observer(name: str) -> Recorder:
    return Recorder()


def as_method(config: Config, method: str) -> Config:
    return config.model_copy(update={"method": method})


@pytest.fixture(scope="module", params=METHODS)
def trained(request, tiny_config, tmp_path_factory):
    run = RunFolder(tmp_path_factory.mktemp("run"))
    train(as_method(tiny_config, request.param), run, CPU, observer)
    return request.param, run


def test_a_baseline_trains_its_own_models_for_the_steps_of_the_configuration(trained, tiny_config):
    method, run = trained
    models = {path.parent.name: weights.load(path) for path in run.models.glob("*/weights.safetensors")}
    assert set(models) == MODELS[method]
    for name, model in models.items():
        like = tiny_config.client(name) if name in tiny_config.clients and method != "local" else tiny_config.server
        assert model.denoiser.network_settings == like.network and model.steps == like.training.steps
    assert not run.server.path.exists() and not run.client("north").path.exists()


def test_a_baseline_generates_what_a_client_asks_for(trained, tiny_config):
    _, run = trained
    made = generate(run, "east", 7, 5, CPU)
    assert made.pixels.shape == (7, 8, 8, 1) and made.pixels.std() > 0
    asked = [made.label_names[i] for i in made.labels.argmax(axis=1)]
    assert asked == ["3", "3", "3", "4", "4", "5", "5"]
    assert np.array_equal(generate(run, "east", 7, 5, CPU).pixels, made.pixels)
    assert not np.array_equal(generate(run, "east", 7, 6, CPU).pixels, made.pixels)


def test_a_baseline_resumes_to_the_same_models(trained, tiny_config):
    method, run = trained
    before = {path: path.read_bytes() for path in run.models.rglob("*.safetensors")}
    with pytest.raises(MismatchError, match="method"):
        train(as_method(tiny_config, "local" if method != "local" else "fedavg"), run, CPU, observer, resume=True)
    train(as_method(tiny_config, method), run, CPU, observer, resume=True)
    assert {path: path.read_bytes() for path in run.models.rglob("*.safetensors")} == before


def test_images_without_labels_are_pooled_as_no_condition(tiny_config):
    """As they are asked for: they are not images that show none of the others' labels."""
    empty = image_set(0, ())
    sites = {name: SiteData(image_set(2, labels), empty) for name, labels in (("north", ("a",)), ("east", ()))}
    assert clean_data(sites, tiny_config).conditions.tolist() == [[1, 0], [1, 0], [0, 1], [0, 1]]
    assert [site.label_names for site in methods.sites_of(tiny_config, sites).values()] == [("a",), None]


def test_a_baselines_run_is_no_run_of_the_method(trained):
    method, run = trained
    with pytest.raises(RefusedError, match=f"baseline '{method}'.*deliver needs a run of collafuse"):
        run.refuse_baseline("deliver")
    with pytest.raises(ConfigError, match="'nobody' does not exist"):
        generate(run, "nobody", 1, 0, CPU)


def test_a_baseline_that_was_stopped_while_it_trained_is_refused_at_once(trained, tmp_path):
    """After a classifier and the other arms' images it ended in a KeyError."""
    method, run = trained
    for node in MODELS[method]:
        stopped = RunFolder(tmp_path / node)
        shutil.copytree(run.path, stopped.path)
        (stopped.models / node / "weights.safetensors").unlink()
        with pytest.raises(FileFormatError, match=rf"not trained to its end: .*{node}.weights.*train --resume"):
            arms_of(stopped, dict.fromkeys(("north", "east", "south")), CPU)
        if node not in ("north", "south"):
            with pytest.raises(FileFormatError, match="not trained to its end"):
                generate(stopped, "east", 1, 0, CPU)


def test_a_run_of_the_method_is_no_baseline(tiny_config, tmp_path):
    run_experiment(tiny_config, RunFolder(tmp_path / "run"), CPU, observer)
    RunFolder(tmp_path / "run").refuse_baseline("deliver")
    with pytest.raises(UsageError, match="'collafuse' is no baseline"):
        generate(RunFolder(tmp_path / "run"), "north", 1, 0, CPU)
    with pytest.raises(ConfigError, match="method=pfdm is a baseline"):
        run_experiment(as_method(tiny_config, "pfdm"), RunFolder(tmp_path / "other"), CPU, observer)


def test_a_statistics_server_has_no_network_to_train_a_baseline_with(tmp_path):
    config = load("digits.yaml", ["server.kind=statistics", "method=centralised"])
    with pytest.raises(ConfigError, match="server.kind=statistics has none"):
        train(config, RunFolder(tmp_path / "run"), CPU, observer)


@pytest.mark.parametrize(("method", "name"), [("reference", "server"), ("pfdm", "server"), ("pfdm", "releases")])
def test_a_client_whose_folder_would_be_another_models_is_refused(tiny_config, tmp_path, method, name):
    """A client called server trained over the server's model, and images were sampled from itself in its place."""
    config = tiny_config.model_copy(update={"clients": {name: tiny_config.client("north")}, "method": method})
    with pytest.raises(ConfigError, match=f"clients.{name}: method={method} keeps its {name}.*another name"):
        train(config, RunFolder(tmp_path / "run"), CPU, observer)
    assert not (tmp_path / "run").exists()


def test_pfdm_states_its_guarantee_and_keeps_its_releases(tiny_config, tmp_path):
    run = RunFolder(tmp_path / "run")
    train(as_method(tiny_config, "pfdm"), run, CPU, observer)
    stated = json.loads((run.models / "guarantee.json").read_text())
    # Sensitivity 2 * 0.5 * sqrt(64) = 8 at sigma 1: the figure is Balle and Wang's for mu = 8.
    assert stated["east"]["mu"] == pytest.approx(8.0) and stated["north"]["mu"] == pytest.approx(16.0)
    assert stated["east"]["epsilon"] < stated["north"]["epsilon"]
    assert len(list((run.models / "releases").glob("*.safetensors"))) == 3


@pytest.mark.parametrize("method", METHODS)
def test_a_ready_file_differs_from_its_base_in_name_and_method_alone(tmp_path, monkeypatch, method):
    monkeypatch.chdir(tmp_path)  # found among those that ship
    config, base = load(f"configs/baselines/digits-{method}.yaml"), load("digits.yaml")
    assert config == base.model_copy(update={"name": f"digits-{method}", "method": method})


# --- text ---------------------------------------------------------------------------------------------------

SPACE = TextSpace("t5-4-00", 4)


@pytest.fixture
def captioned(monkeypatch):
    """The digits, each with a text of four numbers that says its label."""

    def load(config, listener=None):
        def told(images):
            rows = np.where(images.labels.argmax(axis=1)[:, None] >> np.arange(4) & 1, 1, -1).astype(np.float16)
            return replace(images, text=EncodedText(SPACE, rows))

        return {n: SiteData(told(site.train), told(site.held_out)) for n, site in load_sites(config).items()}

    monkeypatch.setattr(methods, "load_sites", load)
    return load


@pytest.mark.parametrize("method", ["centralised", "pfdm", "reference"])
def test_a_baseline_learns_text_and_is_asked_for_it_where_the_site_shares_it(captioned, tiny_config, tmp_path, method):
    kept = tiny_config.client("east").model_copy(update={"share_text": False})
    config = tiny_config.model_copy(update={"clients": {**tiny_config.clients, "east": kept}, "method": method})
    run = RunFolder(tmp_path / "run")
    train(config, run, CPU, observer)
    models = [weights.load(path) for path in run.models.glob("*/weights.safetensors")]
    assert all(model.space.text == SPACE for model in models)
    held_out = captioned(config)["north"].held_out
    made, without = (generate(run, "north", 4, 5, CPU, like) for like in (held_out, None))
    assert made.pixels.shape == (4, 8, 8, 1) and not np.array_equal(made.pixels, without.pixels)
    silent = captioned(config)["east"].held_out
    one, two = (generate(run, "east", 4, 5, CPU, like) for like in (silent, None))
    assert np.array_equal(one.pixels, two.pixels)


def test_a_baseline_is_asked_for_the_attributes_that_images_have(tiny_config, tmp_path):
    run = RunFolder(tmp_path / "run")
    train(as_method(tiny_config, "local"), run, CPU, observer)
    like = load_sites(tiny_config)["north"].held_out.take(np.arange(3))
    like = replace(like, labels=np.array([[1, 1, 0], [0, 0, 0], [0, 0, 1]], dtype=np.uint8))
    assert generate(run, "north", 3, 5, CPU, like).labels.tolist() == like.labels.tolist()
