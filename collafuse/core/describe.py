"""What a file of ours holds, in plain values: behind ``collafuse inspect``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import bundle, intermediate, release, signing, statistics, tensorfile, texts
from .errors import FileFormatError, RuntimeMissingError
from .metadata import shown
from .noise import SCHEDULES, Cut, log_snr_from_sigma, t_from_sigma
from .tensorstream import open_stream

OTHER_KINDS = ("weights", "checkpoint", "gaussians")
"""Kinds that the torch side writes; their tensors are counted, not interpreted."""


def describe(path: Path) -> dict[str, Any]:
    """Kind, size, digest and contents of a release, statistics, intermediate, text, bundle, weights or checkpoint file.

    The file is checked as if it were used; nothing is run. Of a large tensor file only a block is held at a time,
    and of a release the ids besides. Raises FileFormatError.
    """
    path = Path(path)
    if not path.is_file():
        raise FileFormatError(f"{path} is not a file; pass a release, intermediate, bundle or weights file.")
    kind = tensorfile.peek_kind(path)
    if kind == release.KIND:
        values = _release(path)
    elif kind == intermediate.KIND:
        values = _intermediate(path)
    elif kind == texts.KIND:
        values = _text(texts.read(path))
    elif kind == statistics.KIND:
        values = _statistics(statistics.read(path))
    elif kind in OTHER_KINDS:
        values = _tensors(path, kind)
    elif kind is None and _begins_as_bundle(path):
        kind, values = bundle.KIND, _bundle(bundle.read(path), str(path))
    else:
        what = "no file of ours, or damaged" if kind is None else f"of kind {shown(kind)}"
        raise FileFormatError(
            f"{path} is {what}; expected a release, intermediates, a bundle, weights or another file that a command of "
            "this version of collafuse wrote."
        )
    seen = {
        "kind": kind,
        "bytes": path.stat().st_size,
        "file_sha256": tensorfile.file_digest(path),
        "digest": "matches the SHA-256 in the file",  # or the file would have been refused
    }
    return {**seen, **values, **seen}  # what the file says of itself takes the place of none of these


def _begins_as_bundle(path: Path) -> bool:
    """Whether a file begins as ONNX files do, with the version of the format; so does one that cannot be read, of which
    whoever reads it says why."""
    try:
        with path.open("rb") as file:
            return file.read(1) == b"\x08"
    except OSError:
        return True


def _images(shape: tuple[int, ...], dtype: str, sigma: float) -> dict[str, Any]:
    return {
        "images": shape[0],
        "image_shape": list(shape[1:]),
        "dtype": dtype,
        "sigma": sigma,
        **_level(sigma),
        "bytes_per_image": math.prod(shape[1:]) * np.dtype(dtype).itemsize,
    }


def _level(sigma: float) -> dict[str, Any]:
    """A noise level in the other coordinates, as numbers and in one text."""
    times = {f"t_{schedule}": t_from_sigma(sigma, schedule) for schedule in SCHEDULES}
    return {"log_snr": log_snr_from_sigma(sigma), **times, "noise_level": Cut(sigma).describe()}


def _release(path: Path) -> dict[str, Any]:
    with open_stream(path, release.KIND, release.VERSION) as stream:
        header = release.read_header(stream.fields, stream.layouts, stream.source)
        counts, ids = np.zeros(len(header.label_names), dtype=np.int64), []

        def check(name: str, block: NDArray[Any]) -> None:
            if name == "ids":
                ids.append(block)
            elif name == "labels":
                release.check_labels(block, stream.source)
                np.add(counts, block.sum(axis=0, dtype=np.int64), out=counts)
            elif name == "text":
                texts.check(block, stream.source)
            else:
                tensorfile.check_finite(block, name, stream.source)

        stream.verify(check)
        release.check_ids(np.concatenate(ids), stream.source)
        z = stream.layouts["z"]
        shared = dict(zip(header.label_names, counts.tolist(), strict=True)) if "labels" in stream.layouts else None
    found = {"labels": shared, **texts.text_fields(header.text), "simulated": header.simulated}
    return {**_images(z.shape, z.dtype.name, header.sigma_cut), **found}


def _intermediate(path: Path) -> dict[str, Any]:
    with intermediate.IntermediateFile(path) as file:
        header = file.header
        return {
            **_images(header.shape, header.dtype, header.sigma),
            "labels": file.label_counts,
            **texts.text_fields(header.text_space),
            "server_model": header.server_model,
            "sampler": header.sampler,
            "nfe": header.nfe,
            "guidance": header.guidance,
            "autoguidance": header.autoguidance,
            "warm_start": header.previous_sigma is not None,
        }


def _text(value: texts.Prompts) -> dict[str, Any]:
    return {**texts.text_fields(value.text.space), "prompts": list(value.prompts)}


def _statistics(value: statistics.Statistics) -> dict[str, Any]:
    counts = [round(float(count), 1) for count in value.counts]
    budget = value.about.budget
    return {
        "image_shape": list(value.image_shape),
        "coefficients": value.about.coefficients,
        "labels": None if value.label_names is None else dict(zip(value.label_names, counts, strict=True)),
        "counted": sum(counts),
        "epsilon": None if budget is None else budget.epsilon,
        "delta": None if budget is None else budget.delta,
        "clip": value.about.clip,
        "simulated": value.simulated,
    }


def _tensors(path: Path, kind: str) -> dict[str, Any]:
    with open_stream(path, kind, 1) as stream:
        stream.verify()
        numbers = sum(layout.size for layout in stream.layouts.values())
        return {**stream.fields.rest(), "tensors": len(stream.layouts), "numbers": numbers}


def _signed(value: bundle.Bundle, source: str) -> dict[str, str] | None:
    """Who signed a bundle. Raises FileFormatError where that is not true."""
    if (signature := value.signature) is None:
        return None
    try:
        valid = signing.is_valid(signature)
    except RuntimeMissingError:
        verified = "not verified (needs collafuse[sign])"
    else:
        if not valid:
            raise FileFormatError(f"{source} is not what {signature.key} signed; it was forged. Get it anew.")
        verified = "valid"
    return {"key": signature.key, "signed": signature.date, "signature": verified}


def _bundle(value: bundle.Bundle, source: str) -> dict[str, Any]:
    info = value.info
    return {
        "sha256": value.digest,
        "signature": _signed(value, source),
        "client": info.client,
        "image_shape": list(info.image_shape),
        "labels": list(info.label_names),
        "labels_kept": info.labels_kept,
        **texts.text_fields(info.text),
        **({} if info.text is None else {"text_kept": info.text_kept}),
        "sigma_range": [info.sigma_min, info.sigma_max],
        **_level(info.sigma_max),
        "sampler": info.sampler,
        "steps": info.steps,
        "sigma_low": info.sigma_low,
        "guidance": info.guidance,
        "blank_trained": info.blank_trained,
        "graph": info.graph,
        "precision": info.precision,
        "loss_against_fp32": None if info.loss is None else vars(info.loss),
        "opset": info.opset,
        "parameters": value.summary.num_parameters,
        "operators": sorted(value.summary.operators),
        "provenance": info.provenance,
    }
