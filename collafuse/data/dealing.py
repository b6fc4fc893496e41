"""Who holds which images: one data set dealt to clients, and each site's held-out share."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..config import ClientSettings, Config
from ..config.data import SplitSettings
from ..config.expression import parse
from ..core.conditioning import indices_of
from ..core.errors import DataError, MismatchError
from .captions import from_labels
from .datasets import load
from .imageset import ImageSet
from .listening import UNHEARD, Listener
from .overlaps import describe, overlaps

if TYPE_CHECKING:
    from .text import Embedder


@dataclass(frozen=True)
class SiteData:
    """What one site holds: images to train on and release, and images kept away from both."""

    train: ImageSet
    held_out: ImageSet

    @property
    def parts(self) -> tuple[ImageSet, ImageSet]:
        """Both."""
        return self.train, self.held_out


def load_site(config: Config, name: str, listener: Listener = UNHEARD) -> SiteData:
    """One site's data; other sites' folders are not touched when it has a path of its own.

    Raises DataError when nothing is left for it, ConfigError for an unknown client.
    """
    settings = config.client(name)
    text = _embedder(config, listener)
    if settings.path is not None:
        return _site(load(config.data, settings.path, listener), settings, name, config, text)
    sharing = {n: c for n, c in config.clients.items() if c.path is None}
    images = load(config.data, listener=listener)
    dealt = deal(images, config, sharing)[name]
    if config.data.split.by != "labels" and len(dealt) < len(images):
        listener.say(
            f"{len(images) - len(dealt)} of {len(images)} images are dealt to the other clients of the configuration; "
            f"set clients.{name}.path if all of these images are {name}'s own."
        )
    return _site(dealt, settings, name, config, text)


def load_sites(config: Config, listener: Listener = UNHEARD) -> dict[str, SiteData]:
    """Every site's data, for a process that plays all of them; a shared data set is read once."""
    sharing = {n: c for n, c in config.clients.items() if c.path is None}
    text = _embedder(config, listener)
    images = load(config.data, listener=listener) if sharing else None
    shared = deal(images, config, sharing) if images is not None else {}
    sites = {
        name: _site(load(config.data, c.path, listener) if c.path else shared[name], c, name, config, text)
        for name, c in config.clients.items()
    }
    if images is not None:
        unused = len(images) - sum(len(sites[name].train) + len(sites[name].held_out) for name in sharing)
        if unused:
            listener.say(f"{unused} of {len(images)} images belong to no site, since none there chooses them.")
    if (warning := describe(overlaps({name: site.parts for name, site in sites.items()}))) is not None:
        listener.say(warning)
    return sites


def deal(images: ImageSet, config: Config, clients: dict[str, ClientSettings]) -> dict[str, ImageSet]:
    """Deal a data set so that each image lies at one site; the same for the same seed. Raises DataError.

    Equal images of a set are dealt like any others; :mod:`.overlaps` finds them.
    """
    generator = np.random.Generator(np.random.Philox(config.data.seed))
    order = generator.permutation(len(images))
    split = config.data.split
    if split.by == "labels":
        owners = _by_labels(images, order, clients)
    elif split.by == "even":
        owners = np.empty(len(images), dtype=np.int64)
        owners[order] = np.arange(len(images)) % len(clients)
    elif split.by == "groups":
        owners = _by_groups(images, generator, clients)
    else:
        owners = _dirichlet(images, order, len(clients), split, generator)
    return {name: images.take(np.flatnonzero(owners == i)) for i, name in enumerate(clients)}


def _by_labels(images: ImageSet, order: NDArray[np.int64], clients: dict[str, ClientSettings]) -> NDArray[np.int64]:
    """Each image to a client that chooses it; where several do, to the one with fewest so far. -1 for nobody."""
    eligible = np.stack([chosen_rows(images, client.labels, name) for name, client in clients.items()], axis=1)
    owners = np.full(len(images), -1, dtype=np.int64)
    dealt = np.zeros(len(clients), dtype=np.int64)
    for row in order:
        candidates = np.flatnonzero(eligible[row])
        if len(candidates):
            owner = candidates[np.argmin(dealt[candidates])]
            owners[row] = owner
            dealt[owner] += 1
    return owners


def _by_groups(
    images: ImageSet, generator: np.random.Generator, clients: dict[str, ClientSettings]
) -> NDArray[np.int64]:
    """Whole groups, in random order, each to the client with fewest images so far among those that choose any of it.

    What of a group its client does not choose goes to nobody (-1), so that no group lies at two sites.
    """
    if images.groups is None:
        raise DataError(
            "data.split.by=groups needs to know what belongs together; set data.table.group or data.hub.group to the "
            "column that says it."
        )
    eligible = np.stack([chosen_rows(images, client.labels, name) for name, client in clients.items()], axis=1)
    groups, of_image = np.unique(images.groups, return_inverse=True)
    counts = np.zeros((len(groups), len(clients)), dtype=np.int64)
    np.add.at(counts, of_image, eligible)
    owner_of_group = np.full(len(groups), -1, dtype=np.int64)
    dealt = np.zeros(len(clients), dtype=np.int64)
    for group in generator.permutation(len(groups)):
        candidates = np.flatnonzero(counts[group])
        if len(candidates):
            owner = candidates[np.argmin(dealt[candidates])]
            owner_of_group[group] = owner
            dealt[owner] += counts[group, owner]
    owners = owner_of_group[of_image]
    return np.where(eligible[np.arange(len(images)), owners], owners, -1)


def _dirichlet(
    images: ImageSet,
    order: NDArray[np.int64],
    num_clients: int,
    split: SplitSettings,
    generator: np.random.Generator,
) -> NDArray[np.int64]:
    """For each label, or combination of the labels in ``over``, shares per client drawn from a Dirichlet distribution
    (Hsu et al. 2019)."""
    if split.over is None and images.label_names and (images.labels.sum(axis=1) != 1).any():
        raise DataError(
            "data.split.by=dirichlet draws shares for each label, but here images carry several or none; name a few in "
            "data.split.over, and shares are drawn for each combination of these."
        )
    columns = _columns(split.over or images.label_names, images.label_names, "data.split.over")
    _, combinations = np.unique(images.labels[:, columns], axis=0, return_inverse=True)
    combinations = combinations.reshape(-1)
    owners = np.empty(len(images), dtype=np.int64)
    for one in np.unique(combinations):
        rows = order[combinations[order] == one]
        shares = generator.dirichlet(np.full(num_clients, split.alpha))
        bounds = np.rint(np.cumsum(shares)[:-1] * len(rows)).astype(np.int64)
        for client, part in enumerate(np.split(rows, bounds)):
            owners[part] = client
    return owners


def chosen_rows(images: ImageSet, wanted: tuple[str, ...] | str | None, client: str) -> NDArray[np.bool_]:
    """Which images a client holds: with at least one label of a list, or those that fit an expression; None: all.

    Raises DataError for a label that the data does not have, naming the closest.
    """
    if wanted is None:
        return np.ones(len(images), dtype=bool)
    expression = parse(wanted) if isinstance(wanted, str) else None
    names = expression.names if expression else wanted
    columns = dict(zip(names, _columns(names, images.label_names, f"client {client!r}"), strict=True))
    if expression:
        return expression.rows(lambda name: images.labels[:, columns[name]].astype(bool))
    return np.asarray(images.labels[:, list(columns.values())].any(axis=1))


def _own_labels(
    images: ImageSet, wanted: tuple[str, ...] | str | None, attributes: tuple[str, ...] | None
) -> tuple[str, ...]:
    """The labels that describe a site's images: those it lists, else those of the set that really occur; where none
    does, all of them, since images that show none of a set's labels are not images of a set without any."""
    if isinstance(wanted, tuple):
        return wanted
    names = attributes or images.label_names
    columns = _columns(names, images.label_names, "data.attributes")
    found = tuple(name for name, column in zip(names, columns, strict=True) if images.labels[:, column].any())
    return found or tuple(names)


def _columns(names: Sequence[str], known: Sequence[str], who: str) -> list[int]:
    try:
        return indices_of(names, known)
    except MismatchError as error:
        raise DataError(f"{who}: {error}") from error


def keys_of(images: ImageSet) -> list[bytes]:
    """What decides an image's place: the group it belongs to, or its own pixels."""
    if images.groups is not None:
        return [group.encode() for group in images.groups.tolist()]
    return [digest.tobytes() for digest in images.digests]


def group_numbers(images: ImageSet) -> NDArray[np.int64]:
    """The same number [N] for images that share their place, counted from 0 in the order in which they come."""
    numbers: dict[bytes, int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys_of(images)], dtype=np.int64)


def _embedder(config: Config, listener: Listener) -> Embedder | None:
    """What makes numbers of captions; None where images have labels alone. First, so that a missing encoder is noticed
    before images are decoded."""
    if config.data.text is None:
        return None
    from .text import Embedder  # here, because images without text need no torch

    return Embedder(config.data.text, config.data.cache, listener)


def _site(
    images: ImageSet, settings: ClientSettings, name: str, config: Config, text: Embedder | None = None
) -> SiteData:
    """Keep a site's own labels, make numbers of its captions, and set its held-out share aside."""
    images = images.take(np.flatnonzero(chosen_rows(images, settings.labels, name)))
    images = images.with_labels(_own_labels(images, settings.labels, config.data.attributes))
    if text is not None:
        captions = from_labels(images.labels, images.label_names) if images.captions is None else images.captions
        images = replace(images, captions=captions, text=text.embed(captions))
    away = images.test_part
    if away is None:
        away = held_out_rows(keys_of(images), config.data.held_out, config.data.seed)
    if away.all():
        raise DataError(
            f"client {name!r} has {len(images)} images of which {len(images)} are held out; nothing is left to train "
            "on. Check its labels and path, hold less out, or deal the data another way (data.split)."
        )
    return SiteData(train=images.take(np.flatnonzero(~away)), held_out=images.take(np.flatnonzero(away)))


def held_out_rows(keys: Sequence[bytes], share: float, seed: int) -> NDArray[np.bool_]:
    """Which images are held out: those whose key (see :func:`keys_of`), hashed with the seed, falls below the share.

    An image's place depends on its own key and the seed alone: adding or removing others never moves it, and equal
    images, or all images of one group, lie on one side. So the count is not exact: of N different keys it is
    N * share on average, with a standard deviation of sqrt(N * share * (1 - share)).
    """
    key = f"held out {seed}".encode()
    hashes = b"".join(hashlib.blake2b(one, digest_size=8, key=key).digest() for one in keys)
    return np.frombuffer(hashes, dtype="<u8") < share * 2.0**64
