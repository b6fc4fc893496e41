"""BraTS 2020: magnetic resonance volumes of brains to slices, with what the expert's segmentation says of each."""

from __future__ import annotations

import csv
import struct
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..config import DataSettings
from ..config.data import VolumeSettings
from ..core.conditioning import Labels
from ..core.errors import DataError, RuntimeMissingError, first_line
from .images import pixel_digest, shaped
from .imageset import ImageSet
from .listening import Listener

FOLDER = "MICCAI_BraTS2020_TrainingData"
TISSUES = {1: "necrosis", 2: "oedema", 4: "enhancing"}
"""The values of a segmentation that are not healthy."""
GRADES = ("HGG", "LGG")
LABELS = ("tumour", *TISSUES.values(), *GRADES)
AXES = {"sagittal": 0, "coronal": 1, "axial": 2}
"""In volumes whose axes run to the right, to the front and upwards."""
MAX_VOXELS = 1 << 26
BRIGHTEST = 99.5
"""The percentile of a volume's tissue that is drawn white: scanners have no common scale."""


@dataclass(frozen=True, eq=False)
class Slices:
    """One patient's slices. pixels: [M, C, H, W]; labels: [M, K]; numbers: where each lies in the volume."""

    patient: str
    pixels: NDArray[np.uint8]
    labels: Labels
    digests: NDArray[np.uint8]
    numbers: list[int]


def read_brats(root: Path, settings: DataSettings, listener: Listener) -> ImageSet:
    """Slices of every patient below ``root``, grouped by patient; a patient who cannot be read is left out and named.

    A volume's grey levels are scaled by its own tissue. Raises DataError when nobody can be read, and
    RuntimeMissingError without nibabel.
    """
    _nibabel()
    folder = root / FOLDER
    patients = sorted(path.name for path in folder.iterdir() if path.is_dir())
    grades = _grades(folder / "name_mapping.csv")
    counter = listener.bar(f"reading {folder.name}", len(patients))
    parts, problems = [], []
    for found in _in_order(partial(_slices_or_reason, folder, grades=grades, settings=settings), patients):
        counter.advance(1)
        if isinstance(found, str):
            problems.append(found)
        else:
            parts.append(found)
    if problems:
        shown = "\n".join(f"  {problem}" for problem in problems[:5])
        listener.say(f"warning: {len(problems)} of {len(patients)} patients in {folder} left out, such as:\n{shown}")
    if not any(len(part.pixels) for part in parts):
        raise DataError(
            f"{folder} gives no slices of {len(patients)} patients; the first problem: "
            f"{(problems or ['no slice holds enough tissue; widen data.volumes.slices'])[0]}"
        )
    axis = settings.volumes.axis
    return ImageSet(
        np.concatenate([part.pixels for part in parts]),
        np.concatenate([part.labels for part in parts]),
        LABELS,
        np.concatenate([part.digests for part in parts]),
        np.asarray([f"{part.patient} {axis} {number}" for part in parts for number in part.numbers], dtype=np.str_),
        np.asarray([part.patient for part in parts for _ in part.numbers], dtype=np.str_),
        problems=tuple(problems),
    )


def _in_order(read: partial[Slices | str], patients: list[str]) -> Iterator[Slices | str]:
    with ThreadPoolExecutor(2) as pool:  # unpacking leaves the interpreter's lock; a volume takes some 100 MB
        for start in range(0, len(patients), 8):
            yield from pool.map(read, patients[start : start + 8])


def _nibabel() -> Any:
    try:
        import nibabel
    except ImportError as error:
        raise RuntimeMissingError("NIfTI volumes need nibabel; pip install 'collafuse[medical]'.") from error
    return nibabel


def _grades(path: Path) -> dict[str, str]:
    """The grade of each patient's tumour, HGG or LGG, from the table that comes with the volumes."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
        return {row["BraTS_2020_subject_ID"]: row["Grade"] for row in rows}
    except (OSError, UnicodeDecodeError, csv.Error, KeyError) as error:
        raise DataError(f"{path} cannot be read ({first_line(error)}); get the set anew.") from error


def _slices_or_reason(folder: Path, patient: str, *, grades: dict[str, str], settings: DataSettings) -> Slices | str:
    try:
        return _slices(folder, patient, grades, settings)
    except DataError as error:
        return str(error)


def _slices(folder: Path, patient: str, grades: dict[str, str], settings: DataSettings) -> Slices:
    volumes = settings.volumes
    image = _volume(folder / patient, f"{patient}_{volumes.modality}")
    tissue = _volume(folder / patient, f"{patient}_seg")
    if tissue.shape != image.shape:
        raise DataError(
            f"{folder / patient}: the segmentation is {list(tissue.shape)}, the {volumes.modality} volume "
            f"{list(image.shape)}; get the patient anew."
        )
    if grades.get(patient) not in GRADES:
        raise DataError(f"{folder / patient} has no grade ({' or '.join(GRADES)}) in name_mapping.csv; add its row.")
    levels = _grey_levels(image)
    channels, side, _ = settings.image_shape
    pixels, labels, digests, numbers = [], [], [], []
    for number in _numbers(levels, volumes):
        level, seen = (_upright(volume, number, volumes.axis) for volume in (levels, tissue))
        pixels.append(shaped(Image.fromarray(level).convert("RGB"), channels, side, settings.fit))
        digests.append(np.frombuffer(pixel_digest(level[:, :, None]), dtype=np.uint8))
        kinds = [bool((seen == value).any()) for value in TISSUES]
        labels.append([any(kinds), *kinds, *(grades[patient] == grade for grade in GRADES)])
        numbers.append(number)
    return Slices(
        patient,
        np.asarray(pixels, dtype=np.uint8).reshape(-1, channels, side, side),
        np.asarray(labels, dtype=np.uint8).reshape(-1, len(LABELS)),
        np.asarray(digests, dtype=np.uint8).reshape(-1, 32),
        numbers,
    )


def _numbers(levels: NDArray[np.uint8], volumes: VolumeSettings) -> list[int]:
    """The slices in the range asked for that hold enough that is not background."""
    others = tuple(axis for axis in range(3) if axis != AXES[volumes.axis])
    filled = (levels > 0).mean(axis=others)
    first, last = volumes.slices
    wanted = range(first, min(last + 1, len(filled)), volumes.every)
    return [number for number in wanted if filled[number] >= volumes.least_tissue]


def _upright(volume: NDArray[Any], number: int, axis: str) -> NDArray[Any]:
    """A slice [H, W]: what is in front or above, above; the patient's right, or front, on the right."""
    return np.ascontiguousarray(np.rot90(volume.take(number, axis=AXES[axis])))


def _grey_levels(image: NDArray[np.float32]) -> NDArray[np.uint8]:
    """0 to 255, from nothing to the BRIGHTEST percentile of what is above it."""
    tissue = image[image > 0]
    white = float(np.percentile(tissue, BRIGHTEST)) if tissue.size else 1.0
    return np.rint(np.clip(image / white, 0.0, 1.0) * 255).astype(np.uint8)


def _volume(folder: Path, name: str) -> NDArray[np.float32]:
    """A NIfTI file, packed or not, with its axes to the right, to the front and upwards. Raises DataError."""
    nibabel = _nibabel()
    path = next((p for p in (folder / f"{name}.nii", folder / f"{name}.nii.gz") if p.is_file()), None)
    if path is None:
        raise DataError(f"{folder} lacks {name}.nii or {name}.nii.gz; get the patient anew.")
    damaged = (OSError, EOFError, ValueError, TypeError, ArithmeticError, LookupError, zlib.error, struct.error)
    foreign = (nibabel.filebasedimages.ImageFileError, nibabel.spatialimages.HeaderDataError)
    try:
        found = nibabel.load(path)
        if len(found.shape) != 3 or not 0 < np.prod(found.shape, dtype=np.float64) <= MAX_VOXELS:
            raise ValueError(f"its shape is {list(found.shape)}, expected three axes and at most {MAX_VOXELS} voxels")
        values = np.asarray(nibabel.as_closest_canonical(found).dataobj, dtype=np.float32)
    except (*damaged, *foreign) as error:
        raise DataError(f"{path} cannot be read as a volume ({first_line(error)}); get the patient anew.") from error
    if not np.isfinite(values).all():
        raise DataError(f"{path} holds values that are not finite; get the patient anew.")
    return values
