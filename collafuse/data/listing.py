"""A list of image files, read: decoded or taken from the cache; what cannot be read is left out and named."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..config import DataSettings
from ..core.conditioning import Labels
from ..core.errors import DataError
from .cache import Entry, find, keep, key_of
from .captions import Captions
from .decoding import Decoded, decode
from .images import Transform
from .imageset import ImageSet
from .listening import Listener

MAX_IMAGE_BYTES = 8 << 30
"""The largest data set that is held in memory, in bytes of decoded pixels."""
SHOWN_PROBLEMS = 5


@dataclass(frozen=True, eq=False)
class Listing:
    """Image files below a folder and what is known of them before any is opened.

    files: their paths below root, [N]; labels: uint8 [N, K]; the rest as in ImageSet.
    """

    root: Path
    files: tuple[str, ...]
    labels: Labels
    label_names: tuple[str, ...]
    groups: NDArray[np.str_] | None = None
    test_part: NDArray[np.bool_] | None = None
    problems: tuple[str, ...] = ()
    captions: Captions | None = None


def read_listing(listing: Listing, settings: DataSettings, listener: Listener) -> ImageSet:
    """The listed images; those that cannot be read are left out, and the listener hears of them.

    Raises DataError when they would not fit in memory, or none can be read.
    """
    channels, side, _ = settings.image_shape
    transform, count = Transform(channels, side, settings.fit), len(listing.files)
    if settings.cache is None and count * channels * side * side > MAX_IMAGE_BYTES:
        raise DataError(
            f"{listing.root} holds {count} images, over {MAX_IMAGE_BYTES >> 30} GiB as {side}x{side}x{channels}, which "
            "is not held in memory; set data.cache to a folder, from which they are read as they are trained on, or "
            "use a smaller image_size."
        )
    if settings.cache is None:
        entry = _in_memory(_decoded(listing, transform, listener), count, transform)
    else:
        entry = _through_cache(settings.cache, listing, transform, listener)
    problems = (*listing.problems, *(reason for _, reason in entry.problems))
    if problems:
        listener.say(_summary(problems, listing.root))
    if not len(entry.pixels):
        raise DataError(f"none of the {count} images in {listing.root} can be read; the first: {problems[0]}")
    readable = np.ones(count, dtype=bool)
    readable[[place for place, _ in entry.problems]] = False
    return ImageSet(
        entry.pixels,
        listing.labels[readable],
        listing.label_names,
        entry.digests,
        np.asarray(listing.files, dtype=np.str_)[readable],
        None if listing.groups is None else listing.groups[readable],
        None if listing.test_part is None else listing.test_part[readable],
        problems,
        None if listing.captions is None else listing.captions[readable],
    )


def _decoded(listing: Listing, transform: Transform, listener: Listener) -> Iterator[Decoded]:
    """The files, decoded chunk by chunk and counted."""
    counter = listener.bar(f"reading {listing.root.name}", len(listing.files))
    for chunk in decode(listing.root, listing.files, transform):
        yield chunk
        counter.advance(chunk.count)


def _in_memory(chunks: Iterator[Decoded], count: int, transform: Transform) -> Entry:
    pixels = np.empty((count, transform.channels, transform.side, transform.side), dtype=np.uint8)
    digests = np.empty((count, 32), dtype=np.uint8)
    kept, seen = 0, 0
    problems: list[tuple[int, str]] = []
    for chunk in chunks:
        rows = slice(kept, kept + len(chunk.pixels))
        pixels[rows], digests[rows] = chunk.pixels, chunk.digests
        problems += [(seen + place, reason) for place, reason in chunk.problems]
        kept, seen = rows.stop, seen + chunk.count
    return Entry(pixels[:kept], digests[:kept], tuple(problems))


def _through_cache(cache: Path, listing: Listing, transform: Transform, listener: Listener) -> Entry:
    key, count = key_of(listing.root, listing.files, transform), len(listing.files)
    entry = find(cache, key, count, transform)
    if entry is None:
        problems = keep(cache, key, _decoded(listing, transform, listener))
        entry = find(cache, key, count, transform)
    if entry is None:  # nothing could be read, so nothing was kept
        entry = _in_memory(iter(()), 0, transform)
        return Entry(entry.pixels, entry.digests, problems)
    return entry


def _summary(problems: Sequence[str], root: Path) -> str:
    lines = [f"warning: {len(problems)} left out of {root}:", *(f"  {p}" for p in problems[:SHOWN_PROBLEMS])]
    if len(problems) > SHOWN_PROBLEMS:
        lines.append(f"  ... and {len(problems) - SHOWN_PROBLEMS} more; collafuse data CONFIG --json lists them all.")
    return "\n".join(lines)
