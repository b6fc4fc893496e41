"""What a server may learn from, and what it is trained on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from collafuse.core import release as releases
from collafuse.core.atomic import write_bytes
from collafuse.core.conditioning import ConditionSpace
from collafuse.core.errors import ConfigError, FileFormatError, MismatchError, RefusedError, UsageError
from collafuse.core.noise import SIGMA_MAX, SIGMA_MIN, Cut, system_noise
from collafuse.learning.weights import TrainedModel
from collafuse.nodes.runfolder import NodeFolder
from collafuse.nodes.server import Server
from collafuse.nodes.server_training import train_server
from collafuse.nodes.sites import Site, mixture_warning, read_releases, sites_of, training_data
from tests.nodes.sites import NETWORK, TRAINING, config, release_of, server_of
from tests.tiny import CPU, Recorder, denoiser, image_set

DIGITS = tuple("012345")


def made(count=6, sigma=0.5, names=("0", "1", "2"), side=8, simulated=False, shared=True):
    images = image_set(count, names, side=side)
    labels = images.labels if shared else None
    return releases.make([images.x0()], Cut(sigma), system_noise, labels=labels, label_names=names, simulated=simulated)


def test_mixed_cuts_warn_only_where_labels_are_kept():
    assert mixture_warning({"north": Site(0.5, ("0", "1", "2")), "south": Site(0.738, None)}) is not None
    assert mixture_warning({"a": Site(0.5, ("x",)), "b": Site(1.0, ("x",))}) is None
    assert mixture_warning({"a": Site(0.5, None), "b": Site(0.5, None)}) is None


def write(folder, name, release):
    write_bytes(folder / f"{name}.safetensors", releases.to_bytes(release))


def test_releases_are_read_by_client_and_simulated_ones_only_on_request(tmp_path):
    write(tmp_path, "north", made())
    write(tmp_path, "north.later", made(3))
    write(tmp_path, "east", made(sigma=1.0, simulated=True))
    with pytest.raises(RefusedError, match="--accept-simulated"):
        read_releases(tmp_path, accept_simulated=False)
    found = read_releases(tmp_path, accept_simulated=True)
    assert {name: len(rs) for name, rs in found.items()} == {"north": 2, "east": 1}


def test_releases_that_do_not_belong_together_are_refused(tmp_path):
    with pytest.raises(UsageError, match="no releases"):
        read_releases(tmp_path, accept_simulated=False)
    write(tmp_path, "north", made())
    write(tmp_path, "north.2", made(sigma=0.7))
    with pytest.raises(MismatchError, match="different cuts"):
        read_releases(tmp_path, accept_simulated=False)
    (tmp_path / "north.2.safetensors").unlink()
    for name in ("north.2", "east"):
        write(tmp_path, name, made(side=4))
        with pytest.raises(MismatchError, match="different shapes"):
            read_releases(tmp_path, accept_simulated=False)
        (tmp_path / f"{name}.safetensors").unlink()
    (tmp_path / "east.safetensors").write_bytes(b"\x00" * 50)
    with pytest.raises(FileFormatError, match="east"):
        read_releases(tmp_path, accept_simulated=False)


def test_labels_kept_by_a_site_become_no_label():
    data = training_data({"a": [made(4)], "b": [made(2, sigma=1.0, shared=False)]}, ConditionSpace(("0", "1", "2")))
    assert data.conditions[:, -1].tolist() == [0, 0, 0, 0, 1, 1]
    assert data.sigma_floor.tolist() == [0.5] * 4 + [1.0] * 2


def conditions_trained(found, names=("x", "y")):
    return training_data(found, ConditionSpace(names)).conditions[:1].tolist()


@pytest.mark.parametrize("others", [{}, {"b": [release_of(0.5)]}], ids=["alone", "beside labelled ones"])
def test_images_without_labels_are_trained_as_they_are_asked_for(others):
    """Also where dropout never trains "no condition"."""
    found = {"a": [release_of(0.5, ())], **others}
    server = server_of(config({name: {} for name in found}), sites_of(found))
    assert sites_of(found)["a"].label_names is None
    asked = server.plan("a", 1).conditions(1, server.model.space).tolist()
    assert conditions_trained(found) == asked == [[0, 0, 1]]
    assert conditions_trained({"a": [release_of(0.5, None)], **others}) == asked  # as of a site that keeps them


def test_an_image_that_shows_none_of_the_labels_of_its_site_is_trained_as_just_that():
    release = release_of(0.5)
    release.labels[0] = 0
    assert conditions_trained({"a": [release]}) == [[0, 0, 0]]


def test_a_site_whose_images_show_no_label_gets_images_that_show_none():
    """Not what the others' labels make likely: as it is trained, so it is asked for."""
    healthy = release_of(0.5)
    healthy.labels[:] = 0
    found = {"a": [healthy], "b": [release_of(0.5)]}
    server = server_of(config({name: {} for name in found}), sites_of(found))
    planned = server.plan("a", 2)
    assert planned.labels.tolist() == [[0, 0]] * 2 and server.deliver("a", 2).labelled
    assert planned.conditions(2, server.model.space)[:1].tolist() == conditions_trained(found) == [[0, 0, 0]]
    unlabelled = TrainedModel(denoiser(label_names=()), "server", SIGMA_MIN, SIGMA_MAX, 0, "id")
    alone = Server(config(), unlabelled, sites_of({"a": [healthy]}), CPU)
    assert alone.plan("a", 1).labels is None  # nobody knows a label: it says nothing


def test_where_all_releases_are_pure_noise_no_server_can_learn():
    for sigma in (SIGMA_MAX, 77.0):
        with pytest.raises(RefusedError, match=r"every release stands at sigma 76\.2 or above"):
            training_data({"a": [made(sigma=sigma)]}, ConditionSpace(("0", "1", "2")))


def test_a_site_from_which_no_server_learns_takes_over_where_none_is_asked():
    one_step = {"network": NETWORK, "training": TRAINING, "sampler": {"name": "euler", "steps": 1}}
    with pytest.raises(ConfigError, match=r"clients\.a at sigma 78 .*handover at least 1\.05"):
        config(server=one_step, cut={"sigma": 78.0}, handover=1)
    config(server=one_step, cut={"sigma": 78.0}, handover=1.05)
    config(server=one_step, cut={"sigma": SIGMA_MAX}, handover=1)


def test_training_needs_releases_and_nothing_else(tiny_config, tmp_path):
    found = {"north": [made(20)], "east": [made(20, 1.0, ("3", "4", "5"))]}
    trained = train_server(tiny_config, found, NodeFolder(tmp_path), CPU, Recorder())
    again = Server.load(NodeFolder(tmp_path), CPU)
    assert again.sites == sites_of(found) and again.model.label_names == DIGITS
    assert np.array_equal(again.deliver("east", 3, seed=1).x, trained.deliver("east", 3, seed=1).x)
    assert again.model.sigma_low > SIGMA_MIN


def test_hidden_files_beside_the_releases_are_left_alone(tmp_path):
    write(tmp_path, "north", made())
    for name in (".partial-x.safetensors", "._north.safetensors", ".release-1.partial", "notes.txt"):
        (tmp_path / name).write_bytes(b"half a file")
    assert list(read_releases(tmp_path, accept_simulated=False)) == ["north"]


def test_it_trains_on_what_was_released_at_the_level_it_was_released():
    release = release_of(0.5)
    data = training_data({"a": [release]}, ConditionSpace(("x", "y")))
    assert np.array_equal(data.images.numpy(), release.z) and (data.sigma_floor == 0.5).all()
    assert data.sigma_high == SIGMA_MAX and not data.horizontal_flip


@pytest.mark.parametrize(("alike", "same"), [(True, True), (False, False)], ids=["symmetric", "as they come"])
def test_it_mirrors_releases_where_the_configuration_says_so(tmp_path, alike, same):
    """Mirroring changes what is learned from images, and nothing where they are their own mirror images."""
    release, data = release_of(0.5), {"dataset": "folder", "path": "images", "image_size": 4, "channels": 1}
    if alike:
        release = replace(release, z=((release.z + release.z[..., ::-1]) / 2).astype(np.float16))
    servers = [
        train_server(config(data=data | more), {"a": [release]}, NodeFolder(tmp_path / str(n)), CPU, Recorder())
        for n, more in enumerate(({}, {"horizontal_flip": True}))
    ]
    assert (servers[0].model.id == servers[1].model.id) == same


def test_it_needs_nobodys_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where the configured folder of images does not exist
    train_server(config(), {"a": [release_of(0.5)]}, NodeFolder(tmp_path / "server"), CPU, Recorder())
    assert (tmp_path / "server" / "weights.safetensors").exists()


def test_mixed_cuts_over_kept_labels_warn_whoever_watches(tmp_path):
    settings, observer = config({"a": {}, "b": {"cut": {"sigma": 1.0}}}), Recorder()
    found = {"a": [release_of(0.5, None)], "b": [release_of(1.0)]}
    train_server(settings, found, NodeFolder(tmp_path), CPU, observer)
    assert any("different cuts" in note for note in observer.notes)


def test_a_label_kept_in_one_of_a_sites_releases_is_kept_in_all():
    found = {"a": [release_of(0.5), release_of(0.5, None)]}
    assert sites_of(found)["a"].label_names is None
    assert (training_data(found, ConditionSpace(()))).conditions.tolist() == [[1.0]] * 16


def test_only_labels_that_occur_were_learned():
    release = release_of(0.5)
    release.labels[:, 1] = 0
    assert sites_of({"a": [release]})["a"] == Site(0.5, ("x",))


def test_what_could_not_be_delivered_is_refused_before_training(tmp_path):
    settings, folder = config({"a": {"cut": {"sigma": 0.6}}}), NodeFolder(tmp_path / "server")
    with pytest.raises(MismatchError, match="released at sigma 0.5, the configuration says 0.6"):
        train_server(settings, {"a": [release_of(0.5)]}, folder, CPU, Recorder())
    assert not folder.path.exists() or not [p for p in folder.path.rglob("*") if p.is_file()]


def test_releases_of_another_shape_than_configured_are_refused(tmp_path):
    with pytest.raises(MismatchError, match=r"\(1, 8, 8\).*\(1, 4, 4\)"):
        train_server(config(), {"a": [release_of(0.5, side=8)]}, NodeFolder(tmp_path), CPU, Recorder())


@pytest.mark.parametrize("other", ["a", "b"])
def test_a_release_that_lies_there_twice_counts_once_or_not_at_all(tmp_path, other):
    folder, one = NodeFolder(tmp_path), release_of(0.5)
    found = {"a": [release_of(0.5), one]} | ({"a": [one, one]} if other == "a" else {"b": [one]})
    with pytest.raises(MismatchError, match=f"files of a{' and b' * (other == 'b')} hold the same 8 noised images"):
        train_server(config({"a": {}, "b": {}}), found, folder, CPU, Recorder())
    assert not list(tmp_path.iterdir())


def test_a_misnamed_release_is_refused_and_a_missing_one_is_named(tmp_path):
    settings = config({"north": {}, "east": {}})
    with pytest.raises(MismatchError, match=r"release of 'norht' and none of client 'north'.*north\.safetensors"):
        train_server(settings, {"norht": [release_of(0.5)]}, NodeFolder(tmp_path), CPU, Recorder())
    assert not list(tmp_path.iterdir())
    heard = Recorder()
    train_server(settings, {"north": [release_of(0.5)], "guest": [release_of(0.5)]}, NodeFolder(tmp_path), CPU, heard)
    assert any("'guest', whom the configuration does not name; it is delivered to at its cut" in n for n in heard.notes)
    assert any("no release of east" in note for note in heard.notes)


def test_a_release_of_pure_noise_is_left_out_of_training():
    data = training_data({"a": [release_of(0.5)], "b": [release_of(SIGMA_MAX)]}, ConditionSpace(("x", "y")))
    assert len(data.images) == 8 and (data.sigma_floor == 0.5).all()


def test_a_server_that_nobody_asks_is_said_to_learn_for_nothing(tmp_path):
    for name, handover, expected in (("all", 2.0, True), ("none", 1.0, False)):
        heard, settings = Recorder(), config(cut={"sigma": 50.0}, handover=handover)
        train_server(settings, {"a": [release_of(50.0)]}, NodeFolder(tmp_path / name), CPU, heard)
        assert any("takes over at sigma 80" in note for note in heard.notes) is expected
