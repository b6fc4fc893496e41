"""A client: it releases each image once, with noise that nobody can repeat, and trains on its own."""

from __future__ import annotations

import json
import math
import random

import numpy as np
import pytest
import torch
from PIL import Image

from collafuse.config import DataSettings
from collafuse.core import release as releases
from collafuse.core.errors import CollaFuseError, MismatchError, OutputExistsError, RefusedError
from collafuse.core.noise import SIGMA_MIN
from collafuse.data.datasets import load
from collafuse.data.imageset import ImageSet
from collafuse.learning import weights
from collafuse.nodes.ledger import Ledger
from collafuse.nodes.runfolder import NodeFolder
from tests.damage import safetensors_parts
from tests.nodes.sites import TRAINING, client, config, rows_of
from tests.tiny import CPU, Recorder, image_set


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "ledger.sqlite")


def noise_of(made: releases.Release, images: ImageSet) -> np.ndarray:
    return made.z.astype(np.float64) - images.x0()


def test_a_release_holds_each_training_image_at_the_cut(tmp_path, ledger):
    images = image_set(40, side=16)
    made = client(images).release(tmp_path / "a", ledger, simulated=True)
    read = releases.read(tmp_path / "a")
    assert np.array_equal(read.z, made.z) and read.sigma_cut == 0.5 and len(read.z) == 40
    assert noise_of(read, images).std() == pytest.approx(0.5, rel=0.05)
    assert read.label_names == ("a", "b") and np.array_equal(read.labels, images.labels)
    assert ledger.spent(images.digests).all()


@pytest.mark.parametrize("share", [True, False])
def test_the_order_of_a_release_tells_nothing_of_the_order_of_the_files(tmp_path, share):
    images = image_set(200, side=8)
    images = images.take(np.argsort(images.labels[:, 1], kind="stable"))  # label by label, as a folder is read
    site = client(images, config(cut={"sigma": 0.05}, share_labels=share))
    orders = []
    for name in ("first", "second"):
        made = site.release(tmp_path / name, Ledger(tmp_path / f"{name}.sqlite"), simulated=False)
        rows = rows_of(made, images)
        assert made.labels is None or np.array_equal(made.labels, images.labels[rows])
        orders.append(rows)
    # Of two independent orders a correlation above 0.4 is one in 10^8.
    assert max(abs(np.corrcoef(a, b)[0, 1]) for a, b in [orders, (orders[0], range(200))]) < 0.4


@pytest.mark.parametrize("simulated", [True, False])
def test_a_release_says_whether_it_was_simulated(tmp_path, ledger, simulated):
    client(image_set(2)).release(tmp_path / "a", ledger, simulated=simulated)
    assert releases.read(tmp_path / "a").simulated is simulated


def test_a_release_holds_the_allowed_fields_alone(tmp_path, ledger):
    client(image_set(3)).release(tmp_path / "patient-7.safetensors", ledger, simulated=False)
    data = (tmp_path / "patient-7.safetensors").read_bytes()
    header, _ = safetensors_parts(data)
    fields = json.loads(header.pop("__metadata__")["collafuse"])
    assert set(header) == {"z", "ids", "labels"}
    assert set(fields) == {"kind", "version", "sha256", "sigma_cut", "label_names", "simulated"}
    assert b"patient" not in data and str(tmp_path).encode() not in data


def test_labels_stay_at_a_site_that_does_not_share_them(tmp_path, ledger):
    images = image_set(3, ("a secret", "another"))
    client(images, config(share_labels=False)).release(tmp_path / "r", ledger, simulated=False)
    read = releases.read(tmp_path / "r")
    assert read.labels is None and read.label_names == () and b"secret" not in (tmp_path / "r").read_bytes()


def test_images_without_labels_are_released(tmp_path, ledger):
    client(image_set(3, ())).release(tmp_path / "r", ledger, simulated=False)
    assert releases.read(tmp_path / "r").z.shape == (3, 1, 4, 4)


def test_equal_images_are_released_once(tmp_path, ledger):
    images = image_set(6)
    twice = images.take(np.array([3, 0, 3, 1, 0, 3]))
    made = client(twice).release(tmp_path / "r", ledger, simulated=True)
    assert np.array_equal(made.labels, images.labels[[3, 0, 1]]) and len(releases.read(tmp_path / "r").z) == 3


@pytest.mark.parametrize("label", ["", "two\nlines", "x" * 201])
def test_a_release_that_nobody_could_read_is_not_made_and_spends_nothing(tmp_path, ledger, label):
    images = image_set(4, (label, "b"))
    with pytest.raises(CollaFuseError, match="label_names"):
        client(images).release(tmp_path / "r", ledger, simulated=False)
    assert not (tmp_path / "r").exists() and not ledger.spent(images.digests).any()


# --- once ---------------------------------------------------------------------------------------------------


def test_a_second_release_is_refused_and_nothing_is_written(tmp_path, ledger):
    site = client(image_set(4))
    site.release(tmp_path / "first", ledger, simulated=False)
    before = (tmp_path / "first").read_bytes()
    with pytest.raises(RefusedError, match="4 of 4 images were released before.*--spend-again"):
        site.release(tmp_path / "second", ledger, simulated=False)
    with pytest.raises(RefusedError):
        site.release(tmp_path / "first", ledger, simulated=False, overwrite=True)
    assert (tmp_path / "first").read_bytes() == before and not (tmp_path / "second").exists()


def test_one_old_image_among_new_ones_is_enough_to_refuse(tmp_path, ledger):
    images = image_set(6)
    client(images.take(np.arange(3))).release(tmp_path / "first", ledger, simulated=False)
    with pytest.raises(RefusedError, match="1 of 4 images"):
        client(images.take(np.arange(2, 6))).release(tmp_path / "second", ledger, simulated=False)
    client(images.take(np.arange(3, 6))).release(tmp_path / "second", ledger, simulated=False)


def test_new_images_alone_can_be_released_later(tmp_path, ledger):
    images = image_set(6)
    first = client(images.take(np.arange(3))).release(tmp_path / "a.safetensors", ledger, simulated=False)
    site = client(images.take(np.array([5, 2, 3, 0, 5])))
    later = site.release(tmp_path / "a.2.safetensors", ledger, simulated=False, new_only=True)
    assert len(later.z) == 2 and np.array_equal(later.labels, images.labels[[5, 3]])
    assert not {bytes(i) for i in later.ids} & {bytes(i) for i in first.ids}
    with pytest.raises(RefusedError, match=r"4 of 4 images were released before(?!.*--new-only)"):
        site.release(tmp_path / "a.3.safetensors", ledger, simulated=False, new_only=True)


def test_a_release_in_blocks_is_one_release_and_tells_how_far_it_is(tmp_path, ledger, monkeypatch):
    monkeypatch.setattr("collafuse.nodes.releasing.BLOCK_VALUES", 40)  # two and a half images
    images, heard = image_set(9), []
    made = client(images).release(tmp_path / "r", ledger, simulated=True, advance=heard.append)
    assert sum(heard) == 9 and len(heard) > 3 and made.z.shape == images.pixels.shape
    assert np.unique(noise_of(made, images).round(3)).size > 100  # no block repeats another's noise


def test_the_same_pixels_are_known_under_any_name_format_and_size(tmp_path, ledger):
    pixels = np.random.default_rng(3).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    for name, size in (("monday/x/scan-1.png", 4), ("friday/y/renamed.bmp", 8)):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        Image.fromarray(pixels).save(path)
        settings = DataSettings(dataset="folder", path=path.parents[1], image_size=size, channels=1)
        site = client(load(settings))
        if size == 4:
            site.release(tmp_path / "first", ledger, simulated=False)
    with pytest.raises(RefusedError, match="1 of 1 images"):
        site.release(tmp_path / "second", ledger, simulated=False)


def test_a_release_can_be_spent_again_with_other_noise(tmp_path, ledger):
    images = image_set(4, side=32)
    site = client(images)
    first = site.release(tmp_path / "first", ledger, simulated=False)
    second = site.release(tmp_path / "second", ledger, simulated=False, spend_again=True)
    assert not np.array_equal(first.z, second.z) and not np.array_equal(first.ids, second.ids)


def test_an_interrupted_release_is_completed_with_the_same_noise(tmp_path, ledger, monkeypatch):
    class PowerCutError(BaseException):
        """Nothing of ours catches it."""

    def stop(*arguments: object) -> None:
        raise PowerCutError

    site = client(image_set(4))
    with monkeypatch.context() as patch:
        patch.setattr("os.link", stop)
        with pytest.raises(PowerCutError):
            site.release(tmp_path / "r", ledger, simulated=False)
    (waiting,) = tmp_path.glob(".release-*.partial")
    drawn = waiting.read_bytes()
    made = site.release(tmp_path / "r", ledger, simulated=False)
    assert (tmp_path / "r").read_bytes() == drawn and np.array_equal(made.z, releases.read(tmp_path / "r").z)
    assert not waiting.exists()
    with pytest.raises(RefusedError):
        site.release(tmp_path / "again", ledger, simulated=False)


def test_an_output_that_exists_is_kept_and_nothing_is_spent(tmp_path, ledger):
    images = image_set(2)
    (tmp_path / "r").write_bytes(b"mine")
    with pytest.raises(OutputExistsError):
        client(images).release(tmp_path / "r", ledger, simulated=False)
    assert (tmp_path / "r").read_bytes() == b"mine" and not ledger.spent(images.digests).any()


# --- noise that cannot be repeated --------------------------------------------------------------------------


def test_two_releases_of_one_image_share_no_noise_whatever_is_seeded(tmp_path):
    images = image_set(1, side=64)
    seeded = config(training={"steps": 3, "batch_size": 4, "seed": 7})
    noises = []
    for name in ("one", "two"):
        random.seed(7)  # noqa: TID251
        np.random.seed(7)  # noqa: NPY002, TID251
        torch.manual_seed(7)
        made = client(images, seeded).release(tmp_path / name, Ledger(tmp_path / f"{name}.sqlite"), simulated=True)
        noises.append(noise_of(made, images).ravel())
    correlation = abs(float(np.corrcoef(noises)[0, 1]))
    assert correlation < 6 / math.sqrt(noises[0].size)


def test_two_images_of_one_release_share_no_noise(tmp_path, ledger):
    images = image_set(2, side=64)
    noise = noise_of(client(images).release(tmp_path / "r", ledger, simulated=True), images).reshape(2, -1)
    assert abs(float(np.corrcoef(noise)[0, 1])) < 6 / math.sqrt(noise.shape[1])


# --- training -----------------------------------------------------------------------------------------------


def test_a_client_trains_on_clean_images_up_to_where_it_takes_over():
    images = image_set(6)
    data = client(images, config(handover=1.5)).training_data()
    assert data.sigma_high == 0.75 and not data.sigma_floor.any()
    assert np.array_equal(data.images.numpy(), images.pixels)
    assert np.array_equal(data.conditions.numpy(), np.column_stack([images.labels, np.zeros(6)]))


def test_images_without_labels_are_trained_as_no_condition():
    assert client(image_set(3, ())).training_data().conditions.tolist() == [[1]] * 3


@pytest.mark.parametrize(
    ("labels", "share_labels", "dropout"), [((), False, 0), (("a", "b"), True, 0), (("a",), False, 0.1)]
)
def test_nothing_is_said_where_what_is_asked_for_is_trained(labels, share_labels, dropout):
    settings = config(share_labels=share_labels, training={"label_dropout": dropout})
    assert client(image_set(4, labels), settings)._blank_warning() is None


def test_a_site_that_keeps_its_labels_and_never_trains_without_is_warned(tmp_path):
    observer = Recorder()
    site = client(image_set(8), config(share_labels=False, training=TRAINING | {"label_dropout": 0, "steps": 1}))
    site.train(NodeFolder(tmp_path), CPU, observer)
    assert any(
        "warning: a keeps its labels" in note and "label_dropout=0 never trains" in note for note in observer.notes
    )


def test_a_trained_client_leaves_its_model_settings_and_sheets(tmp_path):
    site, folder, observer = client(image_set(6)), NodeFolder(tmp_path / "a"), Recorder()
    model = site.train(folder, CPU, observer)
    assert (model.role, model.label_names, model.sigma_low, model.sigma_high) == ("client", ("a", "b"), SIGMA_MIN, 1.0)
    assert weights.load(folder.weights, "client").id == model.id and folder.read_config() == site.config
    assert [r["step"] for r in observer.records] == [1, 2, 3]
    with Image.open(folder.samples / "step-00000003.png") as sheet:
        assert np.asarray(sheet).std() > 0


def test_training_again_with_the_same_seed_gives_the_same_weights(tmp_path):
    ids = [client(image_set(6)).train(NodeFolder(tmp_path / name), CPU, Recorder()).id for name in "ab"]
    assert ids[0] == ids[1]


def test_a_warm_start_begins_at_the_server_s_weights_and_needs_its_size(tmp_path):
    settings = config({"a": {}, "b": {"network": {"channels": 16}}})
    teacher = client(image_set(6), settings).train(NodeFolder(tmp_path / "teacher"), CPU, Recorder())
    cold = client(image_set(6), settings).train(NodeFolder(tmp_path / "cold"), CPU, Recorder())
    warm = client(image_set(6), settings).train(NodeFolder(tmp_path / "warm"), CPU, Recorder(), init=teacher)
    assert warm.id != cold.id
    with pytest.raises(MismatchError, match="a warm start needs the same network"):
        client(image_set(6), settings, "b").train(NodeFolder(tmp_path / "b"), CPU, Recorder(), init=teacher)
    assert not (tmp_path / "b").exists()


def test_a_training_resumes_only_from_a_checkpoint_with_the_same_start(tmp_path):
    teacher = client(image_set(6)).train(NodeFolder(tmp_path / "teacher"), CPU, Recorder())
    client(image_set(6)).train(NodeFolder(tmp_path / "a"), CPU, Recorder())
    with pytest.raises(MismatchError, match="another configuration or starting weights"):
        client(image_set(6)).train(NodeFolder(tmp_path / "a"), CPU, Recorder(), resume=True, init=teacher)


@pytest.mark.parametrize("damaged", [False, True])
def test_weights_without_a_checkpoint_are_not_trained_again_by_a_resume(tmp_path, damaged):
    folder, observer = NodeFolder(tmp_path), Recorder()
    site = client(image_set(6))
    made = site.train(folder, CPU, Recorder())
    for path in (tmp_path / "checkpoints").iterdir():
        path.write_bytes(b"") if damaged else path.unlink()
    with pytest.raises(
        OutputExistsError, match=r"weights.safetensors is trained, .*checkpoints.*or remove the weights"
    ):
        site.train(folder, CPU, observer, resume=True)
    assert weights.load(folder.weights).id == made.id and not observer.starts
    folder.weights.unlink()
    assert site.train(folder, CPU, Recorder(), resume=True).id == made.id


def test_metrics_of_a_resumed_training_repeat_no_step(tmp_path):
    folder = NodeFolder(tmp_path)
    site = client(image_set(6))
    site.train(folder, CPU, Recorder())
    (tmp_path / "checkpoints" / "step-00000003.safetensors").unlink()  # as if stopped after step 2 was saved
    site.train(folder, CPU, Recorder(), resume=True)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]
