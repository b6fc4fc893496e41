"""collafuse.evaluation.features: which extractor is chosen, what is kept, and what is refused."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from safetensors import numpy

from collafuse.core.errors import DataError, FileFormatError, RuntimeMissingError, UsageError
from collafuse.evaluation import classifier as classifiers
from collafuse.evaluation import features
from collafuse.evaluation.classifier import train_classifier
from collafuse.evaluation.features import choose, classifier_of
from tests.tiny import CPU, image_set

IMAGES = image_set(24, ("a", "b"), side=8)


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch):
    monkeypatch.setattr(features, "STEPS", 3)


@pytest.fixture
def nothing_at_home(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path))


def test_a_classifier_is_trained_once_for_the_same_images(tmp_path):
    steps = []
    made = classifier_of(IMAGES, tmp_path, steps.append)
    assert sum(steps) == 3
    again = classifier_of(IMAGES, tmp_path, steps.append)
    assert (made.features(IMAGES.pixels) == again.features(IMAGES.pixels)).all()
    assert made.one_label == again.one_label
    assert len(list(tmp_path.iterdir())) == 1
    classifier_of(image_set(24, ("a", "b"), side=8, seed=1), tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_classifier_of_other_images_under_this_name_is_refused(tmp_path):
    classifier_of(IMAGES, tmp_path)
    (mine,) = tmp_path.iterdir()
    classifier_of(image_set(24, ("a", "b"), side=8, seed=1), tmp_path)
    (other,) = set(tmp_path.iterdir()) - {mine}
    mine.write_bytes(other.read_bytes())
    with pytest.raises(FileFormatError, match="belongs to other images"):
        classifier_of(IMAGES, tmp_path)


def test_images_without_labels_have_no_classifier(tmp_path):
    assert classifier_of(image_set(8, ()), tmp_path) is None
    with pytest.raises(DataError, match="no label tells the images apart"):
        choose("classifier", None, IMAGES, None, CPU)


def test_a_label_that_every_image_has_teaches_a_classifier_nothing(tmp_path):
    assert classifier_of(image_set(8, ("a",)), tmp_path) is None
    assert not list(tmp_path.iterdir())


def test_large_images_are_read_a_few_at_a_time(monkeypatch):
    made, read = train_classifier(IMAGES, steps=3), []
    whole = made.features(IMAGES.pixels)
    monkeypatch.setattr(classifiers, "BATCH_PIXELS", 5 * 8 * 8)
    forward = made.network.features.forward
    monkeypatch.setattr(made.network.features, "forward", lambda x: read.append(len(x)) or forward(x))
    assert made.features(IMAGES.pixels) == pytest.approx(whole, abs=1e-5)
    assert read == [5, 5, 5, 5, 4]


def test_the_classifiers_features_have_a_mean_square_of_one():
    extractor = choose("auto", None, IMAGES, train_classifier(IMAGES, steps=3), CPU)
    assert np.square(extractor.features(IMAGES.pixels)).mean() == pytest.approx(1)
    assert "classifier trained on the data" in extractor.name


def test_several_labels_of_one_image_are_learned_each():
    images = image_set(40, ("dark", "left"), side=4)
    images.pixels[:] = 128
    images.labels[:] = np.arange(40)[:, None] >> np.arange(2) & 1
    images.pixels[images.labels[:, 0] == 1, :, :2] = 0
    images.pixels[images.labels[:, 1] == 1, :, 2:] = 255
    classifier = train_classifier(images, steps=150, batch_size=20)
    assert not classifier.one_label
    assert classifier.accuracy(images) == 1
    none = images.labels.sum(axis=1) == 0
    assert not classifier.shows(images.pixels[none], np.ones((none.sum(), 2), dtype=np.uint8)).any()


def test_of_an_image_without_labels_nothing_is_read_rightly():
    images = image_set(20, ("a", "b"))
    images.labels[::2] = 0
    classifier = train_classifier(images, steps=3)
    for right in (0, 1):
        classifier.network.head.weight.data[:] = 0
        classifier.network.head.bias.data[:] = 2 * right - 1
        assert classifier.accuracy(images) == right


@pytest.mark.parametrize(
    ("wanted", "path", "message"), [("resnet", None, "not known"), ("auto", "x", "weights go with")]
)
def test_what_cannot_be_asked_for_is_refused(wanted, path, message):
    with pytest.raises(UsageError, match=message):
        choose(wanted, path, IMAGES, None, CPU)


@pytest.mark.usefixtures("nothing_at_home")
@pytest.mark.parametrize("wanted", ["inception", "clip"])
def test_what_is_not_on_the_machine_is_never_fetched(wanted):
    with pytest.raises(RuntimeMissingError, match=r"nothing is downloaded|pip install"):
        choose(wanted, None, IMAGES, None, CPU)


def test_inception_weights_other_than_the_standard_ones_are_refused_unread(tmp_path):
    pytest.importorskip("torch_fidelity", reason="torch-fidelity is not installed")
    (tmp_path / "weights.pth").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(FileFormatError, match="SHA-256"):
        choose("inception", tmp_path / "weights.pth", IMAGES, None, CPU)


def test_inception_looks_at_grey_images_as_at_colour(monkeypatch, tmp_path):
    fidelity = pytest.importorskip(
        "torch_fidelity.feature_extractor_inceptionv3", reason="torch-fidelity is not installed"
    )
    monkeypatch.setattr(fidelity.torch, "load", lambda *arguments, **options: None)  # the weights are random here
    monkeypatch.setattr(fidelity.FeatureExtractorInceptionV3, "load_state_dict", lambda *arguments: None)
    path = tmp_path / "weights.pth"
    path.write_bytes(b"not read")
    monkeypatch.setattr(features, "INCEPTION_SHA256", features.tensorfile.file_digest(path))
    extractor = choose("inception", path, IMAGES, None, CPU)
    found = extractor.features(IMAGES.pixels[:2])
    assert found.shape == (2, 2048)
    assert np.isfinite(found).all()
    assert (found == extractor.features(IMAGES.pixels[:2].repeat(3, axis=1))).all()


def clip_folder(path):
    """A tiny CLIP as its tools leave it, and its configuration."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
    )
    transformers.CLIPVisionModelWithProjection(config).save_pretrained(path)
    return config


def test_clip_comes_from_a_folder(tmp_path):
    config = clip_folder(tmp_path / "clip")
    extractor = choose("clip", tmp_path / "clip", IMAGES, None, CPU)
    assert extractor.features(IMAGES.pixels).shape == (24, config.projection_dim)
    assert "clip" in extractor.name


def test_two_clips_in_folders_of_one_name_have_two_names(tmp_path):
    """Figures by one would be taken for the other's, and plan would keep its cuts."""
    for place in ("a", "b"):
        clip_folder(tmp_path / place / "clip")
    shutil.copytree(tmp_path / "a", tmp_path / "c")
    names = [choose("clip", tmp_path / place / "clip", IMAGES, None, CPU).name for place in ("a", "b", "c")]
    assert names[0] == names[2] != names[1]


def test_clip_weights_that_are_damaged_are_refused(tmp_path):
    clip_folder(tmp_path)
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    for damaged in (whole[:-100], b"no tensors at all"):
        path.write_bytes(damaged)
        with pytest.raises(FileFormatError, match=r"damaged or no CLIP's.*--weights"):
            choose("clip", tmp_path, IMAGES, None, CPU)


@pytest.mark.parametrize("wrong", ["missing", "shape", "nan"])
def test_clip_weights_of_another_network_are_not_made_up(tmp_path, wrong):
    """transformers draws what a file lacks at random: figures by such a network would say nothing."""
    clip_folder(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = numpy.load_file(path)
    last = tensors.pop("visual_projection.weight")
    if wrong != "missing":
        tensors["visual_projection.weight"] = last[:, 1:].copy() if wrong == "shape" else np.full_like(last, np.nan)
    numpy.save_file(tensors, path, {"format": "pt"})
    with pytest.raises(FileFormatError, match=r"damaged or no CLIP's.*--weights"):
        choose("clip", tmp_path, IMAGES, None, CPU)
