"""What a file of ours holds, in plain values: behind ``collafuse inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import bundle, intermediate, release, tensorfile
from .errors import FileFormatError
from .noise import Cut

OTHER_KINDS = ("weights", "checkpoint")
"""Kinds that the torch side writes; their tensors are counted, not interpreted."""


def describe(path: Path) -> dict[str, Any]:
    """Kind, size, digest and contents of a release, intermediate, bundle, weights or checkpoint file.

    The file is checked as if it were used; nothing is run. Raises FileFormatError.
    """
    path = Path(path)
    if not path.is_file():
        raise FileFormatError(f"{path} is not a file; pass a release, intermediate, bundle or weights file.")
    kind = tensorfile.peek_kind(path)
    if kind == release.KIND:
        values = _release(release.read(path))
    elif kind == intermediate.KIND:
        values = _intermediate(intermediate.read(path))
    elif kind in OTHER_KINDS:
        file = tensorfile.read(path, kind, 1)
        numbers = sum(tensor.size for tensor in file.tensors.values())
        values = {**file.fields.rest(), "tensors": len(file.tensors), "numbers": numbers}
    else:
        kind, values = bundle.KIND, _bundle(bundle.read(path))
    return {"kind": kind, "bytes": path.stat().st_size, "file_sha256": tensorfile.file_digest(path), **values}


def _images(x: NDArray[Any], sigma: float) -> dict[str, Any]:
    return {
        "images": len(x),
        "image_shape": list(x.shape[1:]),
        "dtype": x.dtype.name,
        "sigma": sigma,
        "noise_level": Cut(sigma).describe(),
        "bytes_per_image": int(x[0].nbytes),
    }


def _label_counts(labels: NDArray[np.uint8] | None, names: tuple[str, ...]) -> dict[str, int] | None:
    return None if labels is None else {name: int(labels[:, i].sum()) for i, name in enumerate(names)}


def _release(value: release.Release) -> dict[str, Any]:
    labels = _label_counts(value.labels, value.label_names)
    return {**_images(value.z, value.sigma_cut), "labels": labels, "simulated": value.simulated}


def _intermediate(value: intermediate.Intermediate) -> dict[str, Any]:
    return {
        **_images(value.x, value.sigma),
        "labels": _label_counts(value.labels, value.label_names),
        "server_model": value.server_model,
        "sampler": value.sampler,
        "nfe": value.nfe,
        "guidance": value.guidance,
        "warm_start": value.previous_x0_hat is not None,
    }


def _bundle(value: bundle.Bundle) -> dict[str, Any]:
    info = value.info
    return {
        "sha256": value.digest,
        "client": info.client,
        "image_shape": list(info.image_shape),
        "labels": list(info.label_names),
        "sigma_range": [info.sigma_min, info.sigma_max],
        "noise_level": Cut(info.sigma_max).describe(),
        "sampler": info.sampler,
        "steps": info.steps,
        "sigma_low": info.sigma_low,
        "guidance": info.guidance,
        "precision": info.precision,
        "opset": info.opset,
        "parameters": value.summary.num_parameters,
        "operators": sorted(value.summary.operators),
        "provenance": info.provenance,
    }
