"""A Hugging Face data set that ``datasets`` saved to disk, read with pyarrow alone.

FOLDER/dataset_info.json           the features: which column is an image, what the classes are called
       state.json                  the names of the data files
       data-00000-of-00002.arrow   Arrow streams; an image is its file's bytes
or FOLDER/train/..., FOLDER/test/... for a set with splits
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import DataSettings
from ..core.conditioning import Labels, indices_of
from ..core.errors import DataError, FileFormatError, MismatchError, RuntimeMissingError, first_line
from ..core.metadata import parse_json
from .captions import Captions, captions_of, check_some, first_of
from .images import Transform, read_image
from .imageset import ImageSet, check_label_names
from .listening import Listener
from .listing import MAX_IMAGE_BYTES
from .table import as_text, labels_of

ABOUT, STATE = "dataset_info.json", "state.json"
READ_AHEAD = 256


@dataclass(frozen=True)
class Part:
    """One saved data set: its folder, its features by column, its Arrow table (mapped, not read)."""

    folder: Path
    features: dict[str, Any]
    table: Any


def read_hub(root: Path, settings: DataSettings, listener: Listener) -> ImageSet:
    """The images of a saved set; of one with splits ``train``, and with ``official_split`` the others as held out.

    An image that cannot be read is left out and named. Raises DataError, and RuntimeMissingError without pyarrow.
    """
    folders = _folders(root, settings.official_split)
    parts = [_open(folder) for folder in folders]
    count = sum(part.table.num_rows for part in parts)
    channels, side, _ = settings.image_shape
    if count * channels * side * side > MAX_IMAGE_BYTES:
        raise DataError(f"{root} holds {count} images, over {MAX_IMAGE_BYTES >> 30} GiB; use a smaller image_size.")
    described = [_labels(part, settings) for part in parts]
    if any(names != described[0][1] for _, names in described):
        raise DataError(f"the splits of {root} have different labels; save them with the same features.")
    counter = listener.bar(f"reading {root.name}", count)
    pixels, digests, kept, problems = [], [], [], []
    for row, found in enumerate(_decoded(parts, Transform(channels, side, settings.fit), settings)):
        if isinstance(found, str):
            problems.append(found)
        else:
            pixels.append(found[0])
            digests.append(np.frombuffer(found[1], dtype=np.uint8))
            kept.append(row)
        counter.advance(1)
    if problems:
        listener.say(f"warning: {len(problems)} left out of {root}, such as:\n  {problems[0]}")
    if not kept:
        raise DataError(f"none of the {count} images in {root} can be read; the first: {problems[0]}")
    sources = np.asarray([f"{part.folder.name} {row}" for part in parts for row in range(part.table.num_rows)])
    held_out = np.repeat([i > 0 for i in range(len(parts))], [part.table.num_rows for part in parts])
    groups = _groups(parts, settings.hub.group)
    captions = _captions(parts, settings.caption_column)
    return ImageSet(
        np.stack(pixels),
        np.concatenate([labels for labels, _ in described])[kept],
        described[0][1],
        np.stack(digests),
        sources[kept],
        None if groups is None else groups[kept],
        held_out[kept] if settings.official_split else None,
        tuple(problems),
        None if captions is None else captions[kept],
    )


def _folders(root: Path, all_splits: bool) -> list[Path]:
    if (root / ABOUT).is_file():
        if all_splits:
            raise DataError(f"{root} has no splits, so no official one; leave official_split out.")
        return [root]
    splits = sorted(path.parent for path in root.glob(f"*/{ABOUT}"))
    train = [path for path in splits if path.name == "train"]
    if not train:
        raise DataError(
            f"{root} holds no saved data set: neither {ABOUT} nor train/{ABOUT}. Write it with "
            "datasets.load_dataset(...).save_to_disk(FOLDER) and set data.path to FOLDER."
        )
    return train + [path for path in splits if path not in train] if all_splits else train


def _open(folder: Path) -> Part:
    try:
        import pyarrow as pa
    except ImportError as error:
        raise RuntimeMissingError("saved data sets need pyarrow; pip install 'collafuse[tables]'.") from error
    try:
        features = parse_json((folder / ABOUT).read_bytes(), str(folder / ABOUT))["features"]
        names = [one["filename"] for one in parse_json((folder / STATE).read_bytes(), STATE)["_data_files"]]
        if any(Path(name).name != name for name in names):
            raise ValueError("a data file lies outside the folder")
        tables = [pa.ipc.open_stream(pa.memory_map(str(folder / name))).read_all() for name in names]
        table = pa.concat_tables(tables)
        table.validate(full=True)  # a damaged offset would lead out of the file
        if set(table.column_names) != set(features):
            raise ValueError(f"the columns {table.column_names} are not the features {list(features)}")
        return Part(folder, dict(features), table)
    except (FileFormatError, OSError, KeyError, TypeError, ValueError, pa.ArrowException) as error:
        raise DataError(
            f"{folder} is no saved data set that can be read ({first_line(error)}); save it anew."
        ) from error


# --- what the columns say -----------------------------------------------------------------------------------


def _kind(feature: Any) -> str:
    return str(feature.get("_type", "")) if isinstance(feature, dict) else ""


def _classes(feature: Any) -> tuple[str, ...] | None:
    """The names of a column of classes, or of lists of classes; None for another column."""
    if isinstance(feature, dict) and isinstance(feature.get("feature"), dict):
        feature = feature["feature"]
    return tuple(map(str, feature["names"])) if _kind(feature) == "ClassLabel" and feature.get("names") else None


def _image_column(part: Part, settings: DataSettings) -> str:
    images = [name for name, feature in part.features.items() if _kind(feature) == "Image"]
    if settings.hub.image is not None:
        _known([settings.hub.image], images, part)
        return settings.hub.image
    if len(images) != 1:
        raise DataError(f"{part.folder} has the image columns {images}; set data.hub.image to one of them.")
    return images[0]


def _known(names: list[str], columns: list[str], part: Part) -> None:
    try:
        indices_of(names, columns)
    except MismatchError as error:
        raise DataError(f"{part.folder}: {str(error).replace('label', 'column', 1)}") from error


def _labels(part: Part, settings: DataSettings) -> tuple[Labels, tuple[str, ...]]:
    """Columns of classes and of yes and no, or those that are asked for, as labels [N, K] and their names."""
    usual = [n for n, f in part.features.items() if _classes(f) or (_kind(f) == "Value" and f.get("dtype") == "bool")]
    chosen = list(settings.hub.columns or [name for name in usual if name != settings.hub.group])
    _known(chosen, part.table.column_names, part)
    parts: list[NDArray[np.uint8]] = [np.zeros((part.table.num_rows, 0), dtype=np.uint8)]
    names: list[str] = []
    for column in chosen:
        values = part.table[column].to_pylist()
        classes = _classes(part.features.get(column))
        if classes is None:
            made = labels_of([as_text(value) for value in values], column, part.folder, asked=True)
            names += made
            parts += [rows[:, None].astype(np.uint8) for rows in made.values()]
        else:
            names += classes
            parts.append(_multi_hot(values, len(classes), column, part))
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise DataError(f"{part.folder}: two columns both make a label {twice!r}; choose one with data.hub.columns.")
    check_label_names(tuple(names), f"columns of {part.folder}")
    return np.concatenate(parts, axis=1), tuple(names)


def _multi_hot(values: list[Any], count: int, column: str, part: Part) -> Labels:
    labels = np.zeros((len(values), count), dtype=np.uint8)
    for row, value in enumerate(values):
        held = value if isinstance(value, list) else [value]
        if not all(isinstance(one, int) and 0 <= one < count for one in held):
            raise DataError(
                f"{part.folder}: row {row} of column {column!r} holds {value!r}, which is none of its classes."
            )
        labels[row, held] = 1
    return labels


def _groups(parts: list[Part], column: str | None) -> NDArray[np.str_] | None:
    if column is None:
        return None
    for part in parts:
        _known([column], part.table.column_names, part)
    return np.asarray([as_text(value) for part in parts for value in part.table[column].to_pylist()], dtype=np.str_)


def _captions(parts: list[Part], column: str | None) -> Captions | None:
    """A column of texts; in a list of several captions the first one counts."""
    if column is None:
        return None
    for part in parts:
        _known([column], part.table.column_names, part)
    values = [value for part in parts for value in part.table[column].to_pylist()]
    captions = captions_of(as_text(first_of(value)) for value in values)
    return check_some(captions, f"column {column!r} of {parts[0].folder} is empty in every row")


# --- images -------------------------------------------------------------------------------------------------


def _decoded(
    parts: list[Part], transform: Transform, settings: DataSettings
) -> Iterator[tuple[NDArray[np.uint8], bytes] | str]:
    """Each image's pixels and digest, or the reason why it cannot be read; a few hundred are read ahead."""
    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        warnings.simplefilter("ignore")
        for part in parts:
            column = part.table[_image_column(part, settings)]
            for start in range(0, part.table.num_rows, READ_AHEAD):
                held = column.slice(start, READ_AHEAD).to_pylist()
                names = [f"{part.folder} row {start + i}" for i in range(len(held))]
                yield from pool.map(partial(_decode, transform=transform), names, held)


def _decode(name: str, held: Any, *, transform: Transform) -> tuple[NDArray[np.uint8], bytes] | str:
    data = held.get("bytes") if isinstance(held, dict) else None
    if not isinstance(data, bytes):  # a path would lead anywhere on this machine
        return f"{name} holds no image's bytes; save the set with the images inside."
    try:
        return read_image(name, transform.channels, transform.side, transform.fit, data)
    except DataError as error:
        return str(error)
