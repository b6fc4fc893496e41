"""edge_client.finisher and session: from where the client takes over to an image, on onnxruntime."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from collafuse.core import bundle as bundles
from collafuse.core import intermediate as intermediates
from collafuse.core.conditioning import guided
from collafuse.core.errors import FileFormatError, MismatchError, UsageError
from collafuse.core.intermediate import Intermediate
from collafuse.core.noise import client_sigmas
from collafuse.core.pairing import conditions_for
from collafuse.core.pictures import to_uint8
from collafuse.core.samplers import STEPS, run
from collafuse.nodes.client import finish as finish_with_torch
from edge_client import Finisher
from edge_client.denoiser import known_answer_error
from edge_client.session import open_session
from tests.bundles import SHAPE, halving_bundle, halving_info, halving_model, resealed, sealed_bytes
from tests.damage import bit_flips


@pytest.fixture(scope="module")
def finisher(tiny_bundle) -> Finisher:
    return Finisher.load(tiny_bundle)


@pytest.fixture
def halving(tmp_path):
    """The path of the bundle whose network halves its input."""
    (tmp_path / "halving.onnx").write_bytes(halving_bundle())
    return tmp_path / "halving.onnx"


def halving_batch(**changes) -> Intermediate:
    x = np.random.default_rng(0).standard_normal((3, *SHAPE)).astype(np.float32)
    one = Intermediate(x, 0.5, None, (), "m", "euler", 1, 1.0)
    return dataclasses.replace(one, **changes)


def grey_levels_apart(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())


# --- onnxruntime and torch ----------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", sorted(STEPS))
@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_onnxruntime_and_torch_finish_alike(tiny_bundle, tiny_model, tiny_config, tiny_intermediate, sampler, guidance):
    client = tiny_config.client("north")
    settings = client.sampler.model_copy(update={"name": sampler, "guidance": guidance})
    conditions = conditions_for(tiny_intermediate, tiny_model.space)
    there = finish_with_torch(
        tiny_model.denoiser,
        torch.from_numpy(tiny_intermediate.x),
        tiny_intermediate.sigma,
        conditions,
        client.model_copy(update={"sampler": settings}),
        torch.device("cpu"),
    )
    here = Finisher.load(tiny_bundle, sampler=sampler, guidance=guidance).finish(tiny_intermediate)
    assert grey_levels_apart(here, to_uint8(there.numpy())) <= 1


def test_a_level_below_the_bundles_own_is_finished_from_there(finisher, tiny_model, tiny_intermediate):
    lower = dataclasses.replace(tiny_intermediate, sigma=0.3)
    conditions = torch.from_numpy(conditions_for(lower, tiny_model.space))
    with torch.inference_mode():
        denoise = guided(tiny_model.denoiser, conditions, 1.0)
        sigmas = client_sigmas(0.3, finisher.settings.steps, 0.05)
        there, _ = run(STEPS[finisher.settings.sampler], denoise, torch.from_numpy(lower.x), sigmas)
    assert grey_levels_apart(finisher.finish(lower), to_uint8(there.numpy())) <= 1


# --- what does not change an image --------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_the_batch_size_does_not_change_an_image(finisher, tiny_intermediate, batch_size):
    images = finisher.finish(tiny_intermediate, batch_size)
    assert images.shape == (5, 8, 8, 1)
    assert grey_levels_apart(images, finisher.finish(tiny_intermediate, 5)) <= 1


def test_batches_come_in_order_and_one_at_a_time(finisher, tiny_intermediate):
    batches = list(finisher.batches(tiny_intermediate, 2))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    assert grey_levels_apart(np.concatenate(batches), finisher.finish(tiny_intermediate)) <= 1


def test_no_images_are_finished_into_none(finisher, tiny_intermediate):
    assert finisher.finish(tiny_intermediate.block(slice(0, 0))).shape == (0, 8, 8, 1)


def test_the_number_of_threads_does_not_change_an_image(tiny_bundle, finisher, tiny_intermediate):
    alone = Finisher.load(tiny_bundle, threads=1).finish(tiny_intermediate)
    assert grey_levels_apart(alone, finisher.finish(tiny_intermediate)) <= 1


def test_half_precision_on_the_way_does_not_show(finisher, tiny_intermediate):
    """x is below 4 in size, where float16 is exact to 2^-10, or 0.12 of a grey level."""
    half = dataclasses.replace(tiny_intermediate, x=tiny_intermediate.x.astype(np.float16))
    assert grey_levels_apart(finisher.finish(half), finisher.finish(tiny_intermediate)) <= 1


def test_labels_reach_the_network_by_name(finisher, tiny_intermediate):
    order = [3, 0, 1, 2]
    shuffled = dataclasses.replace(
        tiny_intermediate,
        labels=tiny_intermediate.labels[:, order],
        label_names=tuple(tiny_intermediate.label_names[i] for i in order),
    )
    assert (finisher.finish(shuffled) == finisher.finish(tiny_intermediate)).all()


# --- what does ----------------------------------------------------------------------------------------------


def test_settings_come_from_the_bundle(finisher):
    info = finisher.bundle.info
    own = {"steps": info.steps, "sampler": info.sampler, "guidance": info.guidance, "labels": None, "prompts": None}
    assert vars(finisher.settings) == own
    assert finisher.settings.describe() == {"steps": "4", "sampler": "dpmpp_2m", "guidance": "1.0"}


@pytest.mark.parametrize("override", [{"steps": 2}, {"sampler": "euler"}, {"sampler": "heun"}, {"guidance": 3.0}])
def test_settings_can_be_overridden(tiny_bundle, finisher, tiny_intermediate, override):
    other = Finisher.load(tiny_bundle, **override)
    assert vars(other.settings) == {**vars(finisher.settings), **override}
    assert grey_levels_apart(other.finish(tiny_intermediate), finisher.finish(tiny_intermediate)) > 1


def test_labels_change_an_image(finisher, tiny_intermediate):
    unlabelled = dataclasses.replace(tiny_intermediate, labels=None, label_names=())
    assert grey_levels_apart(finisher.finish(unlabelled), finisher.finish(tiny_intermediate)) > 1


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_labels_chosen_here_do_what_labels_that_came_with_the_images_do(tiny_bundle, tiny_intermediate, guidance):
    finisher = Finisher.load(tiny_bundle, guidance=guidance)
    both = np.tile(np.uint8([1, 1, 0, 0]), (5, 1))  # the intermediate's own order: 1, 2, 3, 0
    asked = finisher.finish(dataclasses.replace(tiny_intermediate, labels=both))
    kept = dataclasses.replace(tiny_intermediate, labels=None, label_names=())
    assert (finisher.showing(["2", "1", "2"]).finish(kept) == asked).all()
    assert grey_levels_apart(finisher.finish(kept), asked) > 1  # and showing changed nothing there


def test_a_label_is_not_put_on_what_was_made_for_labels_or_for_none_of_them(finisher, tiny_intermediate):
    none = dataclasses.replace(tiny_intermediate, labels=np.zeros_like(tiny_intermediate.labels))
    with pytest.raises(MismatchError, match=r"were made for 1, 2, 0 and are finished as that; leave 2 out"):
        finisher.showing(["2"]).finish(tiny_intermediate)
    with pytest.raises(MismatchError, match="were made for none of the labels"):
        finisher.showing(["2"]).finish(none)
    with pytest.raises(MismatchError, match="label '20' is not known.*Did you mean '2'"):
        finisher.showing(["20"])


@pytest.mark.parametrize(
    ("override", "nfe"),
    [({}, 4), ({"sampler": "heun"}, 7), ({"steps": 1}, 1), ({"guidance": 2.0}, 8), ({"guidance": 0.0}, 8)],
)
def test_network_evaluations_are_counted(tiny_bundle, tiny_intermediate, override, nfe):
    finisher = Finisher.load(tiny_bundle, **override)
    finisher.finish(tiny_intermediate, 2)
    assert finisher.nfe == nfe


def test_one_step_gives_the_networks_estimate(halving):
    batch = halving_batch()
    assert (Finisher.load(halving, steps=1).finish(batch) == to_uint8(0.5 * batch.x)).all()


# --- a warm start -------------------------------------------------------------------------------------------


@pytest.fixture
def warm(tiny_intermediate) -> Intermediate:
    previous = 0.7 * np.sin(np.arange(tiny_intermediate.x.size)).reshape(tiny_intermediate.x.shape)
    return dataclasses.replace(tiny_intermediate, previous_x0_hat=previous.astype(np.float32), previous_sigma=1.8)


def test_dpmpp_2m_starts_with_the_servers_history(finisher, tiny_model, warm):
    conditions = torch.from_numpy(conditions_for(warm, tiny_model.space))
    with torch.inference_mode():
        history = type(warm.history(slice(0, 5)))(torch.from_numpy(warm.previous_x0_hat), warm.previous_sigma)
        denoise, sigmas = guided(tiny_model.denoiser, conditions, 1.0), client_sigmas(warm.sigma, 4, 0.05)
        there, _ = run(STEPS["dpmpp_2m"], denoise, torch.from_numpy(warm.x), sigmas, history)
    for batch_size in (2, 16):
        assert grey_levels_apart(finisher.finish(warm, batch_size), to_uint8(there.numpy())) <= 1


def test_a_warm_start_is_not_a_cold_one(finisher, tiny_intermediate, warm):
    assert grey_levels_apart(finisher.finish(warm), finisher.finish(tiny_intermediate)) > 1


@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_one_step_methods_need_no_history(tiny_bundle, tiny_intermediate, warm, sampler):
    finisher = Finisher.load(tiny_bundle, sampler=sampler)
    assert (finisher.finish(warm) == finisher.finish(tiny_intermediate)).all()


def test_a_history_of_half_precision_will_do(finisher, warm):
    half = dataclasses.replace(
        warm, x=warm.x.astype(np.float16), previous_x0_hat=warm.previous_x0_hat.astype(np.float16)
    )
    assert grey_levels_apart(finisher.finish(half), finisher.finish(warm)) <= 1


# --- what is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"sampler": "rk45"}, "sampler 'rk45' is not known; use one of euler, heun, dpmpp_2m"),
        ({"steps": 0}, "steps=0; expected a whole number from 1 to 1000"),
        ({"steps": 1001}, "steps=1001; expected"),
        ({"guidance": -1.0}, "guidance=-1.0; expected a number from 0"),
        ({"guidance": float("nan")}, "guidance=nan; expected"),
        ({"guidance": float("inf")}, "guidance=inf; expected"),
    ],
)
def test_impossible_settings_are_refused(halving, override, message):
    with pytest.raises(UsageError, match=message):
        Finisher.load(halving, **override)


def test_an_unknown_provider_is_refused(halving):
    with pytest.raises(UsageError, match="provider 'abacus' is not known; use auto, cpu"):
        Finisher.load(halving, provider="abacus")


@pytest.mark.parametrize("batch_size", [0, -1])
def test_an_impossible_batch_size_is_refused(halving, batch_size):
    with pytest.raises(UsageError, match=f"batch size {batch_size}; expected at least 1"):
        Finisher.load(halving).finish(halving_batch(), batch_size)


def test_an_intermediate_of_another_client_is_refused(halving, finisher, tiny_intermediate):
    with pytest.raises(MismatchError, match="shape"):
        Finisher.load(halving).finish(tiny_intermediate)
    with pytest.raises(MismatchError, match="stands at sigma 2, the bundle was trained for"):
        finisher.finish(dataclasses.replace(tiny_intermediate, sigma=2.0))
    with pytest.raises(MismatchError, match="label '7' is not known"):
        finisher.finish(dataclasses.replace(tiny_intermediate, label_names=("7", "1", "2", "0")))


@pytest.mark.parametrize("size", [3e38, -3e38])
def test_an_intermediate_that_overflows_gives_no_picture(finisher, tiny_intermediate, size):
    huge = dataclasses.replace(tiny_intermediate, x=np.full_like(tiny_intermediate.x, size))
    with pytest.raises(MismatchError, match=r"do not come out finite: the intermediate holds values up to 3e\+38"):
        finisher.finish(huge)


# --- bundles that pass every check but the last -------------------------------------------------------------


def load(data: bytes, tmp_path) -> Finisher:
    (tmp_path / "evil.onnx").write_bytes(data)
    bundles.read(tmp_path / "evil.onnx")  # nothing to object to, up to here
    return Finisher.load(tmp_path / "evil.onnx")


def test_the_known_answer_of_an_honest_bundle_is_met(tiny_bundle):
    bundle = bundles.read(tiny_bundle)
    assert known_answer_error(open_session(bundle), bundle) < 1e-4


def test_changed_weights_are_caught_by_the_known_answer(tiny_bundle, tmp_path):
    def change(model: onnx.ModelProto) -> None:
        # Not merely scaled: a normalisation may follow, and the graph would compute the same.
        largest = max(model.graph.initializer, key=lambda t: len(t.raw_data))
        weights = np.roll(numpy_helper.to_array(largest), 1)
        largest.CopyFrom(numpy_helper.from_array(weights, largest.name))

    with pytest.raises(FileFormatError, match=r"known-answer test is off by \S+ \(allowed 0.001\)"):
        load(resealed(tiny_bundle.read_bytes(), change), tmp_path)


def test_weights_that_are_not_finite_are_caught_by_the_known_answer(tmp_path):
    def change(model: onnx.ModelProto) -> None:
        model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.full(SHAPE, np.nan, np.float32), "half"))

    with pytest.raises(FileFormatError, match="known-answer test is off by inf"):
        load(halving_bundle(change), tmp_path)


@pytest.mark.parametrize("changed", ["one value", "one more value", "another level"])
def test_a_changed_known_answer_is_not_met(tmp_path, changed):
    answer = halving_info().known_answer
    values = {
        "one value": {"values": (answer.values[0] + 0.01, *answer.values[1:])},
        "one more value": {"values": (*answer.values, 0.0)},
        "another level": {"sigmas": (*answer.sigmas[:-1], 0.4)},
    }[changed]
    with pytest.raises(FileFormatError, match="known-answer test"):
        load(resealed(halving_bundle(), known_answer=vars(dataclasses.replace(answer, **values))), tmp_path)


def bad_reshape(model: onnx.ModelProto) -> None:
    """A graph that loads and fails when it is run."""
    model.graph.initializer.append(numpy_helper.from_array(np.array([7, 1, 2, 2]), "seven"))
    model.graph.node.insert(0, helper.make_node("Reshape", ["x", "seven"], ["sevens"]))
    model.graph.node[1].input[0] = "sevens"


def one_image_for_all(model: onnx.ModelProto) -> None:
    """A graph that answers with a single image, whatever the batch."""
    model.graph.node[0].output[0] = "all"
    names = ("from", "to", "axis")
    for name, value in zip(names, (0, 1, 0), strict=True):
        model.graph.initializer.append(numpy_helper.from_array(np.array([value]), name))
    model.graph.node.append(helper.make_node("Slice", ["all", *names], ["x0_hat"]))


def undefined_input(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[1] = "nowhere"


def wrong_type(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones(SHAPE, dtype=np.int64), "half"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (bad_reshape, r"onnxruntime \S+ cannot run the bundle on 3 images: .*; try a smaller batch"),
        (one_image_for_all, r"the bundle's graph made \[1, 1, 2, 2\] of images of shape \[3, 1, 2, 2\]"),
        (undefined_input, r"onnxruntime \S+ cannot load the bundle: .*; export it again"),
        (wrong_type, r"onnxruntime \S+ cannot load the bundle: "),
    ],
)
def test_a_graph_that_cannot_work_is_refused_in_one_sentence(tmp_path, capfd, change, message):
    with pytest.raises(FileFormatError, match=message) as caught:
        load(halving_bundle(change), tmp_path)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")  # stdout is data, and onnxruntime's own log says nothing new


LOAD_EACH = """
import sys
from pathlib import Path
from collafuse.core import bundle
from collafuse.core.errors import FileFormatError
from edge_client.session import open_session

for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        open_session(bundle.read(path), threads=1)
        print("accepted")
    except FileFormatError:
        print("refused")
"""


@pytest.mark.parametrize("which", ["real", "halving"])
def test_a_damaged_graph_with_a_right_digest_is_refused_or_meets_its_known_answer(tiny_bundle, tmp_path, which):
    """What the checks let pass, onnxruntime or the known answer refuses, without a word and without a crash."""
    model = onnx.load(tiny_bundle) if which == "real" else halving_model()
    text = next((p.value for p in model.metadata_props if p.key == bundles.METADATA_KEY), halving_info().to_json())
    del model.metadata_props[:]
    for index, graph in enumerate(bit_flips(model.SerializeToString(), 60)):
        (tmp_path / f"{index:02d}.onnx").write_bytes(sealed_bytes(graph, text))
    command = [sys.executable, "-c", LOAD_EACH, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    outcomes = done.stdout.split()
    assert len(outcomes) == 60
    assert set(outcomes) == {"accepted", "refused"}


# --- on a device --------------------------------------------------------------------------------------------

FINISH_WITH_BARE_PYTHON = """
import json, sys
from collafuse.core import intermediate
from edge_client import Finisher

finisher = Finisher.load(sys.argv[1], threads=1)
images = finisher.finish(intermediate.read(sys.argv[2]))
print(json.dumps({"images": images.tolist(), "loaded": sorted(m.partition(".")[0] for m in sys.modules)}))
"""


def test_another_process_finishes_the_files_alike(tiny_bundle, tiny_intermediate, finisher, tmp_path):
    path = tmp_path / "intermediates.safetensors"
    path.write_bytes(intermediates.to_bytes(tiny_intermediate))
    command = [sys.executable, "-c", FINISH_WITH_BARE_PYTHON, str(tiny_bundle), str(path)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    values = json.loads(done.stdout)
    assert "torch" not in values["loaded"]
    assert grey_levels_apart(np.array(values["images"]), finisher.finish(tiny_intermediate)) <= 1
