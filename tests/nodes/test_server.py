"""What a server may learn from and what it may deliver."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from collafuse.core import release as releases
from collafuse.core.atomic import write_bytes
from collafuse.core.conditioning import ConditionSpace
from collafuse.core.errors import CollaFuseError, ConfigError, FileFormatError, MismatchError, RefusedError, UsageError
from collafuse.core.noise import SIGMA_MAX, SIGMA_MIN, Cut, system_noise
from collafuse.learning.weights import TrainedModel
from collafuse.nodes.runfolder import NodeFolder
from collafuse.nodes.server import Server
from collafuse.nodes.server_training import train_server
from collafuse.nodes.sites import Site, mixture_warning, read_releases, sites_of, training_data
from tests.nodes.sites import NETWORK, TRAINING, config, release_of
from tests.tiny import CPU, Recorder, denoiser, image_set

SITES = {"north": Site(0.5, ("0", "1", "2")), "east": Site(1.0, ("3", "4", "5")), "south": Site(0.738, None)}
DIGITS = tuple("012345")


@pytest.fixture
def server(tiny_config):
    south = tiny_config.client("south").cut.resolve().sigma
    model = TrainedModel(denoiser(image_shape=(1, 8, 8), label_names=DIGITS), "server", 0.5, SIGMA_MAX, 0, "id")
    return Server(tiny_config, model, {**SITES, "south": Site(south, None)}, CPU)


def with_sampler(server, **changes):
    sampler = server.config.server.sampler.model_copy(update=changes)
    settings = server.config.server.model_copy(update={"sampler": sampler})
    return Server(server.config.model_copy(update={"server": settings}), server.model, server.sites, CPU)


def to_the_cut(server):
    clients = {n: one.model_copy(update={"handover": 1.0}) for n, one in server.config.clients.items()}
    return Server(server.config.model_copy(update={"clients": clients}), server.model, server.sites, CPU)


def made(count=6, sigma=0.5, names=("0", "1", "2"), side=8, simulated=False, shared=True):
    images = image_set(count, names, side=side)
    labels = images.labels if shared else None
    return releases.make([images.x0()], Cut(sigma), system_noise, labels=labels, label_names=names, simulated=simulated)


def test_it_delivers_where_each_client_takes_over(server):
    assert server.deliver("north", 2).sigma == 1.0  # twice its cut
    assert server.deliver("east", 2).sigma == 2.0
    assert to_the_cut(server).deliver("north", 2).sigma == 0.5


def test_labels_are_dealt_evenly_or_asked_for(server):
    dealt = server.deliver("north", 7, seed=0)
    assert dealt.labels[:, :3].argmax(axis=1).tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert server.deliver("east", 2, labels=["4"]).labels[:, 4].all()
    assert server.deliver("south", 2).labels is None


@pytest.mark.parametrize(("client", "label"), [("north", "3"), ("south", "4")])
def test_a_label_released_above_a_clients_cut_is_refused(server, client, label):
    with pytest.raises(RefusedError, match=rf"'{label}' was not released at or below"):
        server.deliver(client, 1, labels=[label])


@pytest.mark.parametrize("label", ["4", "no such label"])
def test_labels_of_a_site_that_keeps_them_are_left_to_its_devices(server, label):
    with pytest.raises((RefusedError, MismatchError), match=r"'south' stay at its site: .* device \(finish --label\)"):
        server.deliver("south", 1, labels=[label])


def test_a_label_released_below_a_clients_cut_is_delivered(server):
    assert server.deliver("east", 1, labels=["0"]).labels[0, 0] == 1


def test_unknown_clients_labels_and_counts_are_refused(server):
    with pytest.raises(ConfigError, match="'west'.*north, east, south.*Did you mean 'east'"):
        server.deliver("west", 1)
    with pytest.raises(MismatchError, match="'nine'"):
        server.deliver("north", 1, labels=["nine"])
    with pytest.raises(UsageError, match="count=0"):
        server.deliver("north", 0)


def test_a_seed_repeats_and_batch_size_changes_no_picture(server):
    whole = server.deliver("north", 9, seed=3)
    assert np.array_equal(whole.x, server.deliver("north", 9, seed=3).x)
    assert np.abs(whole.x - server.deliver("north", 9, seed=3, batch_size=2).x).max() < 1e-4
    assert not np.allclose(server.deliver("north", 9).x, server.deliver("north", 9).x)
    assert not np.allclose(whole.x[0], whole.x[1])


def test_sampling_in_bfloat16_gives_the_same_pictures_within_its_rounding(server):
    settings = server.config.server.model_copy(update={"mixed_precision": "cpu"})
    exact = server.deliver("north", 4, seed=1).x
    mixed = Server(server.config.model_copy(update={"server": settings}), server.model, server.sites, CPU)
    apart = np.abs(mixed.deliver("north", 4, seed=1).x - exact).max()
    assert 0 < apart < 0.05 * np.abs(exact).max()


class ShortOfMemory(torch.nn.Module):
    """A denoiser on a device that has memory for so many images at once."""

    def __init__(self, inner, most):
        super().__init__()
        self.inner, self.most, self.seen = inner, most, []
        self.image_shape, self.space = inner.image_shape, inner.space

    def forward(self, x, sigma, conditions):
        if len(x) > self.most:
            raise torch.OutOfMemoryError("out of memory")
        self.seen.append(len(x))
        return self.inner(x, sigma, conditions)


def test_a_batch_without_memory_is_halved_and_no_picture_is_lost(server):
    whole, told = server.deliver("north", 9, seed=3), []
    server.model = replace(server.model, denoiser=ShortOfMemory(server.model.denoiser, most=3))
    again = server.deliver("north", 9, seed=3, advance=told.append)
    assert np.abs(whole.x - again.x).max() < 1e-4 and sum(told) == 9 and max(server.model.denoiser.seen) <= 3


def test_a_device_without_memory_for_one_image_says_so(server):
    server.model = replace(server.model, denoiser=ShortOfMemory(server.model.denoiser, most=0))
    with pytest.raises(CollaFuseError, match="no memory for one image"):
        server.deliver("north", 9)


def test_a_compiled_server_delivers_the_same_or_says_why_it_does_not(server):
    plain, notes = server.deliver("north", 9, seed=3, batch_size=4), []
    server.compile(4, notes.append)
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}):
        compiled = server.deliver("north", 9, seed=3, batch_size=4)
    (note,) = notes
    assert note.startswith("compiling does not work here and is left out: ")
    np.testing.assert_allclose(compiled.x, plain.x, atol=1e-4)


def test_a_compiled_batch_without_memory_is_halved_too(server):
    whole, most = server.deliver("north", 9, seed=3), 3
    server.compile(9, pytest.fail)

    def short_of_memory(_, given):
        if len(given[0]) > most:
            raise torch.OutOfMemoryError("out of memory")

    server.model.denoiser.network.register_forward_pre_hook(short_of_memory)
    with torch._dynamo.config.patch({"disable": True}):
        again = server.deliver("north", 9, seed=3, batch_size=9)
    np.testing.assert_allclose(again.x, whole.x, atol=1e-4)


def test_half_precision_and_the_last_estimate_travel_on_request(server):
    assert server.deliver("north", 2, half=True).x.dtype == np.float16
    assert server.deliver("north", 2).previous_x0_hat is None
    settings = server.config.server.model_copy(update={"send_previous": True})
    sending = Server(server.config.model_copy(update={"server": settings}), server.model, server.sites, CPU)
    delivered = sending.deliver("north", 2)
    assert delivered.previous_x0_hat.shape == delivered.x.shape
    assert delivered.previous_sigma > delivered.sigma


def test_levels_where_a_release_teaches_nothing_are_never_evaluated(server):
    for sampler, message in [({"steps": 200}, "200 steps.*fewer steps"), ({"name": "heun"}, "heun")]:
        with pytest.raises(ConfigError, match=message):
            with_sampler(to_the_cut(server), **sampler).deliver("north", 1)
        with_sampler(server, **sampler).deliver("north", 1)


def test_a_cut_that_differs_from_the_release_is_refused(server):
    server.sites["north"] = Site(0.6, ("0",))
    with pytest.raises(MismatchError, match=r"0\.6.*0\.5"):
        server.deliver("north", 1)


def test_mixed_cuts_warn_only_where_labels_are_kept():
    assert mixture_warning(SITES) is not None
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
    server = untrained(config({name: {} for name in found}), sites_of(found))
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
    server = untrained(config({name: {} for name in found}), sites_of(found))
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


def untrained(settings, sites):
    """A server with arbitrary weights that knows x and y, the labels of ``release_of``."""
    model = TrainedModel(denoiser(label_names=("x", "y")), "server", SIGMA_MIN, SIGMA_MAX, 0, "id")
    return Server(settings, model, sites, CPU)


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


@pytest.mark.parametrize("steps", [1, 4])
def test_the_lowest_level_evaluated_is_one_that_was_trained(steps):
    settings = config(server={"sampler": {"steps": steps, "name": "heun"}}, handover=1.05)
    server, asked = untrained(settings, {"a": Site(0.5, ("x",))}), []
    server.model.denoiser.register_forward_pre_hook(lambda module, inputs: asked.append(float(inputs[1])))
    delivered = server.deliver("a", 1)
    assert delivered.sigma == pytest.approx(0.525) and min(asked) == pytest.approx(0.525)
    assert delivered.nfe == len(asked)


@pytest.mark.parametrize("name", ["euler", "dpmpp_2m"])
def test_batch_size_changes_no_number_that_matters(name):
    remembers = name == "dpmpp_2m"
    settings = config(server={"sampler": {"steps": 4, "name": name, "guidance": 1.5}, "send_previous": remembers})
    server = untrained(settings, {"a": Site(0.5, ("x", "y"))})
    whole = server.deliver("a", 7, seed=3)
    for batch_size in (1, 3, 7):
        parts = server.deliver("a", 7, seed=3, batch_size=batch_size)
        np.testing.assert_allclose(parts.x, whole.x, rtol=1e-5, atol=1e-5)
        assert parts.nfe == whole.nfe and np.array_equal(parts.labels, whole.labels)
        if remembers:
            np.testing.assert_allclose(parts.previous_x0_hat, whole.previous_x0_hat, rtol=1e-5, atol=1e-5)


def test_a_client_that_sent_no_release_is_told_apart_from_one_that_nobody_knows():
    server = untrained(config({"a": {}, "late": {}}), {"a": Site(0.5, ("x",))})
    with pytest.raises(RefusedError, match="no release of client 'late'; it learned from a"):
        server.deliver("late", 1)
    with pytest.raises(ConfigError, match="'lat' does not exist"):
        server.deliver("lat", 1)


def test_a_misnamed_release_is_refused_and_a_missing_one_is_named(tmp_path):
    settings = config({"north": {}, "east": {}})
    with pytest.raises(MismatchError, match=r"release of 'norht' and none of client 'north'.*north\.safetensors"):
        train_server(settings, {"norht": [release_of(0.5)]}, NodeFolder(tmp_path), CPU, Recorder())
    assert not list(tmp_path.iterdir())
    heard = Recorder()
    train_server(settings, {"north": [release_of(0.5)], "guest": [release_of(0.5)]}, NodeFolder(tmp_path), CPU, heard)
    assert any("'guest', whom the configuration does not name; it is delivered to at its cut" in n for n in heard.notes)
    assert any("no release of east" in note for note in heard.notes)


def test_a_delivery_tells_how_far_it_is():
    heard: list[int] = []
    untrained(config(), {"a": Site(0.5, ("x",))}).deliver("a", 7, batch_size=3, advance=heard.append)
    assert heard == [3, 3, 1]


def test_a_longer_delivery_begins_with_the_shorter_one():
    server = untrained(config(), {"a": Site(0.5, ("x",))})
    np.testing.assert_allclose(server.deliver("a", 5, seed=3).x[:2], server.deliver("a", 2, seed=3).x, atol=1e-5)
    assert not np.allclose(server.deliver("a", 2, seed=3).x, server.deliver("a", 2, seed=4).x)


def test_a_client_that_does_everything_gets_pure_noise():
    settings = config({"a": {}, "b": {"cut": {"sigma": SIGMA_MAX}}})
    server = untrained(settings, {"a": Site(0.5, ("x",)), "b": Site(SIGMA_MAX, ("y",))})
    server.model.denoiser.register_forward_pre_hook(lambda *inputs: pytest.fail("the server was asked"))
    delivered = server.deliver("b", 500, seed=0)
    assert delivered.sigma == SIGMA_MAX and delivered.nfe == 0 and delivered.previous_x0_hat is None
    assert delivered.x.std() == pytest.approx(SIGMA_MAX, rel=0.05)
    assert len(np.unique(delivered.x.reshape(500, -1), axis=0)) == 500  # each image has noise of its own


def test_a_release_of_pure_noise_is_left_out_of_training():
    data = training_data({"a": [release_of(0.5)], "b": [release_of(SIGMA_MAX)]}, ConditionSpace(("x", "y")))
    assert len(data.images) == 8 and (data.sigma_floor == 0.5).all()
