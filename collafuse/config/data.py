"""The ``data`` section: where images come from, what they are labelled by, how they are dealt to clients."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from ..core.pictures import MAX_SIDE
from .expression import parse
from .section import Count, Positive, Section, Seed, Share

NATIVE_SHAPES: dict[str, tuple[int, int]] = {
    "digits": (1, 8),
    "mnist": (1, 28),
    "fashion-mnist": (1, 28),
    "cifar10": (3, 32),
    "cifar100": (3, 32),
    "stl10": (3, 96),
}
"""Channels and side in pixels of the sets whose images are all of one square size."""


DatasetName = Literal[
    "digits",
    "folder",
    "celeba",
    "cifar10",
    "cifar100",
    "stl10",
    "mnist",
    "fashion-mnist",
    "cub",
    "awa2",
    "brats2020",
    "huggingface",
]


def _each_once(names: tuple[str, ...]) -> tuple[str, ...]:
    twice = [name for i, name in enumerate(names) if name in names[:i]]
    if twice:
        raise ValueError(f"names {twice[0]!r} twice; list each once")
    return names


def _expression(text: str) -> str:
    parse(text)
    return text


Names = Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(_each_once)]
LIST, EXPRESSION = "<list>", "<expression>"


def _kind(value: Any) -> str:
    return EXPRESSION if isinstance(value, str) else LIST


Selection = Annotated[
    Annotated[Names, Tag(LIST)] | Annotated[str, AfterValidator(_expression), Tag(EXPRESSION)],
    Discriminator(_kind),
]
"""A list of labels, of which an image carries at least one, or an expression over labels that it fits."""


class TableSettings(Section):
    """A table of what images show: one row per image, CSV (or .tsv) or Parquet."""

    path: Path
    """Relative to the folder of images, so that each site's folder may hold its own."""
    file: str | None = None
    """The column that names the image, with or without folders and suffix; the first when not given."""
    columns: Names | None = None
    """The columns that become labels; all but ``file`` and ``group`` when not given."""
    group: str | None = None
    """The column that says what belongs together, such as a patient: never at two sites with ``split.by: group``,
    never both in training and held out."""


class HubSettings(Section):
    """Which columns of a saved Hugging Face data set are used."""

    image: str | None = None
    """The column with the images; needed where there are several."""
    columns: Names | None = None
    """The columns that become labels; those of classes and of yes and no when not given."""
    group: str | None = None
    """The column that says what belongs together, such as a patient."""


class TextSettings(Section):
    """What is written of each image, as a condition beside its labels (docs/data.md)."""

    encoder: Annotated[str, Field(min_length=1)]
    """A folder with a T5's config.json, tokenizer.json and model.safetensors, or a name that Hugging Face's tools have
    on this disk. Nothing is fetched."""
    captions: Literal["labels", "files", "column"] = "labels"
    """labels: the names of what an image shows, such as "Eyeglasses, Smiling"; files: ``face.txt`` beside ``face.jpg``;
    column: a column of ``table`` or of the Hugging Face set."""
    column: str | None = None
    """Which one, with captions column."""
    max_tokens: Annotated[int, Field(ge=2, le=512)] = 20
    """A longer caption is cut there."""

    @model_validator(mode="after")
    def _complete(self) -> TextSettings:
        if (self.captions == "column") != (self.column is not None):
            raise ValueError(f"captions={self.captions} and column={self.column}; a column goes with captions: column")
        return self


class VolumeSettings(Section):
    """Which slices of a volume become images."""

    modality: Literal["flair", "t1", "t1ce", "t2"] = "flair"
    axis: Literal["axial", "coronal", "sagittal"] = "axial"
    """axial: seen from above; coronal: from the front; sagittal: from the side."""
    slices: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]] = (40, 120)
    """The first and the last slice, counted from below, from behind or from the left."""
    every: Count = 1
    """2 takes every other slice: neighbours look alike."""
    least_tissue: Share = 0.05
    """Share of a slice that must not be background."""

    @model_validator(mode="after")
    def _in_order(self) -> VolumeSettings:
        if self.slices[0] > self.slices[1]:
            raise ValueError(f"slices={list(self.slices)} end before they begin; give the first and the last")
        return self


class SplitSettings(Section):
    """How one data set is dealt to clients when a single process plays all of them."""

    by: Literal["labels", "groups", "even", "dirichlet"] = "labels"
    """labels: each client states its own; groups: whole groups of ``table.group``, such as patients; even: shuffled and
    dealt out; dirichlet: shares per label drawn."""
    alpha: Positive = 0.5
    """dirichlet only: small values give each client few labels, large ones give all about the same."""
    over: Names | None = None
    """dirichlet only: the labels for whose combinations shares are drawn, where images carry several."""


class DataSettings(Section):
    """Where images come from and how they become [C, H, W] in [-1, 1]."""

    dataset: DatasetName
    path: Path | None = None
    """Of a folder: the root, one sub-folder per label or with a table. Of a published set: the folder in which its own
    lies, such as cifar-10-batches-py. Relative to the working directory."""
    table: TableSettings | None = None
    """folder only: labels from a table in place of sub-folders."""
    attributes: Names | None = None
    """The labels that images are described by, where a client does not list its own; all when not given."""
    certainty: Literal["not visible", "guessing", "probably", "definitely"] = "probably"
    """cub only: an attribute of which its annotator was less sure counts as absent."""
    volumes: VolumeSettings = VolumeSettings()
    """brats2020 only."""
    hub: HubSettings = HubSettings()
    """huggingface only."""
    text: TextSettings | None = None
    """Captions as a condition; without it images are described by labels alone. Needs the extra text."""
    image_size: Annotated[int, Field(ge=1, le=MAX_SIDE)] | None = None
    """Side in pixels."""
    fit: Literal["crop", "pad"] = "crop"
    """crop: resized by the shorter side, cropped in the middle; pad: resized by the longer side, black beside it."""
    channels: Literal[1, 3] | None = None
    """1 for grey, 3 for RGB; images are converted."""
    cache: Path | None = None
    """A folder for decoded pixels, so that files are decoded once. It holds a copy of the clean images; without it none
    is made. Files only: the sets that lie in memory anyway need none."""
    held_out: Share = 0.0
    """Share of each site's images kept away from training and release, chosen by each image's pixels (or its group)
    and the seed."""
    official_split: bool = False
    """Published sets only: what their makers keep for validation and testing is what is held out."""
    horizontal_flip: bool = False
    """Every training mirrors half of its images at random. An image is released once, as it is: the server mirrors what
    it received, noise and all, which shows it nothing more of the image."""
    split: SplitSettings = SplitSettings()
    seed: Seed = 0
    """Of the held-out share and of dealing."""

    @model_validator(mode="after")
    def _complete(self) -> DataSettings:
        if self.dataset not in NATIVE_SHAPES and (self.image_size is None or self.channels is None):
            raise ValueError(f"dataset {self.dataset!r} needs image_size and channels")
        if self.table is not None and self.dataset != "folder":
            raise ValueError(f"dataset {self.dataset!r} brings its own labels; table goes with dataset 'folder'")
        if self.text is not None and self.text.captions == "files" and self.dataset != "folder":
            raise ValueError(f"text.captions=files goes with dataset 'folder', not with {self.dataset!r}")
        if self.caption_column is not None and self.table is None and self.dataset != "huggingface":
            raise ValueError(
                f"text.column={self.caption_column} is a column of a table; give table, or captions: labels or files"
            )
        if self.official_split and self.dataset in ("digits", "folder", "brats2020"):
            raise ValueError(f"dataset {self.dataset!r} has no official split; give a share, held_out")
        if self.official_split and self.held_out:
            raise ValueError(f"official_split and held_out={self.held_out} contradict each other; give one")
        return self

    @property
    def caption_column(self) -> str | None:
        """The column with the captions, where they stand in one."""
        return None if self.text is None else self.text.column

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, side = NATIVE_SHAPES.get(self.dataset, (0, 0))
        side = self.image_size or side
        return self.channels or channels, side, side
