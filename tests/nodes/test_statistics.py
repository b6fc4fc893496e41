"""A site that sends statistics in place of images, and the server that adds them up."""

from __future__ import annotations

import sqlite3
from typing import Any

import numpy as np
import pytest

from collafuse.config import Config, from_mapping
from collafuse.core import intermediate as intermediates
from collafuse.core import statistics as files
from collafuse.core.atomic import write_bytes
from collafuse.core.describe import describe
from collafuse.core.errors import ConfigError, DataError, FileFormatError, MismatchError, RefusedError, UsageError
from collafuse.core.moments import unpacked
from collafuse.data.imageset import ImageSet
from collafuse.learning import weights
from collafuse.nodes.experiment import run_experiment
from collafuse.nodes.ledger import Ledger
from collafuse.nodes.runfolder import NodeFolder, RunFolder
from collafuse.nodes.server import Server
from collafuse.nodes.statistics import add_up, read_statistics
from collafuse.serving.engine import Engine
from collafuse.serving.orders import Order
from edge_client import Finisher
from export.writer import export_client
from tests.nodes.sites import client, config
from tests.tiny import CPU, Recorder, image_set

KIND = {"kind": "statistics"}


def settings(clients: dict[str, Any] | None = None, **client_settings: Any) -> Config:
    return config(clients, server=KIND, **client_settings)


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "ledger.sqlite")


def release(images: ImageSet, path, ledger: Ledger, chosen: Config | None = None, name: str = "a", **how: Any):
    return client(images, chosen or settings(), name).release_statistics(path, ledger, simulated=False, **how)


# --- at the site ----------------------------------------------------------------------------------------------


def test_without_a_budget_the_moments_are_exact(tmp_path, ledger):
    images = image_set(200)
    release(images, tmp_path / "a", ledger)
    made = files.read(tmp_path / "a")
    assert made.counts.tolist() == [100, 100] and made.label_names == ("a", "b") and made.about.budget is None
    mine = images.x0()[images.labels[:, 0] == 1].reshape(100, -1)
    matrix = unpacked(made.covariances[:1], 16)[0]
    # The basis is a rotation, which changes no eigenvalue.
    np.testing.assert_allclose(np.linalg.eigvalsh(matrix), np.linalg.eigvalsh(np.cov(mine.T, bias=True)), atol=1e-5)


def test_a_label_with_few_images_is_refused_without_a_budget_and_nothing_is_spent(tmp_path, ledger):
    images = image_set(99)  # 50 of a, 49 of b
    with pytest.raises(RefusedError, match=r"fewer than 50 images of b \(49\).*epsilon"):
        release(images, tmp_path / "r", ledger)
    assert not ledger.spent(images.digests).any() and not (tmp_path / "r").exists()
    release(image_set(100), tmp_path / "r", ledger)


def test_a_site_that_keeps_its_labels_tells_one_gaussian_of_all(tmp_path, ledger):
    made = release(image_set(60, ("secret", "b")), tmp_path / "r", ledger, settings(share_labels=False))
    assert made.label_names is None and made.counts.tolist() == [60]
    assert b"secret" not in (tmp_path / "r").read_bytes()


@pytest.mark.parametrize("row", [[1, 1], [0, 0]])
def test_an_image_with_several_labels_or_none_is_refused(tmp_path, ledger, row):
    images = image_set(120)
    images.labels[7] = row
    with pytest.raises(RefusedError, match="1 of 120 images show several labels or none"):
        release(images, tmp_path / "r", ledger)
    release(images, tmp_path / "r", ledger, settings(share_labels=False))


def test_a_budget_brings_noise_that_differs_each_time_and_is_stated(tmp_path, ledger):
    chosen = settings(statistics={"epsilon": 50, "delta": 1e-6, "clip": 0.7, "coefficients": 4}, labels=["a", "b"])
    images = image_set(1000)
    first = release(images, tmp_path / "a", ledger, chosen)
    second = release(images, tmp_path / "b", ledger, chosen, spend_again=True)
    # Unequal, not far apart: two draws of the noise fall close together now and then.
    assert (first.means != second.means).all() and (first.counts != second.counts).all()
    assert (first.about.budget.epsilon, first.about.budget.delta, first.about.clip) == (50, 1e-6, 0.7)
    assert describe(tmp_path / "a")["epsilon"] == 50
    assert first.counts == pytest.approx([500, 500], abs=6)


def test_a_label_that_the_noise_hides_is_left_out_and_none_left_is_refused(tmp_path, ledger):
    images = image_set(1010)
    images.labels[:] = [1, 0]
    images.labels[:3] = [0, 1]
    made = release(images, tmp_path / "r", ledger, settings(statistics={"epsilon": 20}, labels=["a", "b"]))
    assert made.label_names == ("a",)
    few = image_set(10, seed=1)
    with pytest.raises(DataError, match="no label counts 50 images once noise"):
        release(few, tmp_path / "s", ledger, settings(statistics={"epsilon": 20}, labels=["a", "b"]))
    assert not ledger.spent(few.digests).any()


def test_a_budget_asks_for_labels_that_are_listed_since_one_image_decides_whether_a_label_occurs(tmp_path, ledger):
    images, budget = image_set(1010), {"epsilon": 1}
    images.labels[:] = [1, 0]
    images.labels[0] = [0, 1]
    for labels in (None, "a or b"):
        with pytest.raises(RefusedError, match=r"labels that occur \(a, b\).*List the labels"):
            release(images, tmp_path / "r", ledger, settings(statistics=budget, labels=labels))
    assert not ledger.spent(images.digests).any()
    kept = release(images, tmp_path / "r", ledger, settings(statistics=budget, share_labels=False))
    assert kept.label_names is None
    listed = settings(statistics=budget, labels=["a", "b"])
    assert "a" in (release(images, tmp_path / "s", ledger, listed, spend_again=True).label_names or ())


def test_a_second_release_is_refused_with_the_budgets_that_were_spent(tmp_path, ledger):
    images = image_set(200)
    release(images, tmp_path / "a", ledger, settings(statistics={"epsilon": 20}, labels=["a", "b"]))
    with pytest.raises(RefusedError, match="200 of 200 .* for the budgets epsilon 20, delta 1e-05; budgets add up"):
        release(images, tmp_path / "b", ledger)
    with pytest.raises(RefusedError, match="200 of 200"):
        client(images).release(tmp_path / "b", ledger, simulated=False)  # of images: the same images are spent
    with sqlite3.connect(ledger.path) as connection:
        assert connection.execute("SELECT epsilon, delta FROM budgets").fetchall() == [(20, 1e-5)]
    connection.close()
    later = release(image_set(400, seed=9), tmp_path / "a.2", ledger, new_only=True)
    assert later.counts.sum() == 400


def test_a_release_that_was_interrupted_is_completed_and_draws_no_new_noise(tmp_path, ledger, monkeypatch):
    chosen = settings(statistics={"epsilon": 20}, labels=["a", "b"])
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "_complete", lambda *inputs: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            release(image_set(200), tmp_path / "r", ledger, chosen)
    (waiting,) = tmp_path.glob(".release-*.partial")
    drawn = waiting.read_bytes()
    release(image_set(200), tmp_path / "r", ledger, chosen)
    assert (tmp_path / "r").read_bytes() == drawn


# --- at the server --------------------------------------------------------------------------------------------


def received(folder, **images: ImageSet):
    """The folder of a server that received exact statistics of these clients' images."""
    folder.mkdir()
    for name, mine in images.items():
        release(
            mine, folder / f"{name}.safetensors", Ledger(folder.parent / f"{name}.sqlite"), settings({name: {}}), name
        )
    return folder


def test_statistics_that_do_not_belong_together_are_refused(tmp_path):
    folder = received(tmp_path / "r", a=image_set(100))
    with pytest.raises(UsageError, match="no releases"):
        read_statistics(tmp_path, accept_simulated=False)
    other = settings({"b": {}}, statistics={"coefficients": 4})
    release(image_set(100), folder / "b.safetensors", Ledger(tmp_path / "b.sqlite"), other, "b")
    with pytest.raises(MismatchError, match=r"a 16 a channel .* b 4 a channel .* same statistics\.coefficients"):
        read_statistics(folder, accept_simulated=False)


def test_statistics_that_lie_there_twice_count_once_or_not_at_all(tmp_path):
    folder = received(tmp_path / "r", a=image_set(100))
    (folder / "a.2.safetensors").write_bytes((folder / "a.safetensors").read_bytes())
    found = read_statistics(folder, accept_simulated=False)
    with pytest.raises(MismatchError, match="two files of a hold the same statistics, which would count twice"):
        add_up(settings({"a": {}}), found, NodeFolder(tmp_path / "server"), CPU, Recorder())
    assert not (tmp_path / "server").exists()


def test_a_simulated_file_is_refused_unless_accepted(tmp_path, ledger):
    client(image_set(100), settings()).release_statistics(tmp_path / "a.safetensors", ledger, simulated=True)
    with pytest.raises(RefusedError, match="--accept-simulated"):
        read_statistics(tmp_path, accept_simulated=False)
    assert len(read_statistics(tmp_path, accept_simulated=True)["a"]) == 1


def test_statistics_of_a_client_without_a_cut_are_refused(tmp_path):
    found = read_statistics(received(tmp_path / "r", guest=image_set(100)), accept_simulated=False)
    with pytest.raises(ConfigError, match="'guest' does not exist"):
        add_up(settings(), found, NodeFolder(tmp_path / "server"), CPU, Recorder())


@pytest.fixture
def server(tmp_path):
    """Of three sites with cuts of their own; c keeps its labels."""
    chosen = settings({"a": {}, "b": {"cut": {"sigma": 2.0}}, "c": {"cut": {"sigma": 1.0}}})
    sites = received(tmp_path / "r", a=image_set(200), b=image_set(100, ("z",), seed=1))
    kept = settings({"c": {"share_labels": False}})
    release(image_set(80, seed=2), sites / "c.safetensors", Ledger(tmp_path / "c.sqlite"), kept, "c")
    found = read_statistics(sites, accept_simulated=False)
    return add_up(chosen, found, NodeFolder(tmp_path / "server"), CPU, Recorder())


def test_it_delivers_draws_at_each_clients_own_cut(server):
    delivered = server.deliver("b", 400, seed=0)
    assert delivered.sigma == 2.0 and delivered.nfe == 0 and delivered.labels.sum() == 400
    expected = image_set(100, ("z",), seed=1).x0().mean(axis=0)
    np.testing.assert_allclose(delivered.x.mean(axis=0), expected, atol=6 * 2.1 / 20)
    assert server.deliver("a", 3).sigma == 0.5 and server.deliver("c", 3).labels is None


def test_every_released_label_is_known_at_every_level_one_at_a_time(server):
    assert server.deliverable("a") == ("a", "b", "z")  # z stands at a higher cut, its statistics at none
    assert server.deliver("a", 2, labels=["z"]).labels[:, 2].tolist() == [1, 1]
    for labels in (["a", "b"], []):
        with pytest.raises(RefusedError, match="statistics of one label at a time"):
            server.deliver("a", 2, labels=labels)
    with pytest.raises(MismatchError, match="'secret'"):
        server.deliver("a", 2, labels=["secret"])


def test_without_labels_it_draws_from_all_images_together(server):
    model = server.model.denoiser.gaussians
    assert [one.count for one in model] == [100, 100, 100, 380]


def test_batch_size_and_the_service_change_no_picture(server):
    whole = server.deliver("a", 9, seed=3)
    np.testing.assert_allclose(server.deliver("a", 9, seed=3, batch_size=2).x, whole.x, atol=1e-6)
    engine = Engine(server, slots=2)
    engine.start()
    try:
        job = engine.submit(Order.plan(server, "a", 9, seed=3), 60)
        job.future.result(60)
        served = engine.package(job)
        engine.beat().result(60)  # readiness asks the closed-form denoiser for a step
    finally:
        engine.stop()
    np.testing.assert_allclose(served.x, whole.x, atol=1e-6)
    assert served.nfe == 0 and np.array_equal(served.labels, whole.labels)


def test_it_has_no_network_to_compile_but_a_batch_size_that_is_fastest(server):
    with pytest.raises(UsageError, match="evaluates no network"):
        server.compile(4, pytest.fail)
    assert server.fastest_batch() >= 1


def test_the_folder_is_read_again(server, tmp_path):
    again = Server.load(NodeFolder(tmp_path / "server"), CPU)
    assert again.sites == server.sites and again.sites["a"].statistics
    np.testing.assert_allclose(again.deliver("a", 4, seed=1).x, server.deliver("a", 4, seed=1).x, atol=1e-6)
    assert (tmp_path / "server" / "samples" / "draws.png").exists()


# --- the whole way --------------------------------------------------------------------------------------------


def test_train_deliver_finish_without_an_image_in_the_servers_folder(tiny_config, tmp_path):
    values = tiny_config.model_dump(mode="json", exclude_none=True)
    values |= {"server": KIND, "clients": {"north": values["clients"]["north"]}}
    chosen, run = from_mapping(values), RunFolder(tmp_path / "run")
    done = run_experiment(chosen, run, CPU, lambda name: Recorder())
    assert not (run.server.path / "checkpoints").exists()
    assert {files.read(path).simulated for path in run.server.releases.iterdir()} == {True}
    delivered = Server.load(run.server, CPU).deliver("north", 6, seed=0)
    write_bytes(tmp_path / "x", intermediates.to_bytes(delivered))
    export_client(done.models["north"], chosen.client("north"), "north", tmp_path / "north.onnx")
    pixels = Finisher.load(tmp_path / "north.onnx").finish(intermediates.read(tmp_path / "x"))
    assert pixels.shape == (6, 8, 8, 1) and pixels.std() > 10
    before = run.server.weights.read_bytes()
    run_experiment(chosen, run, CPU, lambda name: Recorder(), resume=True)
    assert run.server.weights.read_bytes() == before
    run.check(resume=False, overwrite=True)


def test_a_network_cannot_start_from_statistics(tiny_config, tmp_path, server):
    values = tiny_config.model_dump(mode="json", exclude_none=True) | {"server": KIND}
    with pytest.raises(UsageError, match="--warm-start"):
        run_experiment(from_mapping(values), RunFolder(tmp_path / "x"), CPU, lambda name: Recorder(), warm_start=True)
    with pytest.raises(FileFormatError, match="is a 'gaussians' file, expected a weights"):
        weights.load(tmp_path / "server" / "weights.safetensors", "server")


@pytest.mark.parametrize(
    ("server", "message"),
    [
        ({"sampler": {"guidance": 2.0}}, "without guidance"),
        ({"sampler": {"autoguidance": 2.0}}, "without guidance"),
        ({"send_previous": True}, "last estimate"),
    ],
)
def test_settings_that_a_draw_cannot_follow_are_refused(server, message):
    with pytest.raises(ConfigError, match=message):
        config(server=KIND | server)


def test_a_budget_where_images_are_sent_is_refused():
    """Whoever forgets ``server.kind`` would send images, and think that a budget is kept."""
    with pytest.raises(ConfigError, match=r"clients\.a\.statistics\.epsilon=8 .* server\.kind=images"):
        config(statistics={"epsilon": 8})


@pytest.mark.parametrize(
    ("statistics", "message"),
    [
        ({"coefficients": 17}, "at most 16"),
        ({"epsilon": 500}, "epsilon"),
        ({"epsilon": 1, "delta": 0.5}, "delta"),
        ({"clip": 0.5}, "clip=0.5 .* without an epsilon no noise is added"),
        ({"delta": 1e-6}, "delta=1e-06 .* without an epsilon no noise is added"),
    ],
)
def test_a_budget_or_basis_that_cannot_be_is_refused(statistics, message):
    with pytest.raises(ConfigError, match=message):
        settings(statistics=statistics)
