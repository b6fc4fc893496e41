"""edge_client.job: an intermediates file in, a folder of pictures out."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import collafuse
from collafuse.core.errors import FileFormatError, MismatchError, OutputExistsError
from collafuse.core.intermediate import Intermediate
from edge_client import Finisher
from edge_client.job import finish_to_folder
from tests.bundles import halving_bundle, halving_info, halving_model, resealed, sealed, tensor_input


@pytest.fixture
def finisher(tmp_path) -> Finisher:
    (tmp_path / "halving.onnx").write_bytes(halving_bundle())
    return Finisher.load(tmp_path / "halving.onnx", threads=1)


def batch(count: int = 3, channels: int = 1, **changes) -> Intermediate:
    x = np.random.default_rng(0).standard_normal((count, channels, 2, 2)).astype(np.float32)
    labels = np.eye(2, dtype=np.uint8)[np.arange(count) % 2]
    return dataclasses.replace(Intermediate(x, 0.5, labels, ("dog", "cat"), "server7", "euler", 16, 1.5), **changes)


def opened(path: Path) -> Image.Image:
    return Image.open(io.BytesIO(path.read_bytes()))


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_one_picture_per_image_and_a_sheet(finisher, tmp_path):
    folder, heard = tmp_path / "new" / "pictures", []
    report = finish_to_folder(finisher, batch(), folder, batch_size=2, advance=heard.append)
    assert names(folder) == ["000000.png", "000001.png", "000002.png", "job.json", "sheet.png"]
    assert heard == [2, 1]
    assert (report.images, report.nfe, report.sheet) == (3, 3, str(folder / "sheet.png"))
    assert report.milliseconds_per_image == pytest.approx(1000 * report.seconds / 3)
    for index, image in enumerate(finisher.finish(batch())):
        assert (np.asarray(opened(folder / f"{index:06d}.png")) == image[:, :, 0]).all()


def test_every_picture_carries_its_settings(finisher, tmp_path):
    finish_to_folder(finisher, batch(), tmp_path / "out")
    assert opened(tmp_path / "out" / "000001.png").text == {
        "Software": f"collafuse {collafuse.__version__}",
        "collafuse:client": "north",
        "collafuse:bundle": finisher.bundle.digest,
        "collafuse:intermediates": batch().digest,
        "collafuse:server_model": "server7",
        "collafuse:sigma": "0.5",
        "collafuse:server": "euler, NFE 16, guidance 1.5",
        "collafuse:steps": "3",
        "collafuse:sampler": "euler",
        "collafuse:guidance": "1.0",
        "collafuse:index": "1",
        "collafuse:labels": "cat",
    }
    assert "collafuse:index" not in opened(tmp_path / "out" / "sheet.png").text


def test_pictures_of_a_server_that_guides_by_itself_say_so(finisher, tmp_path):
    finish_to_folder(finisher, batch(autoguidance=2.0), tmp_path / "out")
    said = opened(tmp_path / "out" / "000001.png").text["collafuse:server"]
    assert said == "euler, NFE 16, guidance 1.5, autoguidance 2"


def test_pictures_without_labels_say_nothing_of_labels(finisher, tmp_path):
    finish_to_folder(finisher, batch(labels=None, label_names=()), tmp_path / "out")
    assert "collafuse:labels" not in opened(tmp_path / "out" / "000000.png").text


def test_pictures_of_labels_chosen_here_say_so_and_other_labels_are_another_job(finisher, tmp_path):
    unlabelled = batch(labels=None, label_names=())
    finish_to_folder(finisher.showing(["dog", "cat"]), unlabelled, tmp_path / "out")
    assert opened(tmp_path / "out" / "000000.png").text["collafuse:labels"] == "dog, cat"
    for other in (finisher, finisher.showing(["dog"])):
        with pytest.raises(OutputExistsError, match=r"pictures of another job .*labels dog, cat"):
            finish_to_folder(other, unlabelled, tmp_path / "out")


@pytest.mark.parametrize("existing", ["000002.png", "sheet.png"])
def test_an_existing_picture_is_refused_before_any_work(finisher, tmp_path, existing):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / existing).write_bytes(b"old")
    with pytest.raises(OutputExistsError, match=f"{existing} exists already"):
        finish_to_folder(finisher, batch(), folder)
    assert names(folder) == [existing]
    finish_to_folder(finisher, batch(), folder, overwrite=True)
    assert (folder / existing).read_bytes() != b"old"


def test_an_intermediate_that_does_not_fit_leaves_no_folder(finisher, tmp_path):
    with pytest.raises(MismatchError):
        finish_to_folder(finisher, batch(sigma=2.0), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_more_images_than_a_sheet_shows(finisher, tmp_path):
    report = finish_to_folder(finisher, batch(103), tmp_path / "out", batch_size=64)
    assert (report.images, len(names(tmp_path / "out"))) == (103, 105)


def bundle_with_channels(channels: int) -> bytes:
    """The halving bundle for images of so many channels."""
    model, shape = halving_model(), (channels, 2, 2)
    for value in (model.graph.input[0], model.graph.output[0]):
        value.CopyFrom(tensor_input(value.name, *shape))
    del model.graph.initializer[0].dims[:]
    model.graph.initializer[0].raw_data = np.float32(0.5).tobytes()
    return sealed(model, halving_info(shape))


@pytest.mark.parametrize("channels", [2, 4])
def test_images_that_are_neither_grey_nor_rgb_are_refused_before_any_work(tmp_path, channels):
    (tmp_path / "a.onnx").write_bytes(bundle_with_channels(channels))
    finisher = Finisher.load(tmp_path / "a.onnx")
    assert finisher.finish(batch(channels=channels)).shape == (3, 2, 2, channels)
    with pytest.raises(MismatchError, match=rf"images with {channels} channels, a PNG file here has 1 \(grey\) or 3"):
        finish_to_folder(finisher, batch(channels=channels), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_colour_images(tmp_path):
    (tmp_path / "a.onnx").write_bytes(bundle_with_channels(3))
    finish_to_folder(Finisher.load(tmp_path / "a.onnx"), batch(channels=3), tmp_path / "out")
    assert opened(tmp_path / "out" / "000000.png").mode == "RGB"


def test_a_bundle_from_elsewhere_cannot_write_controls_into_a_picture(tmp_path):
    """What ends up in the PNG text is checked when the bundle is read."""
    (tmp_path / "a.onnx").write_bytes(resealed(halving_bundle(), client="north\x1b[2J"))
    with pytest.raises(FileFormatError, match="a short printable text"):
        Finisher.load(tmp_path / "a.onnx")
