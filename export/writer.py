"""Writing a bundle: export, compare with torch, reduce, measure, put metadata and the known answer inside, write.

Everything happens in memory until the last line, so that a refusal leaves nothing behind.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

import onnx
import torch

import collafuse
from collafuse.config import ClientSettings
from collafuse.core import bundle as bundles
from collafuse.core import signing
from collafuse.core.atomic import check_output, write_bytes
from collafuse.core.bundle import GRAPHS, MAX_STEPS, PRECISIONS, BundleInfo
from collafuse.core.errors import ExportError, FileFormatError, UsageError
from collafuse.core.knownanswer import known_answer_input
from collafuse.core.pictures import to_uint8
from collafuse.core.signing import SigningKey
from collafuse.learning.autoguidance import AutoGuided
from collafuse.learning.weights import TrainedModel

from . import calibration
from .answer import exact_answer, step_answer, whole_answer
from .graph import DEFAULT_OPSET, export_graph
from .half import halve_weights
from .parity import HALF_TOLERANCE, Parity, check_parity
from .quantise import quantise
from .runtime import OnnxStep, OnnxWhole, finish
from .whole import check_evaluations, whole_graph

LEAST_PSNR_DB = 40.0
"""Below this, for the images of any one label, a precision is refused: 40 dB is a root mean square of 2.6 grey levels
of 255, about where people begin to see a difference between two pictures side by side."""

NUM_COMPARED = 8
LEAST_WHOLE_PSNR_DB = 60.0
"""Between one graph and its steps: the same arithmetic, so a root mean square of a quarter grey level is generous."""


@dataclass(frozen=True)
class Exported:
    """What was written: the file's size in bytes, its SHA-256, and how closely it follows torch.

    parity is that of the graph itself in fp32 and fp16, that of the graph before it was quantised in int8; how far
    a reduced precision lies from fp32 is ``info.loss``.
    """

    size: int
    digest: str
    info: BundleInfo
    parity: Parity


def export_client(
    model: TrainedModel,
    settings: ClientSettings,
    client: str,
    path: Path,
    *,
    steps: int | None = None,
    opset: int = DEFAULT_OPSET,
    precision: str = "fp32",
    intermediates: Path | None = None,
    graph: str = "step",
    force: bool = False,
    signer: SigningKey | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write a client's bundle. ``steps`` takes the place of the configured number of finishing steps.

    With ``graph`` "whole" the bundle holds the whole finishing for other runtimes, see export.whole.
    A precision below fp32 needs ``intermediates``, a file that the server delivered for this client: int8 is
    calibrated on half of it, the loss is measured on the other half. ``force`` writes a bundle whose loss is above
    the tolerance. ``signer`` is the key that the bundle is signed with.

    Raises ExportError, leaving nothing behind, when the graph does not compute what torch computes, a device would
    refuse it, or a precision loses too much; UsageError for steps, an opset or a precision that no bundle has and
    for missing intermediates; OutputExistsError and StorageError as every writer.
    """
    check_output(path, overwrite)
    _check_arguments(client, steps, precision, graph, intermediates)
    info = _describe(model, settings, client, settings.sampler.steps if steps is None else steps, opset)
    # Before what takes torch seconds: a graph with too many steps, or a file that does not fit, is refused at once.
    if graph == "whole":
        check_evaluations(info)
    given = None if intermediates is None or precision == "fp32" else calibration.read(intermediates, info)
    onnx_model = export_graph(model.denoiser, opset)
    parity = check_parity(model.denoiser, onnx_model.SerializeToString(), info)
    if given is not None:
        onnx_model, info = _reduce(onnx_model, replace(info, precision=precision), given, force)
        if precision == "fp16":
            parity = check_parity(model.denoiser, onnx_model.SerializeToString(), info, HALF_TOLERANCE)
    if graph == "whole":
        onnx_model, info = _unroll(onnx_model, replace(info, graph=graph))
    data = _sealed(onnx_model, info, signer)
    try:
        digest = bundles.from_bytes(data, str(path)).digest  # the very checks that a device will make
    except FileFormatError as error:
        raise ExportError(f"a device would refuse what was exported: {error} No bundle was written.") from error
    write_bytes(path, data, overwrite=overwrite)
    return Exported(size=len(data), digest=digest, info=info, parity=parity)


def _check_arguments(client: str, steps: int | None, precision: str, graph: str, intermediates: Path | None) -> None:
    if steps is not None and not 1 <= steps <= MAX_STEPS:
        raise UsageError(f"steps={steps}; expected a whole number from 1 to {MAX_STEPS}.")
    if precision not in PRECISIONS:
        raise UsageError(f"precision {precision!r} is not known; use one of {', '.join(PRECISIONS)}.")
    if graph not in GRAPHS:
        raise UsageError(f"graph {graph!r} is not known; use one of {', '.join(GRAPHS)}.")
    if precision != "fp32" and intermediates is None:
        raise UsageError(
            f"precision {precision} is measured against fp32 on finished images, and there are no intermediates to "
            f"finish; pass --calibration FILE, made at the server by collafuse deliver --client {client} -n 256."
        )


def _describe(model: TrainedModel, settings: ClientSettings, client: str, steps: int, opset: int) -> BundleInfo:
    """What a bundle in fp32 says of itself."""
    guided = {"autoguidance": model.denoiser.said} if isinstance(model.denoiser, AutoGuided) else {}
    return BundleInfo(
        client=client,
        image_shape=model.denoiser.image_shape,
        label_names=model.label_names,
        sigma_min=model.sigma_low,
        sigma_max=model.sigma_high,
        sampler=settings.sampler.name,
        steps=steps,
        # A configuration of one step, which asks for none, may have it above where the client takes over.
        sigma_low=min(settings.sampler.sigma_low, model.sigma_high),
        guidance=settings.sampler.guidance,
        # Where there is neither a label nor a text, all images are of no stated kind.
        blank_trained=settings.training.label_dropout > 0 or model.space.width == 1,
        precision="fp32",
        opset=opset,
        provenance={
            "weights": model.id,
            "training_steps": str(model.steps),
            **guided,
            "collafuse": collafuse.__version__,
            "torch": torch.__version__,
            "onnx": onnx.__version__,
            "exported": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        },
        known_answer=exact_answer(model),
        labels_kept=not settings.share_labels,
        text=model.space.text,
        text_kept=model.space.text is not None and not settings.share_text,
    )


def _reduce(
    graph: onnx.ModelProto, info: BundleInfo, given: tuple[calibration.Batch, calibration.Batch], force: bool
) -> tuple[onnx.ModelProto, BundleInfo]:
    """The graph in the precision that ``info`` names, and the info with its loss and its own known answer."""
    exact = OnnxStep(graph.SerializeToString())
    shaping, judging = given
    if info.precision == "fp16":
        graph = halve_weights(graph)
    else:
        graph = quantise(graph, calibration.calibration_inputs(exact, shaping, info))
    reduced = OnnxStep(graph.SerializeToString())
    loss = calibration.measure_loss(exact, reduced, judging, info)
    if loss.worst_psnr_db < LEAST_PSNR_DB and not force:
        raise ExportError(
            f"in {info.precision} the {loss.images} finished images differ from those in fp32 by "
            f"{loss.mean_grey_levels:.2f} grey levels in the mean, {loss.max_grey_levels} at most (PSNR "
            f"{loss.psnr_db:.1f} dB over all, {loss.worst_psnr_db:.1f} dB over those of {loss.worst_label}, the "
            f"worst); at least {LEAST_PSNR_DB:g} dB are expected of every label. No bundle was written; use another "
            "--precision, more --calibration images, or --force."
        )
    return graph, replace(info, loss=loss, known_answer=step_answer(reduced, info))


def _unroll(step: onnx.ModelProto, info: BundleInfo) -> tuple[onnx.ModelProto, BundleInfo]:
    """The whole graph of a step graph, and the info with its known answer.

    Raises ExportError unless it makes the pictures that a device makes of the step graph.
    """
    whole = whole_graph(step, info)
    model = OnnxWhole(whole.SerializeToString())
    x, _, conditions = known_answer_input(info.image_shape, info.space, (info.sigma_max,) * NUM_COMPARED)
    expected = to_uint8(finish(OnnxStep(step.SerializeToString()), x, conditions, info))
    apart = calibration.loss_between(expected, model(x, conditions))
    if apart.psnr_db < LEAST_WHOLE_PSNR_DB:
        raise ExportError(
            f"finished in one graph, pictures differ by {apart.mean_grey_levels:.2f} grey levels in the mean and "
            f"{apart.max_grey_levels} at most from those finished step by step; they should be the same. No bundle was "
            "written; use --graph step, or another onnxruntime version."
        )
    return whole, replace(info, known_answer=whole_answer(model, info))


def _sealed(graph: onnx.ModelProto, info: BundleInfo, signer: SigningKey | None) -> bytes:
    """The bundle's bytes, signed where there is a key."""
    texts = {bundles.METADATA_KEY: info.to_json(), bundles.DIGEST_KEY: bundles.NO_DIGEST}
    if signer is not None:
        texts[bundles.SIGNATURE_KEY] = signing.entry(signer.public, int(time.time()))
    onnx.helper.set_model_props(graph, texts)
    data = graph.SerializeToString(deterministic=True)
    return bundles.with_digest(data if signer is None else bundles.with_signature(data, signer))
