"""Writing a bundle: export, compare with torch, put metadata and the known answer inside, write in one act."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import onnx
import torch

import collafuse
from collafuse.config import ClientSettings
from collafuse.core import bundle as bundles
from collafuse.core.atomic import refuse_existing, write_bytes
from collafuse.core.bundle import MAX_STEPS, BundleInfo, KnownAnswer, known_answer_input, known_answer_values
from collafuse.core.errors import ExportError, FileFormatError, UsageError
from collafuse.learning.weights import TrainedModel

from .graph import DEFAULT_OPSET, export_graph
from .parity import TOLERANCE, Parity, check_parity, levels_between, torch_values

KNOWN_ANSWER_LEVELS = 4
KNOWN_ANSWER_TOLERANCE = 10 * TOLERANCE
"""Looser than parity here: another machine's onnxruntime may order its sums differently."""


@dataclass(frozen=True)
class Exported:
    """What was written: the file's size in bytes, its SHA-256, and how closely it follows torch."""

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
    overwrite: bool = False,
) -> Exported:
    """Write a client's bundle. ``steps`` takes the place of the configured number of finishing steps.

    Raises ExportError, leaving nothing behind, when the graph does not compute what torch computes or a device
    would refuse it; UsageError for steps or an opset that no bundle has; OutputExistsError and StorageError as
    every writer.
    """
    refuse_existing(path, overwrite)
    if steps is not None and not 1 <= steps <= MAX_STEPS:
        raise UsageError(f"steps={steps}; expected a whole number from 1 to {MAX_STEPS}.")
    denoiser = model.denoiser
    info = BundleInfo(
        client=client,
        image_shape=denoiser.image_shape,
        label_names=model.label_names,
        sigma_min=model.sigma_low,
        sigma_max=model.sigma_high,
        sampler=settings.sampler.name,
        steps=settings.sampler.steps if steps is None else steps,
        sigma_low=settings.sampler.sigma_low,
        guidance=settings.sampler.guidance,
        precision="fp32",
        opset=opset,
        provenance={
            "weights": model.id,
            "training_steps": str(model.steps),
            "collafuse": collafuse.__version__,
            "torch": torch.__version__,
            "onnx": onnx.__version__,
            "exported": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        },
        known_answer=_known_answer(model),
    )
    graph = export_graph(denoiser, opset)
    onnx.helper.set_model_props(graph, {bundles.METADATA_KEY: info.to_json(), bundles.DIGEST_KEY: bundles.NO_DIGEST})
    data = bundles.with_digest(graph.SerializeToString(deterministic=True))
    parity = check_parity(denoiser, data, info)
    try:
        digest = bundles.from_bytes(data, str(path)).digest  # the very checks that a device will make
    except FileFormatError as error:
        raise ExportError(f"a device would refuse what was exported: {error} No bundle was written.") from error
    write_bytes(path, data, overwrite=overwrite)
    return Exported(size=len(data), digest=digest, info=info, parity=parity)


def _known_answer(model: TrainedModel) -> KnownAnswer:
    sigmas = tuple(levels_between(model.sigma_low, model.sigma_high, KNOWN_ANSWER_LEVELS))
    inputs = known_answer_input(model.denoiser.image_shape, len(model.label_names), sigmas)
    values = known_answer_values(torch_values(model.denoiser, *inputs))
    return KnownAnswer(sigmas, tuple(float(v) for v in values), KNOWN_ANSWER_TOLERANCE)
