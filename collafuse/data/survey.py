"""A dry look at the data before training: what each site holds, what its release will contain, what is wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..config import ClientSettings, Config
from ..core.pictures import Pixels, contact_sheet
from .dealing import SiteData, load_site, load_sites
from .imageset import ImageSet
from .listening import UNHEARD, Listener
from .overlaps import Overlap, overlaps

SHEET_IMAGES = 64


@dataclass(frozen=True)
class ReleasePlan:
    """What a site's release will contain. labels: their names, or None where the site keeps them. text: the encoder of
    its captions' numbers, or None where there are none or the site keeps them.

    size_bytes: of the tensors; the file has a header of a few hundred bytes more.
    """

    images: int
    copies_left_out: int
    sigma_cut: float
    labels: tuple[str, ...] | None
    text: str | None
    size_bytes: int


@dataclass(frozen=True)
class SiteSurvey:
    """What one site holds. labels: how many of the images to train on carry each; groups: how many there are;
    captions: how many have one, and what one says; None without text."""

    train: int
    held_out: int
    labels: Mapping[str, int]
    without_label: int
    groups: int | None
    captions: tuple[int, str] | None
    problems: tuple[str, ...]
    release: ReleasePlan


@dataclass(frozen=True)
class Survey:
    """What was found. sheets: a picture of each site's images, [1, h, w, 3]."""

    image_shape: tuple[int, int, int]
    sites: Mapping[str, SiteSurvey]
    overlaps: tuple[Overlap, ...]
    sheets: Mapping[str, Pixels]


def survey(config: Config, client: str | None = None, listener: Listener = UNHEARD) -> Survey:
    """Read the data of every site, or of one client alone, and look at it; nothing is written.

    Raises DataError and ConfigError as training would.
    """
    sites = load_sites(config, listener) if client is None else {client: load_site(config, client, listener)}
    return Survey(
        image_shape=config.data.image_shape,
        sites={name: _site(site, config.client(name)) for name, site in sites.items()},
        overlaps=tuple(overlaps({name: site.parts for name, site in sites.items()})),
        sheets={name: sheet(site.train) for name, site in sites.items()},
    )


def _site(site: SiteData, settings: ClientSettings) -> SiteSurvey:
    counts = site.train.labels.sum(axis=0, dtype=np.int64).tolist()
    return SiteSurvey(
        train=len(site.train),
        held_out=len(site.held_out),
        labels=dict(zip(site.train.label_names, counts, strict=True)),
        without_label=int((~site.train.labels.any(axis=1)).sum()),
        groups=None if site.train.groups is None else len(np.unique(site.train.groups)),
        captions=_captions(site.train),
        problems=site.train.problems,
        release=_release(site.train, settings),
    )


def _captions(images: ImageSet) -> tuple[int, str] | None:
    if images.text is None or images.captions is None:
        return None
    found = [caption for caption in images.captions.tolist() if caption]
    return len(found), next(iter(found), "")


def _release(images: ImageSet, settings: ClientSettings) -> ReleasePlan:
    """Float16 images, an id of 16 bytes each, and where they are shared a byte per label and two per number of text;
    equal images once."""
    count = len(np.unique(images.digests, axis=0))
    names = images.label_names if settings.share_labels else None
    text = images.text.space if settings.share_text and images.text is not None else None
    each = 2 * math.prod(images.pixels.shape[1:]) + 16 + len(names or ()) + 2 * (0 if text is None else text.width)
    return ReleasePlan(
        images=count,
        copies_left_out=len(images) - count,
        sigma_cut=settings.cut.resolve().sigma,
        labels=names,
        text=None if text is None else text.encoder,
        size_bytes=count * each,
    )


def sheet(images: ImageSet) -> Pixels:
    """Some of the images, evenly spaced, side by side."""
    rows = np.unique(np.linspace(0, len(images) - 1, min(SHEET_IMAGES, len(images))).astype(np.int64))
    return contact_sheet(images.pixels[rows].transpose(0, 2, 3, 1))
