"""What a server delivers, to whom, and how."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from collafuse.core.errors import CollaFuseError, ConfigError, MismatchError, RefusedError, UsageError
from collafuse.core.noise import SIGMA_MAX
from collafuse.learning.weights import TrainedModel
from collafuse.nodes.server import Server
from collafuse.nodes.sites import Site
from tests.nodes.sites import config, server_of
from tests.tiny import CPU, denoiser

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


@pytest.mark.parametrize("steps", [1, 4])
def test_the_lowest_level_evaluated_is_one_that_was_trained(steps):
    settings = config(server={"sampler": {"steps": steps, "name": "heun"}}, handover=1.05)
    server, asked = server_of(settings, {"a": Site(0.5, ("x",))}), []
    server.model.denoiser.register_forward_pre_hook(lambda module, inputs: asked.append(float(inputs[1])))
    delivered = server.deliver("a", 1)
    assert delivered.sigma == pytest.approx(0.525) and min(asked) == pytest.approx(0.525)
    assert delivered.nfe == len(asked)


@pytest.mark.parametrize("name", ["euler", "dpmpp_2m", "euler_ancestral"])
def test_batch_size_changes_no_number_that_matters(name):
    remembers = name == "dpmpp_2m"
    settings = config(server={"sampler": {"steps": 4, "name": name, "guidance": 1.5}, "send_previous": remembers})
    server = server_of(settings, {"a": Site(0.5, ("x", "y"))})
    whole = server.deliver("a", 7, seed=3)
    for batch_size in (1, 3, 7):
        parts = server.deliver("a", 7, seed=3, batch_size=batch_size)
        np.testing.assert_allclose(parts.x, whole.x, rtol=1e-5, atol=1e-5)
        assert parts.nfe == whole.nfe and np.array_equal(parts.labels, whole.labels)
        if remembers:
            np.testing.assert_allclose(parts.previous_x0_hat, whole.previous_x0_hat, rtol=1e-5, atol=1e-5)


def test_a_client_that_sent_no_release_is_told_apart_from_one_that_nobody_knows():
    server = server_of(config({"a": {}, "late": {}}), {"a": Site(0.5, ("x",))})
    with pytest.raises(RefusedError, match="no release of client 'late'; it learned from a"):
        server.deliver("late", 1)
    with pytest.raises(ConfigError, match="'lat' does not exist"):
        server.deliver("lat", 1)


def test_a_delivery_tells_how_far_it_is():
    heard: list[int] = []
    server_of(config(), {"a": Site(0.5, ("x",))}).deliver("a", 7, batch_size=3, advance=heard.append)
    assert heard == [3, 3, 1]


def test_a_longer_delivery_begins_with_the_shorter_one():
    server = server_of(config(), {"a": Site(0.5, ("x",))})
    np.testing.assert_allclose(server.deliver("a", 5, seed=3).x[:2], server.deliver("a", 2, seed=3).x, atol=1e-5)
    assert not np.allclose(server.deliver("a", 2, seed=3).x, server.deliver("a", 2, seed=4).x)


def test_a_client_that_does_everything_gets_pure_noise():
    settings = config({"a": {}, "b": {"cut": {"sigma": SIGMA_MAX}}})
    server = server_of(settings, {"a": Site(0.5, ("x",)), "b": Site(SIGMA_MAX, ("y",))})
    server.model.denoiser.register_forward_pre_hook(lambda *inputs: pytest.fail("the server was asked"))
    delivered = server.deliver("b", 500, seed=0)
    assert delivered.sigma == SIGMA_MAX and delivered.nfe == 0 and delivered.previous_x0_hat is None
    assert delivered.x.std() == pytest.approx(SIGMA_MAX, rel=0.05)
    assert len(np.unique(delivered.x.reshape(500, -1), axis=0)) == 500  # each image has noise of its own
