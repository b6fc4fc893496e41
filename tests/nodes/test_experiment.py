"""All nodes in one process, and what each folder may hold."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from collafuse.config import from_mapping
from collafuse.core import intermediate as intermediates
from collafuse.core import release as releases
from collafuse.core.errors import MismatchError, OutputExistsError, RefusedError
from collafuse.data.dealing import load_sites
from collafuse.nodes.experiment import CALIBRATION, CALIBRATION_IMAGES, leave_calibration, run_experiment
from collafuse.nodes.ledger import Ledger
from collafuse.nodes.runfolder import REGISTRY, RunFolder
from collafuse.nodes.server import Server
from tests.nodes.sites import config
from tests.tiny import CPU, Recorder, image_set


@pytest.fixture(scope="module")
def run(tiny_config, tmp_path_factory):
    folder = RunFolder(tmp_path_factory.mktemp("run"))
    run_experiment(tiny_config, folder, CPU, lambda name: Recorder())
    return folder


def test_resuming_releases_nothing_again(tiny_config, run):
    files = {p: p.read_bytes() for p in run.server.releases.iterdir()}
    run_experiment(tiny_config, run, CPU, lambda name: Recorder(), resume=True)
    assert {p: p.read_bytes() for p in run.server.releases.iterdir()} == files
    assert len(files) == 3 and all(releases.read(p).simulated for p in files)


def test_the_servers_folder_holds_no_clean_image_and_no_ledger(tiny_config, run):
    files = [p for p in run.server.path.rglob("*") if p.is_file()]
    assert not [p for p in files if "ledger" in p.name]
    pixels = [one for site in load_sites(tiny_config).values() for one in site.train.pixels[:20]]
    needles = [p.tobytes() for p in pixels] + [(p / 127.5 - 1).astype("f4").tobytes() for p in pixels]
    assert not [p for p in files if any(needle in p.read_bytes() for needle in needles)]


def test_each_node_is_told_its_own_part_of_the_configuration(tiny_config, run):
    assert run.read_config() == tiny_config
    assert list(run.client("north").read_config().clients) == ["north"]
    assert run.server.read_config() == tiny_config.for_server()


def test_each_client_finds_intermediates_at_its_own_cut_to_calibrate_with(tiny_config, run):
    for name in tiny_config.clients:
        left = intermediates.read(run.client(name).path / CALIBRATION)
        assert len(left) == CALIBRATION_IMAGES
        assert left.sigma == tiny_config.client(name).handover_sigma
        used = {n for i, n in enumerate(left.label_names) if left.labels[:, i].any()}
        assert used == set(tiny_config.client(name).labels)


def test_calibration_comes_out_the_same_again(tiny_config, run):
    path = run.client("north").path / CALIBRATION
    before = path.read_bytes()
    leave_calibration(Server.load(run.server, CPU), "north", image_set(2), run, Recorder())
    assert path.read_bytes() == before


def test_a_server_that_cannot_deliver_says_so_and_the_run_stands(run, tmp_path):
    server, recorder = Server.load(run.server, CPU), Recorder()
    del server.sites["north"]
    leave_calibration(server, "north", image_set(2), RunFolder(tmp_path), recorder)
    assert not list(tmp_path.iterdir())
    (note,) = recorder.notes
    assert note.startswith("no intermediates to calibrate with: the server has no release of client 'north'")


def test_warm_start_begins_at_the_servers_weights(tiny_config, tmp_path):
    done = run_experiment(tiny_config, RunFolder(tmp_path), CPU, lambda name: Recorder(), warm_start=True)
    sigma_data = done.server.model.denoiser.sigma_data
    assert all(model.denoiser.sigma_data == sigma_data for model in done.models.values())


def test_a_clients_folder_holds_nothing_of_the_others_or_of_the_server(tiny_config, run):
    sites = load_sites(tiny_config)
    assert sorted(p.name for p in (run.path / "clients").iterdir()) == sorted(sites)
    foreign = {name: [p.tobytes() for p in site.train.pixels[:20]] for name, site in sites.items()}
    server = run.server.weights.read_bytes()[-1000:]
    for name in sites:
        files = [p.read_bytes() for p in run.client(name).path.rglob("*") if p.is_file()]
        assert files and not list(run.client(name).path.rglob("*release*"))
        needles = [needle for other in sites if other != name for needle in foreign[other]] + [server]
        assert not any(needle in file for file in files for needle in needles)
        spent = [Ledger(run.client(name).ledger).spent(site.train.digests) for site in sites.values()]
        assert [bool(s.any()) for s in spent] == [other == name for other in sites]


def test_a_run_stopped_between_spending_and_naming_a_release_resumes_with_its_bytes(tiny_config, tmp_path, monkeypatch):
    link = os.link

    def stop(source: Path, target: Path) -> None:
        if target.name == "east.safetensors":
            raise KeyboardInterrupt
        link(source, target)

    run = RunFolder(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", stop)
        with pytest.raises(KeyboardInterrupt):
            run_experiment(tiny_config, run, CPU, lambda name: Recorder())
    (waiting,) = run.server.releases.glob(".release-*.partial")
    drawn = waiting.read_bytes()
    north = (run.server.releases / "north.safetensors").read_bytes()
    run_experiment(tiny_config, run, CPU, lambda name: Recorder(), resume=True)
    assert (run.server.releases / "east.safetensors").read_bytes() == drawn
    assert (run.server.releases / "north.safetensors").read_bytes() == north and not waiting.exists()


@pytest.mark.parametrize(
    ("setting", "key"),
    [
        ({"client": {"handover": 1.5}}, "clients.north.handover=2.0.*1.5"),
        ({"server": {"training": {"learning_rate": 0.5}}}, "server.training.learning_rate=0.001.*0.5"),
    ],
)
def test_a_resume_with_other_settings_is_refused_before_anything_changes(tiny_config, run, setting, key):
    values = tiny_config.model_dump(mode="json", exclude_none=True)
    for name, client in values["clients"].items():
        values["clients"][name] = client | setting.get("client", {})
    values["server"]["training"] |= setting.get("server", {}).get("training", {})
    files = {p: p.read_bytes() for p in run.path.rglob("*") if p.is_file()}
    with pytest.raises(MismatchError, match=key):
        run_experiment(from_mapping(values), run, CPU, lambda name: Recorder(), resume=True)
    assert {p: p.read_bytes() for p in run.path.rglob("*") if p.is_file()} == files


def stopped_at(node: str):
    """Observers of a run that is interrupted when the training of a node begins."""

    class Stop(Recorder):
        def started(self, step, total):
            raise KeyboardInterrupt

    return lambda name: Stop() if name == node else Recorder()


def test_a_resume_with_other_settings_is_refused_from_the_first_release_on(tiny_config, tmp_path, monkeypatch):
    def stop(source: Path, target: Path) -> None:
        raise KeyboardInterrupt

    run = RunFolder(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", stop)
        with pytest.raises(KeyboardInterrupt):
            run_experiment(tiny_config, run, CPU, lambda name: Recorder())
    values = tiny_config.model_dump(mode="json", exclude_none=True)
    values["data"]["held_out"] = 0.5
    with pytest.raises(MismatchError, match="data.held_out=0.2, the configuration says 0.5"):
        run_experiment(from_mapping(values), run, CPU, lambda name: Recorder(), resume=True)
    run_experiment(tiny_config, run, CPU, lambda name: Recorder(), resume=True)


def written(folder: Path, label: str | None = None) -> None:
    """Nine images, the labels of two of them in turn, and each of the label if one is given."""
    shutil.rmtree(folder, ignore_errors=True)
    images = image_set(9)
    for number, (pixels, labels) in enumerate(zip(images.pixels, images.labels, strict=True)):
        path = folder / (label or images.label_names[labels.argmax()]) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[0]).save(path)


def test_a_resume_with_other_images_than_were_released_is_refused(tmp_path):
    settings = config(data={"dataset": "folder", "path": str(tmp_path / "images"), "image_size": 4, "channels": 1})
    written(tmp_path / "images")
    path = tmp_path / "images" / "a" / "8.png"
    last = path.rename(tmp_path / path.name)
    run = RunFolder(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        run_experiment(settings, run, CPU, stopped_at("a"))
    last.rename(path)  # an image that the server knows nothing of
    with pytest.raises(MismatchError, match="a has other images to train on than those that it released"):
        run_experiment(settings, run, CPU, lambda name: Recorder(), resume=True)
    path.unlink()
    assert list(run_experiment(settings, run, CPU, lambda name: Recorder(), resume=True).models) == ["a"]


@pytest.mark.parametrize(("shares", "kind"), [(True, "images"), (True, "statistics"), (False, "images")])
def test_a_resume_with_other_labels_than_were_released_is_refused(tmp_path, monkeypatch, shares, kind):
    data = {"dataset": "folder", "path": str(tmp_path / "images"), "image_size": 4, "channels": 1, "held_out": 0}
    settings = config(data=data, server={"kind": kind}, share_labels=shares)
    monkeypatch.setattr("collafuse.nodes.summary.MIN_IMAGES", 1)
    monkeypatch.setattr("collafuse.core.statistics.MIN_IMAGES", 1)
    run = RunFolder(tmp_path / "run")
    written(tmp_path / "images")
    with pytest.raises(KeyboardInterrupt):
        run_experiment(settings, run, CPU, stopped_at("a"))
    before = {p: p.read_bytes() for p in run.path.rglob("*") if p.is_file()}
    written(tmp_path / "images", "a")  # the same images, and all of them are said to show a
    if shares:
        with pytest.raises(
            MismatchError, match="a shares other labels or captions of its images than when it released"
        ):
            run_experiment(settings, run, CPU, lambda name: Recorder(), resume=True)
        assert {p: p.read_bytes() for p in run.path.rglob("*") if p.is_file()} == before
        written(tmp_path / "images")
    assert list(run_experiment(settings, run, CPU, lambda name: Recorder(), resume=True).models) == ["a"]


def test_a_resume_of_what_a_killed_overwrite_left_is_told_to_overwrite(tmp_path):
    """It removes the releases first and the ledgers last."""
    data = {"dataset": "folder", "path": str(tmp_path / "images"), "image_size": 4, "channels": 1}
    settings, run = config(data=data), RunFolder(tmp_path / "run")
    written(tmp_path / "images")
    with pytest.raises(KeyboardInterrupt):
        run_experiment(settings, run, CPU, stopped_at("server"))
    shutil.rmtree(run.server.path)
    (run.path / "config.yaml").unlink()
    left = sorted(run.path.rglob("*"))
    said = "a has released its images in this run, .*a.safetensors is gone.*Begin anew with train --overwrite"
    with pytest.raises(RefusedError, match=said) as refused:
        run_experiment(settings, run, CPU, lambda name: Recorder(), resume=True)
    assert "--spend-again" not in str(refused.value) and sorted(run.path.rglob("*")) == left
    run.check(resume=False, overwrite=True)


def test_a_resume_may_sample_and_distil_otherwise(tiny_config, tmp_path):
    folder = RunFolder(tmp_path)
    run_experiment(tiny_config, folder, CPU, lambda name: Recorder())
    values = tiny_config.model_dump(mode="json", exclude_none=True)
    values["server"]["sampler"]["steps"] = 3
    values["clients"]["north"]["distillation"]["steps"] = 5  # which train-client --distill alone heeds
    done = run_experiment(from_mapping(values), folder, CPU, lambda name: Recorder(), resume=True)
    assert len(done.server.levels("north")) == 4
    assert folder.client("north").read_config().client("north").distillation.steps == 5


@pytest.mark.parametrize("held", ["config.yaml", "thesis.txt"])
def test_a_folder_that_is_no_run_is_not_resumed(tiny_config, tmp_path, held):
    (tmp_path / held).write_text("mine")
    with pytest.raises(OutputExistsError, match="neither resumed nor overwritten"):
        run_experiment(tiny_config, RunFolder(tmp_path), CPU, lambda name: Recorder(), resume=True)
    assert [p.name for p in tmp_path.iterdir()] == [held] and (tmp_path / held).read_text() == "mine"


@pytest.mark.parametrize("mark", ["clients/north/ledger.sqlite", "models/server/weights.safetensors"])
def test_a_run_whose_removal_was_killed_at_any_moment_can_be_overwritten(tmp_path, monkeypatch, mark):
    """Whichever file goes next: what is left is known for a run, or nobody's."""
    files = (mark, "config.yaml", "server/config.yaml", "clients/north/weights.safetensors", "a.onnx")
    for moment in itertools.count(1):
        run = RunFolder(tmp_path / str(moment))
        for file in files:
            (run.path / file).parent.mkdir(parents=True, exist_ok=True)
            (run.path / file).write_bytes(b"")
        left = iter(range(moment))

        def stop(remove: Any, left: Iterator[int] = left) -> Any:
            def one(*args: Any, **options: Any) -> None:
                if next(left, None) is None:
                    raise KeyboardInterrupt
                remove(*args, **options)

            return one

        with monkeypatch.context() as patch:
            for name in ("unlink", "rmdir", "rename"):
                patch.setattr(os, name, stop(getattr(os, name)))
            try:
                run.clear()
            except KeyboardInterrupt:
                ended = False
            else:
                ended = True
        run.check(resume=False, overwrite=True)
        if ended:
            break
    assert moment > 6 and not list(run.path.iterdir())


def test_a_run_whose_server_hands_out_tokens_is_not_overwritten(run):
    registry = run.server.path / REGISTRY
    registry.write_bytes(b"tokens")
    with pytest.raises(OutputExistsError, match="holds a service's tokens"):
        run.check(resume=False, overwrite=True)
    registry.unlink()
    run.check(resume=False, overwrite=True)


def test_a_run_that_lies_there_is_neither_mixed_with_nor_removed_unasked(tiny_config, run):
    files = {p: p.stat().st_mtime_ns for p in run.path.rglob("*") if p.is_file()}
    with pytest.raises(OutputExistsError, match="--resume or --overwrite"):
        run_experiment(tiny_config, run, CPU, lambda name: Recorder())
    assert {p: p.stat().st_mtime_ns for p in run.path.rglob("*") if p.is_file()} == files
