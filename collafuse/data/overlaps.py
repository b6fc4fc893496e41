"""What lies at two sites although it should not: groups, equal images, and near-duplicates.

Near-duplicates are found by a difference hash (dHash, N. Krawetz 2013): an image is shrunk to 9x8 grey levels and each
is compared with its right neighbour, which gives 64 bits that a change of size, format or brightness hardly changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..core.rows import Rows
from .imageset import ImageSet

SMALLEST_SIDE = 16
"""Below this, different images look alike to a hash of 9x8 grey levels."""
MAX_BITS = 10
"""Hashes of near-duplicates differ in at most this many of 64 bits, and agree in at least one of four bands of 16."""
MAX_LEVELS = 6.0
"""And the shrunk images, once equally bright, in at most this many of 256 grey levels on average."""
MAX_BRIGHTER = 16.0
"""And in their mean by at most this many."""
MAX_NEIGHBOURS = 256
"""How far apart two images of one band may stand in sorted order; only crowds of flat images stand farther."""


@dataclass(frozen=True)
class Overlap:
    """What stands at two sites. kind: group, equal or near; first, second: a site and what it calls the image."""

    kind: str
    first: tuple[str, str]
    second: tuple[str, str]


def overlaps(sites: Mapping[str, Sequence[ImageSet]]) -> list[Overlap]:
    """Every group, image and near-duplicate that two of these sites hold in any of their parts, each pair once."""
    if len(sites) < 2:
        return []
    names = list(sites)
    parts = [(row, part) for row, held in enumerate(sites.values()) for part in held if len(part)]
    site = np.repeat([row for row, _ in parts], [len(part) for _, part in parts])
    sources = [source for _, part in parts for source in _sources(part)]
    found = _shared_groups(sites)
    digests = [digest.tobytes() for _, part in parts for digest in part.digests]
    pairs = {"equal": _equal_pairs(digests, site), "near": _near_pairs([part for _, part in parts], site)}
    seen: set[tuple[int, int]] = set()
    for kind, rows in pairs.items():
        for a, b in rows:
            if (a, b) not in seen:
                seen.add((a, b))
                found.append(Overlap(kind, (names[site[a]], sources[a]), (names[site[b]], sources[b])))
    return found


def describe(found: list[Overlap]) -> str | None:
    """A warning that counts what was found and names one of each kind; None when there is nothing."""
    if not found:
        return None
    words = {"group": "groups", "equal": "equal images", "near": "near-duplicates"}
    lines = []
    for kind, word in words.items():
        of_kind = [one for one in found if one.kind == kind]
        if of_kind:
            (site, source), (other, twin) = of_kind[0].first, of_kind[0].second
            shown = f"{source} at {site} and {other}" if source == twin else f"{source} at {site}, {twin} at {other}"
            lines.append(f"{len(of_kind)} {word} stand at two sites, such as {shown}")
    return f"warning: {'; '.join(lines)}."


def _sources(images: ImageSet) -> list[str]:
    return [f"image {i}" for i in range(len(images))] if images.sources is None else images.sources.tolist()


def _shared_groups(sites: Mapping[str, Sequence[ImageSet]]) -> list[Overlap]:
    found: list[Overlap] = []
    first_site: dict[str, str] = {}
    for name, parts in sites.items():
        for group in sorted({group for part in parts if part.groups is not None for group in part.groups.tolist()}):
            if group in first_site:
                found.append(Overlap("group", (first_site[group], group), (name, group)))
            first_site.setdefault(group, name)
    return found


def _equal_pairs(digests: list[bytes], site: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Rows of equal images at two sites: the first of each with one at every other site."""
    holders: dict[bytes, dict[int, int]] = {}
    for row, digest in enumerate(digests):
        holders.setdefault(digest, {}).setdefault(int(site[row]), row)
    return [(rows[0], row) for held in holders.values() for rows in [[*held.values()]] for row in rows[1:]]


def _near_pairs(parts: list[ImageSet], site: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Rows of near-duplicates at two sites."""
    if min(parts[0].pixels.shape[2:]) < SMALLEST_SIDE:
        return []
    small = np.concatenate([shrunk(part.pixels) for part in parts])
    hashes = difference_hash(small)
    found = set()
    for band in hashes.view("<u2").reshape(-1, 4).T:
        order = np.lexsort((hashes, band))
        for apart in range(1, min(MAX_NEIGHBOURS, len(order) - 1) + 1):
            first, second = order[:-apart], order[apart:]
            together = band[first] == band[second]
            if not together.any():
                break
            first, second = first[together], second[together]
            near = (site[first] != site[second]) & (_bits(hashes[first] ^ hashes[second]) <= MAX_BITS)
            first, second = first[near], second[near]
            difference = small[first] - small[second]
            brighter = difference.mean(axis=(1, 2), keepdims=True)
            alike = np.abs(difference - brighter).mean(axis=(1, 2)) <= MAX_LEVELS
            alike &= np.abs(brighter[:, 0, 0]) <= MAX_BRIGHTER
            found |= {
                (min(a, b), max(a, b)) for a, b in zip(first[alike].tolist(), second[alike].tolist(), strict=True)
            }
    return sorted(found)


def shrunk(pixels: Rows, chunk: int = 4096) -> NDArray[np.float32]:
    """Images [N, C, H, W] as mean grey levels [N, 8, 9] of equal parts."""
    height, width = pixels.shape[2:]
    tops, lefts = (np.arange(8) * height // 8, np.arange(9) * width // 9)
    sizes = np.diff([*tops, height])[:, None] * np.diff([*lefts, width])
    parts = []
    for start in range(0, len(pixels), chunk):
        grey = pixels[start : start + chunk].mean(axis=1, dtype=np.float32)
        sums = np.add.reduceat(np.add.reduceat(grey, tops, axis=1), lefts, axis=2)
        parts.append(sums / sizes.astype(np.float32))
    return np.concatenate(parts)


def difference_hash(small: NDArray[np.float32]) -> NDArray[np.uint64]:
    """64 bits [N] of shrunk images [N, 8, 9]: whether each level lies below its right neighbour's."""
    bits = (small[:, :, 1:] > small[:, :, :-1]).reshape(len(small), 64)
    return np.packbits(bits, axis=1).view("<u8").reshape(-1)


def _bits(values: NDArray[np.uint64]) -> NDArray[np.int64]:
    """How many bits of each are set."""
    return np.unpackbits(values[:, None].view(np.uint8), axis=1).sum(axis=1, dtype=np.int64)
