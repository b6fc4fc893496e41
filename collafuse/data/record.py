"""A site's split, written down: which image is trained on and which is held out."""

from __future__ import annotations

import csv
import io

from .dealing import SiteData

COLUMNS = ("part", "image", "group", "pixels")


def split_csv(site: SiteData) -> str:
    """One line per image of a site: train or held_out, what a person knows it by, its group, and the SHA-256 of its
    decoded pixels, by which it is known whatever its file is called."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for part, images in (("train", site.train), ("held_out", site.held_out)):
        sources = [""] * len(images) if images.sources is None else images.sources.tolist()
        groups = [""] * len(images) if images.groups is None else images.groups.tolist()
        for source, group, digest in zip(sources, groups, images.digests, strict=True):
            writer.writerow((part, source, group, digest.tobytes().hex()))
    return text.getvalue()
