"""export.writer: what an exported bundle is, and that nothing is left behind when it is not what it should be."""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper

import export.writer
from collafuse.config import NetworkSettings
from collafuse.core import bundle as bundles
from collafuse.core import intermediate as intermediates
from collafuse.core.bundle import INPUTS, Loss
from collafuse.core.errors import ExportError, MismatchError, OutputExistsError, UsageError
from collafuse.core.knownanswer import known_answer_input
from collafuse.core.noise import SIGMA_MIN
from collafuse.learning.weights import TrainedModel
from export.graph import OPSETS, export_graph
from export.parity import HALF_TOLERANCE, TOLERANCE, torch_values
from export.whole import MAX_EVALUATIONS
from export.writer import LEAST_PSNR_DB, export_client
from tests.export.conftest import THREE, graph_of
from tests.tiny import denoiser


@pytest.fixture(scope="module")
def north(tiny_config):
    return tiny_config.client("north")


# --- a bundle -----------------------------------------------------------------------------------------------


def test_metadata_say_what_the_model_and_its_settings_are(tiny_bundle, tiny_model, north):
    info = bundles.read(tiny_bundle).info
    assert (info.client, info.image_shape, info.label_names) == ("north", (1, 8, 8), ("0", "1", "2"))
    assert (info.sigma_min, info.sigma_max) == (SIGMA_MIN, north.handover_sigma)
    assert (info.sampler, info.steps, info.sigma_low, info.guidance) == ("dpmpp_2m", 4, 0.05, 1.0)
    assert (info.precision, info.opset, info.provenance["weights"]) == ("fp32", 18, tiny_model.id)


def test_a_bundle_is_one_whole_file_of_opset_18(tiny_bundle):
    model = onnx.load(tiny_bundle, load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 18)]
    assert all(tensor.data_location == onnx.TensorProto.DEFAULT for tensor in model.graph.initializer)
    assert [path.name for path in tiny_bundle.parent.iterdir()] == [tiny_bundle.name]


def test_every_weight_of_the_network_is_inside(tiny_bundle, tiny_model):
    inside = [numpy_helper.to_array(tensor).ravel() for tensor in onnx.load(tiny_bundle).graph.initializer]
    for name, weights in tiny_model.denoiser.state_dict().items():
        assert any(np.array_equal(array, weights.numpy().ravel()) for array in inside), name


@pytest.mark.parametrize("batch", [1, 2, 5, 17])
@pytest.mark.parametrize("sigma", [SIGMA_MIN, 0.05, 1.0])
def test_the_graph_takes_any_batch_and_computes_what_torch_computes(tiny_bundle, tiny_model, batch, sigma):
    session = onnxruntime.InferenceSession(tiny_bundle, providers=["CPUExecutionProvider"])
    values = known_answer_input((1, 8, 8), THREE, (sigma,) * batch)
    (here,) = session.run(None, dict(zip(INPUTS, values, strict=True)))
    assert here.shape == (batch, 1, 8, 8)
    np.testing.assert_allclose(here, torch_values(tiny_model.denoiser, *values), rtol=0, atol=1e-4)


def test_images_of_one_batch_may_stand_at_different_levels(tiny_bundle, tiny_model):
    session = onnxruntime.InferenceSession(tiny_bundle, providers=["CPUExecutionProvider"])
    values = known_answer_input((1, 8, 8), THREE, (1.0, 0.002, 0.1))
    (here,) = session.run(None, dict(zip(INPUTS, values, strict=True)))
    np.testing.assert_allclose(here, torch_values(tiny_model.denoiser, *values), rtol=0, atol=1e-4)


def test_no_path_of_this_machine_is_inside(tiny_bundle):
    data = tiny_bundle.read_bytes()
    places = (Path(__file__).parents[2], Path.home(), Path(torch.__file__).parents[1], tiny_bundle.parent, Path.cwd())
    assert [str(place) for place in places if str(place).encode() in data] == []


def test_colour_attention_and_no_labels(north, tmp_path):
    settings = NetworkSettings(channels=8, multipliers=(1, 2), blocks=1, attention=(4,))
    model = TrainedModel(denoiser(settings, (3, 8, 8), ()).eval(), "client", SIGMA_MIN, 0.5, steps=7)
    made = export_client(model, north, "north", tmp_path / "a.onnx", steps=2)
    data = (tmp_path / "a.onnx").read_bytes()
    assert (made.size, made.info.steps, made.info.image_shape) == (len(data), 2, (3, 8, 8))
    assert made.digest == bundles.read(tmp_path / "a.onnx").digest
    assert made.digest == hashlib.sha256(data.replace(made.digest.encode(), bundles.NO_DIGEST.encode())).hexdigest()
    assert made.parity.step <= 1e-4 and made.parity.trajectory <= 1e-4 and made.parity.grey_levels <= 1


def test_a_client_of_one_step_that_takes_over_below_its_lowest_level_is_exported(
    tiny_bundle, tiny_model, north, tmp_path, monkeypatch
):
    """A configuration may say so, since one step evaluates where it begins; a bundle may not."""
    monkeypatch.setattr(export.writer, "export_graph", lambda *_: graph_of(tiny_bundle))
    once = north.sampler.model_copy(update={"steps": 1, "sigma_low": 2.0})
    made = export_client(tiny_model, north.model_copy(update={"sampler": once}), "north", tmp_path / "a.onnx")
    assert made.info.sigma_low == made.info.sigma_max == 1.0


def test_the_same_model_gives_the_same_graph(tiny_bundle, tiny_model):
    assert export_graph(tiny_model.denoiser) == graph_of(tiny_bundle)


# --- what is refused before any work ------------------------------------------------------------------------


@pytest.fixture
def no_export(monkeypatch):
    """From here on, exporting is work that must not begin."""
    monkeypatch.setattr(export.writer, "export_graph", lambda *_: pytest.fail("the export began"))


@pytest.mark.usefixtures("no_export")
def test_an_existing_output_is_refused_before_any_work(tiny_model, north, tmp_path):
    (tmp_path / "a.onnx").write_bytes(b"old")
    with pytest.raises(OutputExistsError, match=r"a\.onnx exists already"):
        export_client(tiny_model, north, "north", tmp_path / "a.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == b"old"


@pytest.mark.usefixtures("no_export")
@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_impossible_steps_are_refused(tiny_model, north, tmp_path, steps):
    with pytest.raises(UsageError, match=f"steps={steps}; expected a whole number from 1 to 1000"):
        export_client(tiny_model, north, "north", tmp_path / "a.onnx", steps=steps)


@pytest.mark.parametrize("opset", [17, 21])
def test_an_opset_that_no_bundle_has_is_refused(tiny_model, north, tmp_path, opset):
    with pytest.raises(UsageError, match=f"opset {opset}; expected one of 18, 19, 20"):
        export_client(tiny_model, north, "north", tmp_path / "a.onnx", opset=opset)
    assert not list(tmp_path.iterdir())


def test_the_newest_opset_makes_a_bundle_that_says_so(north, tmp_path):
    model = TrainedModel(denoiser().eval(), "client", SIGMA_MIN, 0.5, steps=0)
    export_client(model, north, "north", tmp_path / "a.onnx", opset=OPSETS[-1])
    bundle = bundles.read(tmp_path / "a.onnx")
    assert bundle.info.opset == bundle.summary.opset == OPSETS[-1]


@pytest.mark.usefixtures("no_export")
def test_an_unknown_precision_and_missing_intermediates_are_refused(tiny_model, north, tmp_path):
    with pytest.raises(UsageError, match="precision 'int4' is not known; use one of fp32, fp16, int8"):
        export_client(tiny_model, north, "north", tmp_path / "a.onnx", precision="int4")
    for precision in ("fp16", "int8"):
        with pytest.raises(UsageError, match=f"precision {precision} is measured .* no intermediates .*--calibration"):
            export_client(tiny_model, north, "north", tmp_path / "a.onnx", precision=precision)
    assert not list(tmp_path.iterdir())


# --- reduced precision --------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_reduced_bundle_is_whole_smaller_and_says_what_it_lost(reduced, tiny_bundle, precision):
    bundle = bundles.read(reduced[precision])
    onnx.checker.check_model(onnx.load(reduced[precision]), full_check=True)
    assert bundle.info.precision == precision
    assert len(bundle.data) < len(tiny_bundle.read_bytes())
    assert bundle.info.loss.images == 16 and bundle.info.loss.psnr_db >= LEAST_PSNR_DB
    assert [(opset.domain, opset.version) for opset in onnx.load(reduced[precision]).opset_import] == [("", 18)]


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_no_path_of_this_machine_gets_into_a_reduced_bundle(reduced, delivered, precision):
    data = reduced[precision].read_bytes()
    places = (tempfile.gettempdir(), Path(__file__).parents[2], Path.home(), Path.cwd(), delivered.name)
    assert [str(place) for place in places if str(place).encode() in data] == []
    assert b"quant_pre_process" not in data and b"onnxruntime.quant" not in data


def test_fp32_loses_nothing_and_needs_no_intermediates(tiny_bundle):
    assert bundles.read(tiny_bundle).info.loss is None


def test_half_is_compared_with_torch_by_a_tolerance_of_its_own(write_tiny, tmp_path):
    parity = write_tiny(tmp_path / "a.onnx", precision="fp16").parity
    assert TOLERANCE < parity.step < HALF_TOLERANCE and parity.grey_levels <= 1


def test_a_loss_above_the_tolerance_is_refused_unless_forced(write_tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(export.writer, "LEAST_PSNR_DB", 60.0)
    with pytest.raises(
        ExportError, match=r"in int8 the 16 finished images differ .* at least 60 dB .*--force"
    ) as caught:
        write_tiny(tmp_path / "new" / "a.onnx", precision="int8")
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())
    made = write_tiny(tmp_path / "a.onnx", precision="int8", force=True)
    assert bundles.read(tmp_path / "a.onnx").info.loss == made.info.loss and made.info.loss.psnr_db < 60


def test_one_bad_label_is_refused_whatever_the_others_do(write_tiny, tmp_path, monkeypatch):
    measured = Loss(256, 0.5, 9, 41.0, "7", 30.5)
    monkeypatch.setattr(export.writer.calibration, "measure_loss", lambda *_: measured)
    with pytest.raises(ExportError, match=r"PSNR 41\.0 dB over all, 30\.5 dB over those of 7, .* at least 40 dB"):
        write_tiny(tmp_path / "a.onnx", precision="int8")
    assert not list(tmp_path.iterdir())
    assert write_tiny(tmp_path / "a.onnx", precision="int8", force=True).info.loss == measured


def test_intermediates_of_another_client_are_refused_before_anything_is_made(
    write_tiny, delivered, tmp_path, monkeypatch
):
    monkeypatch.setattr(export.writer, "check_parity", lambda *_: pytest.fail("torch exported for nothing"))
    other = tmp_path / "other.safetensors"
    found = dataclasses.replace(intermediates.read(delivered), sigma=2.0)
    other.write_bytes(intermediates.to_bytes(found))
    with pytest.raises(MismatchError, match="stands at sigma 2"):
        write_tiny(tmp_path / "a.onnx", precision="int8", intermediates=other)
    assert [path.name for path in tmp_path.iterdir()] == ["other.safetensors"]


# --- a graph that does not compute what torch computes ------------------------------------------------------


@pytest.fixture
def exporting(monkeypatch):
    """Makes the exporter return a given graph."""
    return lambda graph: monkeypatch.setattr(export.writer, "export_graph", lambda *_: graph)


def change_a_weight(model: onnx.ModelProto) -> None:
    largest = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    weights = numpy_helper.to_array(largest).copy()
    weights.flat[0] += 1.0
    largest.CopyFrom(numpy_helper.from_array(weights, largest.name))


def use_an_unknown_operator(model: onnx.ModelProto) -> None:
    """Computes the same, by way of an operator that devices refuse."""
    last = next(node for node in model.graph.node if "x0_hat" in node.output)
    last.output[0] = "before"
    model.graph.node.append(helper.make_node("Celu", ["before"], ["bent"]))
    model.graph.node.append(helper.make_node("Sub", ["bent", "bent"], ["zero"]))
    model.graph.node.append(helper.make_node("Add", ["before", "zero"], ["x0_hat"]))


def break_the_wiring(model: onnx.ModelProto) -> None:
    model.graph.node[-1].input[0] = "nowhere"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_a_weight, r"differs from torch by \S+ in one step and \S+ over the trajectory .*No bundle was written"),
        (use_an_unknown_operator, r"a device would refuse what was exported: .*'Celu'.*No bundle was written"),
        (break_the_wiring, r"onnxruntime \S+ cannot load the exported graph: .*No bundle was written"),
    ],
)
def test_a_wrong_graph_fails_and_leaves_nothing_behind(
    tiny_bundle, tiny_model, north, tmp_path, exporting, change, message
):
    graph = graph_of(tiny_bundle)
    change(graph)
    exporting(graph)
    with pytest.raises(ExportError, match=message) as caught:
        export_client(tiny_model, north, "north", tmp_path / "new" / "a.onnx")
    assert caught.value.exit_code == 10 and "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_an_older_bundle_survives_a_failed_export_and_is_replaced_by_a_good_one(
    tiny_bundle, tiny_model, north, tmp_path, exporting
):
    path, wrong = tmp_path / "a.onnx", graph_of(tiny_bundle)
    path.write_bytes(b"old")
    change_a_weight(wrong)
    exporting(wrong)
    with pytest.raises(ExportError):
        export_client(tiny_model, north, "north", path, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["a.onnx"] and path.read_bytes() == b"old"
    exporting(graph_of(tiny_bundle))
    export_client(tiny_model, north, "north", path, overwrite=True)
    assert bundles.read(path).info.client == "north"


def test_a_network_that_torch_cannot_export_is_refused_in_one_sentence(tiny_model, north, tmp_path):
    class Undecided(torch.nn.Module):
        def forward(self, x: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x  # a branch on the data is no graph

    broken = denoiser()
    broken.network = Undecided()
    model = dataclasses.replace(tiny_model, denoiser=broken.eval())
    with pytest.raises(ExportError, match="torch could not export the client's network to opset 18: ") as caught:
        export_client(model, north, "north", tmp_path / "a.onnx")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_too_many_evaluations_are_refused_before_torch_exports_anything(tiny_model, north, tmp_path, monkeypatch):
    monkeypatch.setattr("export.writer.export_graph", lambda *_: pytest.fail("it was exported first"))
    with pytest.raises(UsageError, match="65 steps of dpmpp_2m are more than 64 evaluations"):
        export_client(tiny_model, north, "north", tmp_path / "a.onnx", steps=MAX_EVALUATIONS + 1, graph="whole")
