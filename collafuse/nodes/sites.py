"""What a server knows of its sites: the releases it learns from, and their cuts and labels."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..config import Config
from ..core import release as releases
from ..core import rows
from ..core.atomic import write_bytes
from ..core.conditioning import ConditionSpace, check_same_text, translate_labels
from ..core.errors import FileFormatError, MismatchError, RefusedError, UsageError
from ..core.metadata import Fields, parse_json
from ..core.noise import LOWEST_TRAINED_ABOVE_CUT, SIGMA_MAX, SIGMA_MIN, Cut
from ..learning.examples import TrainingData
from ..learning.observer import Observer
from .planned import Planned

SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Site:
    """What the server knows of a client: the cut of its release, which labels it shared (None: it kept them or has
    none; empty: its images show none of them), whether a simulation made the release, and whether it released
    statistics, which stand at no level themselves (sigma_cut is then the one that the configuration gives the client).
    text: whether it shared its images' text."""

    sigma_cut: float
    label_names: tuple[str, ...] | None
    simulated: bool = False
    statistics: bool = False
    text: bool = False

    @property
    def taught_from(self) -> float:
        """The level from which on its release teaches something."""
        return 0.0 if self.statistics else self.sigma_cut


def read_releases(folder: Path, *, accept_simulated: bool) -> dict[str, list[releases.Release]]:
    """The releases in a folder by client: ``NAME.safetensors``, or ``NAME.anything.safetensors`` for a later one.

    Raises UsageError for an empty folder, FileFormatError for a damaged file, RefusedError for a simulated one
    unless accepted, MismatchError when shapes or text encoders differ, or one client's cuts do.
    """
    found: dict[str, list[releases.Release]] = {}
    paths = by_client(folder)
    in_memory = sum(path.stat().st_size for _, path in paths) <= rows.IN_MEMORY_BYTES
    for name, path in paths:
        release = releases.read(path, in_memory=in_memory)
        refuse_simulated(path, release.simulated, accept_simulated)
        found.setdefault(name, []).append(release)
    shapes = dict.fromkeys((name, r.image_shape) for name, rs in found.items() for r in rs)
    if len({shape for _, shape in shapes}) > 1:
        listed = ", ".join(f"{name} {list(shape)}" for name, shape in shapes)
        raise MismatchError(f"the releases in {folder} hold images of different shapes ({listed}); keep those of one.")
    encoders = dict.fromkeys((n, r.text.space.encoder) for n, rs in found.items() for r in rs if r.text is not None)
    if len({encoder for _, encoder in encoders}) > 1:
        listed = ", ".join(f"{name} {encoder}" for name, encoder in encoders)
        raise MismatchError(
            f"the releases in {folder} hold text of different encoders ({listed}), which cannot be learned together; "
            "let all sites that share text use one encoder."
        )
    for name, of_client in found.items():
        if len({r.sigma_cut for r in of_client}) > 1:
            cuts = ", ".join(f"{r.sigma_cut:g}" for r in of_client)
            raise MismatchError(f"client {name!r} sent releases at different cuts (sigma {cuts}); keep those of one.")
    return found


def by_client(folder: Path) -> list[tuple[str, Path]]:
    """The release files of a folder with the client of each. Raises UsageError when there is none."""
    paths = sorted(folder.glob(f"[!.]*{SUFFIX}"))  # a hidden file is one that was never finished
    if not paths:
        raise UsageError(f"{folder} holds no releases (*{SUFFIX}); put each client's release file there.")
    return [(path.name.split(".")[0], path) for path in paths]


def refuse_simulated(path: Path, simulated: bool, accept_simulated: bool) -> None:
    """Raise RefusedError for a release of a simulation that was not accepted."""
    if simulated and not accept_simulated:
        raise RefusedError(
            f"{path} is a simulated release, made by a process that also held the images; a server does not learn "
            "from it by mistake. Pass --accept-simulated if that is what you want."
        )


def sites_of(found: Mapping[str, Sequence[releases.Release]]) -> dict[str, Site]:
    """What the releases say of their clients."""
    sites = {}
    for name, of_client in found.items():
        shared = None
        labelled = [(r.label_names, r.labels) for r in of_client if r.labels is not None]
        if len(labelled) == len(of_client) and any(names for names, _ in labelled):
            # Only labels that really occur: a name without an image teaches nothing.
            used = [name for names, labels in labelled for i, name in enumerate(names) if labels[:, i].any()]
            shared = tuple(dict.fromkeys(used))
        text = all(r.text is not None for r in of_client)
        sites[name] = Site(of_client[0].sigma_cut, shared, any(r.simulated for r in of_client), text=text)
    return sites


def space_of(found: Mapping[str, Sequence[releases.Release]]) -> ConditionSpace:
    """What a server learns to be asked for: the labels and the text that its sites shared."""
    sites = sites_of(found)
    label_names = tuple(sorted({name for site in sites.values() for name in site.label_names or ()}))
    shared = [r.text.space for name, rs in found.items() if sites[name].text for r in rs if r.text is not None]
    return ConditionSpace(label_names, shared[0] if shared else None)


def refuse_twice(found: Mapping[str, Sequence[releases.Release]]) -> None:
    """Raise MismatchError where two files hold a release of the same images: they would count twice."""
    seen: dict[bytes, str] = {}
    for name, of_client in found.items():
        for release in of_client:
            ids = {one.tobytes() for one in release.ids}
            if again := ids & seen.keys():
                whose = dict.fromkeys((seen[next(iter(again))], name))
                raise MismatchError(
                    f"two release files of {' and '.join(whose)} hold the same {len(again)} noised images, which would "
                    "count twice; keep one of the files."
                )
            seen |= dict.fromkeys(ids, name)


def mixture_warning(sites: Mapping[str, Site]) -> str | None:
    """The warning that mixed cuts without labels need, or None."""
    cuts = {site.sigma_cut for site in sites.values()}
    if len(cuts) < 2 or all(site.label_names or site.text for site in sites.values()):
        return None
    return (
        "clients with different cuts do not all share labels or text: at a level between two cuts the server has "
        "learned only the sites below it, so what it delivers leans towards them. Share labels or text, or give the "
        "clients one cut."
    )


def check_names(config: Config, sites: Mapping[str, Site], observer: Observer) -> None:
    """Say which configured clients sent no release and which releases are of nobody configured.

    Raises MismatchError where such a release's name is almost that of a client without one: then it is misnamed.
    """
    missing = [name for name in config.clients if name not in sites]
    for name in sites:
        if name in config.clients:
            continue
        if close := difflib.get_close_matches(name, missing, n=1, cutoff=0.7):
            raise MismatchError(
                f"there is a release of {name!r} and none of client {close[0]!r}; rename the file to "
                f"{close[0]}{SUFFIX}, or add {name!r} to the configuration's clients."
            )
        observer.note(
            f"there is a release of {name!r}, whom the configuration does not name; it is delivered to at its cut, as "
            "with a handover of 1."
        )
    if missing:
        observer.note(f"no release of {', '.join(missing)}; the server learns from {', '.join(sites)} alone.")


def told(name: str, site: Site, release: releases.Release, space: ConditionSpace) -> Planned:
    """What the server learns that a release's images show. A site that shares its labels, or its text, in one release
    and keeps them in another keeps them."""
    labels, text = None, None
    if site.label_names is not None and release.labels is not None and release.label_names:
        labels = translate_labels(release.labels, release.label_names, space.label_names)
    if site.text and release.text is not None:
        check_same_text(release.text.space, space.text, f"a release of {name}")
        text = release.text
    return Planned(labels, text)


def training_data(
    found: Mapping[str, Sequence[releases.Release]], space: ConditionSpace, horizontal_flip: bool = False
) -> TrainingData:
    """All releases as one training set. An image whose labels and text were kept, or of a set without any, carries "no
    condition", as it is asked for later; one that shows none of the labels that were shared carries just that.
    horizontal_flip: mirror them at random while they are learned from.

    A release at SIGMA_MAX, or just below, teaches nothing and is left out. Raises RefusedError when nothing else is
    there.
    """
    sites = sites_of(found)
    each = [(name, r) for name, rs in found.items() for r in rs if Cut(r.sigma_cut).lowest_trained < SIGMA_MAX]
    if not each:
        raise RefusedError(
            f"every release stands at sigma {SIGMA_MAX / LOWEST_TRAINED_ABOVE_CUT:.1f} or above, which is pure noise: "
            "the clients do everything themselves and no server can learn. Lower a cut, or train the clients alone."
        )
    conditions = [told(name, sites[name], r, space).conditions(len(r.z), space) for name, r in each]
    floors = [np.full(len(release.z), release.sigma_cut, dtype=np.float32) for _, release in each]
    return TrainingData(
        images=_images([release.z for _, release in each]),
        conditions=torch.from_numpy(np.concatenate(conditions)),
        sigma_floor=torch.from_numpy(np.concatenate(floors)),
        sigma_high=SIGMA_MAX,
        horizontal_flip=horizontal_flip,
    )


def _images(parts: Sequence[rows.Rows]) -> torch.Tensor | rows.Rows:
    """The releases' images after one another: in memory where all of them are."""
    if all(isinstance(part, np.ndarray) for part in parts):
        return torch.from_numpy(np.concatenate([np.asarray(part) for part in parts]))
    return rows.JoinedRows(parts)


def write_sites(path: Path, sites: Mapping[str, Site]) -> None:
    values: dict[str, Any] = {name: vars(site) for name, site in sites.items()}
    write_bytes(path, json.dumps(values, indent=2).encode(), overwrite=True)


def read_sites(path: Path) -> dict[str, Site]:
    try:
        values = parse_json(path.read_bytes(), str(path))
    except OSError as error:
        raise FileFormatError(f"cannot read {path}: {error.strerror}; train the server again.") from error
    sites = {}
    for name in values:
        fields = Fields(values, str(path)).nested(name)
        sigma_cut = fields.number("sigma_cut", above=SIGMA_MIN, at_most=SIGMA_MAX)
        kept = fields.take("label_names")
        names = None if kept is None else Fields({"label_names": kept}, str(path)).names("label_names")
        # Servers of before this was recorded do not say, which is not a no.
        simulated = fields.boolean("simulated") if "simulated" in values[name] else True
        statistics = fields.boolean("statistics") if "statistics" in values[name] else False
        text = fields.boolean("text") if "text" in values[name] else False
        sites[name] = Site(sigma_cut, names, simulated, statistics, text)
    return sites
