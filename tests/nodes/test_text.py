"""Text among the nodes: what a release carries or keeps, what a server learns from it and delivers."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from collafuse.core import release as releases
from collafuse.core.atomic import write_bytes
from collafuse.core.conditioning import ConditionSpace, TextSpace
from collafuse.core.errors import MismatchError, RefusedError, UsageError
from collafuse.core.noise import SIGMA_MAX
from collafuse.core.texts import EncodedText
from collafuse.evaluation.whole_run import conditions_of
from collafuse.learning.weights import TrainedModel, load, warm_start
from collafuse.nodes.ledger import Ledger
from collafuse.nodes.planned import Planned
from collafuse.nodes.runfolder import NodeFolder
from collafuse.nodes.server import Server
from collafuse.nodes.server_training import train_server
from collafuse.nodes.sites import Site, mixture_warning, read_releases, read_sites, sites_of, space_of, training_data
from collafuse.serving.orders import Order
from tests.nodes.sites import NETWORK as SITES_NETWORK
from tests.nodes.sites import TRAINING, client, config, release_of, rows_of
from tests.tiny import CPU, NETWORK, Recorder, denoiser, image_set

SPACE = TextSpace("t5-4-00", 4)
OTHER = TextSpace("t5-4-11", 4)


def rows(count: int, seed: int = 0) -> np.ndarray:
    made = np.random.default_rng(seed).choice([-1, 1], (count, 4)).astype(np.float16)
    made[:, 0] = np.where(np.arange(count) % 2, 1, -1)  # each differs from its neighbour
    return made


def with_text(images, space: TextSpace = SPACE):
    captions = np.array([f"number {i}" for i in range(len(images))], dtype=object)
    return replace(images, captions=captions, text=EncodedText(space, rows(len(images))))


def text_release(sigma: float = 0.5, labels=("x", "y"), space: TextSpace = SPACE):
    return replace(release_of(sigma, labels), text=EncodedText(space, rows(8)))


# --- a site -------------------------------------------------------------------------------------------------


def test_a_release_carries_the_text_of_its_images(tmp_path):
    images = with_text(image_set(6))
    site = client(images, config(cut={"sigma": 0.05}))
    site.release(tmp_path / "a", Ledger(tmp_path / "ledger"), simulated=False)
    found = releases.read(tmp_path / "a")
    assert found.text.space == SPACE and np.array_equal(found.text.rows, images.text.rows[rows_of(found, images)])


def test_text_that_is_kept_leaves_no_trace_in_the_release(tmp_path):
    """Neither names nor numbers: the file has the very bytes of one by a site without text, but noise and ids."""
    kept, without = config(share_text=False), image_set(6)
    client(with_text(without), kept).release(tmp_path / "kept", Ledger(tmp_path / "l1"), simulated=False)
    client(without).release(tmp_path / "without", Ledger(tmp_path / "l2"), simulated=False)
    files = [(tmp_path / name).read_bytes() for name in ("kept", "without")]
    headers = [json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]) for data in files]
    for header in headers:
        fields = json.loads(header.pop("__metadata__")["collafuse"])
        assert fields.pop("sha256") and "text" not in json.dumps(fields)
    assert headers[0] == headers[1] and len(files[0]) == len(files[1])
    assert b"t5" not in files[0][: files[0].index(b"}}") + 2] and b"number" not in files[0]
    assert rows(6).tobytes() not in files[0]


def test_a_client_learns_with_its_text(tmp_path):
    site = client(with_text(image_set(6)))
    data = site.training_data()
    assert data.conditions.shape == (6, 7) and np.array_equal(data.conditions[:, 2:6].numpy(), rows(6))
    model = site.train(NodeFolder(tmp_path / "a"), CPU, Recorder())
    assert model.space == ConditionSpace(("a", "b"), SPACE)
    assert load(NodeFolder(tmp_path / "a").weights, "client").space == model.space


def test_weights_of_before_there_was_text_know_labels_alone(tmp_path):
    client(image_set(6)).train(NodeFolder(tmp_path / "a"), CPU, Recorder())
    path = NodeFolder(tmp_path / "a").weights
    assert b"text" not in path.read_bytes()[:2000] and load(path).space == ConditionSpace(("a", "b"))


@pytest.mark.parametrize("norm", ["group", "magnitude", "none"])
def test_a_warm_start_takes_text_over_and_leaves_it_where_the_teacher_has_none(norm):
    x, sigma = torch.linspace(-1, 1, 16).reshape(1, 1, 4, 4), torch.tensor([0.7])
    labels, text = np.array([[1, 0]], dtype=np.uint8), rows(1)

    def answer(model, text=None):
        return model.eval()(x, sigma, torch.from_numpy(model.space.conditions(1, labels, text)))

    network = NETWORK.model_copy(update={"norm": norm})
    teacher = TrainedModel(denoiser(network, text=SPACE), "server", 0.5, SIGMA_MAX, 0)
    pupil = denoiser(network, text=SPACE, seed=5)
    warm_start(pupil, teacher)
    assert torch.equal(answer(pupil, text), answer(teacher.denoiser, text))
    assert not torch.equal(answer(pupil, text), answer(pupil))
    plain = TrainedModel(denoiser(network), "server", 0.5, SIGMA_MAX, 0)
    warm_start(pupil, plain)
    assert not torch.equal(answer(pupil, text), answer(pupil))
    assert torch.allclose(answer(pupil), answer(plain.denoiser), atol=1e-6)
    with pytest.raises(MismatchError, match="t5-4-00, here it is t5-4-11"):
        warm_start(denoiser(network, text=OTHER), teacher)


# --- what a server learns -----------------------------------------------------------------------------------


def test_a_server_learns_text_where_it_was_shared_and_zeros_elsewhere():
    found = {"a": [text_release()], "b": [release_of(1.0)], "c": [release_of(1.0, None)]}
    space = space_of(found)
    assert space == ConditionSpace(("x", "y"), SPACE)
    conditions = training_data(found, space).conditions.numpy()
    assert np.array_equal(conditions[:8, 2:6], rows(8)) and not conditions[:8, 6].any()
    assert not conditions[8:, 2:6].any()
    assert not conditions[8:16, 6].any() and conditions[16:, 6].all()
    assert [site.text for site in sites_of(found).values()] == [True, False, False]


def test_shared_text_without_labels_is_a_condition():
    found = {"a": [text_release(labels=None)]}
    conditions = training_data(found, space_of(found)).conditions.numpy()
    assert conditions.shape == (8, 5) and not conditions[:, 4].any()
    assert mixture_warning({"a": Site(0.5, None, text=True), "b": Site(1.0, None, text=True)}) is None


def test_a_site_that_keeps_its_text_in_one_release_keeps_it():
    found = {"a": [text_release(), release_of(0.5)]}
    assert space_of(found).text is None
    assert not training_data(found, space_of(found)).conditions.numpy()[:, 2].any()


@pytest.mark.parametrize("name", ["b", "a"])
def test_releases_of_two_encoders_are_refused_by_name(tmp_path, name):
    write_bytes(tmp_path / "a.safetensors", releases.to_bytes(text_release()))
    write_bytes(tmp_path / f"{name}.x.safetensors", releases.to_bytes(text_release(space=OTHER)))
    with pytest.raises(MismatchError, match=rf"different encoders \(a t5-4-00, {name} t5-4-11\)"):
        read_releases(tmp_path, accept_simulated=False)


def test_a_trained_server_remembers_who_shared_text(tmp_path):
    for name, release in (("a", text_release()), ("b", release_of(1.0))):
        write_bytes(tmp_path / "sent" / f"{name}.safetensors", releases.to_bytes(release))
    folder = NodeFolder(tmp_path / "server")
    settings = config({"a": {}, "b": {"cut": {"sigma": 1.0}}})
    train_server(settings, read_releases(tmp_path / "sent", accept_simulated=False), folder, CPU, Recorder())
    assert {name: site.text for name, site in read_sites(folder.sites).items()} == {"a": True, "b": False}
    values = json.loads(folder.sites.read_text())
    for site in values.values():
        del site["text"]
    folder.sites.write_text(json.dumps(values))
    assert not read_sites(folder.sites)["a"].text
    assert Server.load(folder, CPU).model.space == ConditionSpace(("x", "y"), SPACE)


# --- what it delivers ---------------------------------------------------------------------------------------


@pytest.fixture
def server():
    sites = {"low": Site(0.5, ("x",)), "mid": Site(1.0, ("y",), text=True), "high": Site(2.0, None)}
    model = TrainedModel(denoiser(label_names=("x", "y"), text=SPACE), "server", 0.5, SIGMA_MAX, 0, "id")
    return Server(config({name: {"cut": {"sigma": site.sigma_cut}} for name, site in sites.items()}), model, sites, CPU)


TEXT = EncodedText(SPACE, rows(2))


def test_texts_are_dealt_out_and_travel(server):
    made = server.deliver("mid", 5, text=TEXT, seed=0)
    assert made.text.space == SPACE and np.array_equal(made.text.rows, rows(2)[[0, 0, 0, 1, 1]])
    assert made.labels is None
    both = server.deliver("mid", 2, labels=["y"], text=TEXT, seed=0)
    assert both.labels[:, 1].all() and both.text is not None


def test_text_steers_what_is_delivered(server):
    asked, other = (server.deliver("mid", 1, text=TEXT.take([i]), seed=0).x for i in (0, 1))
    assert np.abs(asked - other).max() > 1e-4
    assert np.abs(asked - server.deliver("mid", 1, labels=["y"], seed=0).x).max() > 1e-4


def test_batches_do_not_change_a_picture_of_a_text(server):
    whole, parts = (server.deliver("mid", 5, text=TEXT, seed=0, batch_size=size) for size in (5, 2))
    assert np.abs(whole.x - parts.x).max() < 1e-4 and np.array_equal(whole.text.rows, parts.text.rows)


def test_text_released_above_a_clients_cut_is_refused(server):
    with pytest.raises(RefusedError, match="no site released text at or below sigma 0.5, the cut of client 'low'"):
        server.deliver("low", 2, text=TEXT)
    assert server.deliver("high", 2, text=TEXT).text is not None


def test_text_of_another_encoder_and_too_many_texts_are_refused(server):
    with pytest.raises(MismatchError, match="the request holds text of the encoder t5-4-11"):
        server.deliver("mid", 2, text=EncodedText(OTHER, rows(2)))
    with pytest.raises(UsageError, match="2 texts and 1 images"):
        server.deliver("mid", 1, text=TEXT)


def test_a_server_without_text_says_so(server):
    model = TrainedModel(denoiser(label_names=("x", "y")), "server", 0.5, SIGMA_MAX, 0, "id")
    with pytest.raises(MismatchError, match=r"trained without text, since no site .* at the device \(finish --text\)"):
        Server(server.config, model, server.sites, CPU).deliver("mid", 2, text=TEXT)


def test_a_run_is_not_measured_with_text_of_an_encoder_that_changed_since():
    trained, images = ConditionSpace(("a", "b"), SPACE), with_text(image_set(2), OTHER)
    with pytest.raises(MismatchError, match="t5-4-11 .* trained with t5-4-00"):
        Planned(images.labels, images.text).conditions(2, trained)
    with pytest.raises(MismatchError, match="the data holds text of the encoder t5-4-11"):
        conditions_of(images, trained)
    assert not conditions_of(images, ConditionSpace(("a", "b")))[:, 2].any()  # a server that was told of no text


def test_each_image_gets_the_text_of_one_that_shows_its_label(server):
    images = with_text(image_set(6, ("y", "z")))
    planned = server.plan_like("mid", 4, images)
    assert planned.labels[:, 1].all()
    assert np.array_equal(planned.text.rows, images.text.rows[[0, 2, 4, 0]])
    assert server.plan_like("low", 4, images).text is None


def test_a_site_is_not_asked_for_with_text_that_only_others_shared(server):
    """As of labels: ``high`` may be, by its devices."""
    assert server.delivers_text("high")
    planned = server.plan_like("high", 8, with_text(image_set(6, ("y", "z"))))
    assert planned.labels is None and planned.text is None
    server.sites["high"] = Site(2.0, None, text=True)
    images = with_text(image_set(6, ("y", "z")))
    planned = server.plan_like("high", 8, images)
    assert planned.labels is None and np.array_equal(planned.text.rows, images.text.rows[[0, 1, 2, 3, 4, 5, 0, 1]])


# --- where dropout left nothing out -------------------------------------------------------------------------


def without_dropout(sites):
    training = TRAINING | {"label_dropout": 0.0}
    clients = {name: {"cut": {"sigma": site.sigma_cut}} for name, site in sites.items()}
    settings = config(clients, {"network": SITES_NETWORK, "training": training, "sampler": {"steps": 4}})
    model = TrainedModel(denoiser(label_names=("x", "y"), text=SPACE), "server", 0.5, SIGMA_MAX, 0, "id")
    return Server(settings, model, sites, CPU)


def asked(server, name, labels=None, text=None):
    return [
        lambda: server.deliver(name, 2, labels=labels, text=text),
        lambda: Order.plan(server, name, 2, labels=labels, text=text),
    ]


BOTH, LABELLED, TOLD, KEPT = (
    Site(0.5, ("x",), text=True),
    Site(1.0, ("y",)),
    Site(1.0, None, text=True),
    Site(2.0, None),
)


@pytest.mark.parametrize(
    ("sites", "name", "labels", "text", "said"),
    [
        ({"a": BOTH}, "a", None, None, "labels x without text .*label_dropout=0.*; it learned labels x with text"),
        ({"a": BOTH}, "a", ["x"], None, "labels x without text .*label_dropout=0.*; it learned labels x with text"),
        ({"a": BOTH}, "a", None, TEXT, "text without labels .*label_dropout=0.*; it learned labels x with text"),
        ({"b": TOLD}, "b", None, None, "neither labels nor text .*label_dropout=0.*; it learned text without labels"),
        (
            {"a": BOTH, "b": LABELLED},
            "b",
            ["x"],
            None,
            "labels x without text .*; it learned labels x with text, labels y without text",
        ),
        ({"a": BOTH, "k": KEPT}, "a", None, None, "labels x without text"),  # what k keeps stands at a higher cut
    ],
)
def test_what_a_server_never_learned_without_dropout_is_not_delivered(sites, name, labels, text, said):
    for request in asked(without_dropout(sites), name, labels, text):
        with pytest.raises(RefusedError, match=f"of .{name}. with {said}.*label_dropout above 0"):
            request()


@pytest.mark.parametrize(
    ("sites", "name", "labels", "text"),
    [
        ({"a": BOTH}, "a", ["x"], TEXT),
        ({"a": BOTH, "b": LABELLED, "c": TOLD, "k": KEPT}, "b", None, None),
        ({"a": BOTH, "b": LABELLED, "c": TOLD, "k": KEPT}, "c", None, TEXT),
        ({"a": BOTH, "b": LABELLED, "c": TOLD, "k": KEPT}, "k", None, None),
    ],
)
def test_each_site_is_delivered_what_it_told_without_dropout(sites, name, labels, text):
    for request in asked(without_dropout(sites), name, labels, text):
        request()


def test_each_site_is_measured_as_it_told_without_dropout():
    sites = {"a": BOTH, "b": LABELLED, "c": TOLD, "k": KEPT}
    server, images = without_dropout(sites), with_text(image_set(6))
    for name, site in sites.items():
        planned = server.plan_like(name, 4, images)
        assert (planned.labels is None, planned.text is None) == (site.label_names is None, not site.text)
    with pytest.raises(RefusedError, match="label_dropout=0"):
        server.plan_like("c", 4, image_set(6))  # data that lost its text since


def test_a_server_trains_without_dropout_and_shows_text_while_it_does(tmp_path):
    settings = config(server={"network": SITES_NETWORK, "training": TRAINING | {"label_dropout": 0.0}})
    observer = Recorder()
    train_server(settings, {"a": [text_release()]}, NodeFolder(tmp_path), CPU, observer)
    assert list(NodeFolder(tmp_path).samples.iterdir())
