"""Weights on disk: averaged weights and their configuration, nothing else."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from collafuse.config import NetworkSettings
from collafuse.core import tensorfile
from collafuse.core.errors import FileFormatError, MismatchError
from collafuse.learning import weights
from collafuse.learning.weights import TrainedModel, warm_start
from tests.damage import bit_flips, safetensors_parts, truncations
from tests.tiny import NETWORK, denoiser


def trained(label_names: tuple[str, ...] = ("a", "b"), seed: int = 0) -> TrainedModel:
    return TrainedModel(denoiser(label_names=label_names, seed=seed), "server", 0.5, 80.0, 9)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    weights.save(path, trained())
    return path


def same_values(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    states = one.state_dict(), other.state_dict()
    return states[0].keys() == states[1].keys() and all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def test_weights_come_back_as_they_were(path):
    found, expected = weights.load(path, "server"), trained()
    assert same_values(found.denoiser, expected.denoiser)
    for name in ("role", "label_names", "sigma_low", "sigma_high", "steps"):
        assert getattr(found, name) == getattr(expected, name)
    assert found.denoiser.network_settings == NETWORK and found.denoiser.sigma_data == 0.5
    assert not found.denoiser.training and not any(p.requires_grad for p in found.denoiser.parameters())


def test_magnitude_preserving_weights_come_back_as_they_were(tmp_path):
    model = dataclasses.replace(trained(), denoiser=denoiser(NETWORK.model_copy(update={"norm": "magnitude"})))
    weights.save(tmp_path / "weights", model)
    assert same_values(weights.load(tmp_path / "weights").denoiser, model.denoiser)


def test_the_id_belongs_to_the_values(tmp_path, path):
    same = weights.save(tmp_path / "same", trained())
    other = weights.save(tmp_path / "other", trained(seed=1))
    assert same == weights.load(path).id != other


def test_the_file_holds_nothing_but_weights_and_what_they_mean(path):
    header, _ = safetensors_parts(path.read_bytes())
    assert set(header) - {"__metadata__"} == set(trained().denoiser.state_dict())
    fields = tensorfile.read(path, weights.KIND, weights.VERSION).fields
    for name in "role network image_shape label_names sigma_data sigma_low sigma_high steps".split():
        fields.take(name)
    fields.done()


def test_weights_of_the_other_side_are_refused(path):
    with pytest.raises(MismatchError, match="weights of a server, expected those of a client"):
        weights.load(path, "client")


def test_damaged_weights_are_refused(path, tmp_path):
    data, spoiled = path.read_bytes(), tmp_path / "spoiled"
    for damaged in [*truncations(data, 12), *bit_flips(data, 24), b"", b"not weights", data + b"\0"]:
        spoiled.write_bytes(damaged)
        with pytest.raises(FileFormatError, match="spoiled"):
            weights.load(spoiled)


def changed(path, tmp_path, fields=None, tensors=None):
    """The file with other fields and tensors and a correct digest, as a hostile maker would write it."""
    file = tensorfile.read(path, weights.KIND, weights.VERSION)
    to = tmp_path / "changed.safetensors"
    tensorfile.write(
        to,
        weights.KIND,
        weights.VERSION,
        {**file.fields._values, **(fields or {})},
        {**file.tensors, **(tensors or {})},
    )
    return to


@pytest.mark.parametrize(
    "fields",
    [
        {"role": "spy"},
        {"network": {"channels": 9}},
        {"network": {"channels": 16}},  # valid, but not what the tensors are
        {"network": [1]},
        {"image_shape": [1, 4]},
        {"image_shape": [1, 10**9, 10**9]},
        {"image_shape": [3, 4, 4]},
        {"label_names": ["a", "a"]},
        {"label_names": ["a"]},
        {"sigma_data": 0},
        {"sigma_data": "0.5"},
        {"sigma_high": 81},
        {"steps": -1},
        {"release_ids": [1]},
    ],
)
def test_weights_that_do_not_mean_what_they_say_are_refused(path, tmp_path, fields):
    with pytest.raises(FileFormatError, match=r"changed\.safetensors"):
        weights.load(changed(path, tmp_path, fields))


@pytest.mark.parametrize(
    "tensors", [{"network.last.bias": [float("nan")]}, {"network.last.bias": [0.0, 0.0]}, {"more": [0.0]}]
)
def test_weights_with_foreign_or_infinite_values_are_refused(path, tmp_path, tensors):
    arrays = {name: torch.tensor(values).numpy() for name, values in tensors.items()}
    with pytest.raises(FileFormatError, match=r"changed\.safetensors"):
        weights.load(changed(path, tmp_path, tensors=arrays))


@pytest.mark.parametrize(
    "size", [{"channels": 2**20}, {"channels": 2**40}, {"blocks": 10**9}, {"multipliers": [1, 2**20]}]
)
def test_weights_that_claim_a_vast_network_are_refused_before_it_is_built(path, tmp_path, size):
    with pytest.raises(FileFormatError, match=r"changed\.safetensors"):
        weights.load(changed(path, tmp_path, {"network": NETWORK.model_dump(mode="json") | size}))


def test_a_side_that_the_network_cannot_halve_is_refused(path, tmp_path):
    with pytest.raises(FileFormatError, match=r"changed\.safetensors"):
        weights.load(
            changed(path, tmp_path, {"image_shape": [1, 9, 9], "network": {"channels": 8, "multipliers": [1, 2]}})
        )


def answer(model: torch.nn.Module, row: list[float]) -> torch.Tensor:
    x = torch.linspace(-1, 1, 16).reshape(1, 1, 4, 4)
    return model.eval()(x, 0.7, torch.tensor([row]))


@pytest.mark.parametrize("norm", ["group", "magnitude"])
def test_a_warm_start_gives_each_label_its_own_column_by_name(norm):
    network = NETWORK.model_copy(update={"norm": norm})
    teacher = dataclasses.replace(trained(("a", "b", "c")), denoiser=denoiser(network, label_names=("a", "b", "c")))
    pupil = denoiser(network, label_names=("c", "new", "a"), seed=5)
    warm_start(pupil, teacher)
    expected = {
        (1.0, 0.0, 0.0, 0.0): [0.0, 0.0, 1.0, 0.0],  # c
        (0.0, 1.0, 0.0, 0.0): [0.0, 0.0, 0.0, 1.0],  # a label that the teacher does not know: "no label"
        (0.0, 0.0, 1.0, 0.0): [1.0, 0.0, 0.0, 0.0],  # a
        (0.0, 0.0, 0.0, 1.0): [0.0, 0.0, 0.0, 1.0],  # no label
    }
    for ours, theirs in expected.items():
        assert torch.equal(answer(pupil, list(ours)), answer(teacher.denoiser, theirs))


def test_a_warm_start_takes_the_teachers_scale_along_and_leaves_the_teacher_alone():
    teacher, pupil = trained(), denoiser(seed=5)
    teacher.denoiser.sigma_data = 0.3
    warm_start(pupil, teacher)
    assert pupil.sigma_data == 0.3 and same_values(pupil, teacher.denoiser)
    torch.nn.init.ones_(pupil.network.last.bias)
    assert not same_values(pupil, teacher.denoiser)


@pytest.mark.parametrize(
    ("pupil", "what"),
    [
        (
            {"network": NetworkSettings(channels=16, multipliers=(1,), blocks=1)},
            "same network.*channels=16.*channels=8",
        ),
        ({"image_shape": (1, 8, 8)}, r"same image shape.*\(1, 8, 8\).*\(1, 4, 4\)"),
    ],
)
def test_a_warm_start_between_different_sizes_is_refused_with_both(pupil, what):
    with pytest.raises(MismatchError, match=what):
        warm_start(denoiser(**pupil), trained())
