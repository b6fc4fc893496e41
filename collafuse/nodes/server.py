"""The server: it learns from releases alone and delivers intermediates. It never sees a clean image."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..config import Config, unknown_client
from ..core import release as releases
from ..core.atomic import write_bytes
from ..core.conditioning import Labels, conditions_from_labels, guided, indices_of, translate_labels
from ..core.errors import ConfigError, FileFormatError, MismatchError, RefusedError, UsageError
from ..core.intermediate import Intermediate
from ..core.metadata import Fields, parse_json
from ..core.noise import SIGMA_MAX, SIGMA_MIN, Cut, server_sigmas
from ..core.pairing import SIGMA_SLACK
from ..core.pictures import Pixels, contact_sheet, to_uint8
from ..core.samplers import EVALUATES_AT_END, STEPS, Counted, History, run
from ..learning import weights
from ..learning.denoiser import Denoiser
from ..learning.training import Observer, Trainer, TrainingData, fresh_denoiser
from .runfolder import NodeFolder
from .watching import NodeObserver

SUFFIX = ".safetensors"
SHEET_IMAGES = 8
"""Images per client on a sample sheet."""
MAX_DELIVERY = 1_000_000


@dataclass(frozen=True)
class Site:
    """What the server knows of a client: the cut of its release, which labels it shared (None: it kept them),
    and whether a simulation made the release."""

    sigma_cut: float
    label_names: tuple[str, ...] | None
    simulated: bool = False


def read_releases(folder: Path, *, accept_simulated: bool) -> dict[str, list[releases.Release]]:
    """The releases in a folder by client: ``NAME.safetensors``, or ``NAME.anything.safetensors`` for a later one.

    Raises UsageError for an empty folder, FileFormatError for a damaged file, RefusedError for a simulated one
    unless accepted, MismatchError when shapes differ or one client's cuts do.
    """
    found: dict[str, list[releases.Release]] = {}
    for path in sorted(folder.glob(f"[!.]*{SUFFIX}")):  # a hidden file is one that was never finished
        release = releases.read(path)
        if release.simulated and not accept_simulated:
            raise RefusedError(
                f"{path} is a simulated release, made by a process that also held the images; a server does not learn "
                "from it by mistake. Pass --accept-simulated if that is what you want."
            )
        found.setdefault(path.name.split(".")[0], []).append(release)
    if not found:
        raise UsageError(f"{folder} holds no releases (*{SUFFIX}); put each client's release file there.")
    shapes = {r.image_shape for rs in found.values() for r in rs}
    if len(shapes) > 1:
        raise MismatchError(f"the releases in {folder} hold images of different shapes: {sorted(shapes)}.")
    for name, of_client in found.items():
        if len({r.sigma_cut for r in of_client}) > 1:
            cuts = ", ".join(f"{r.sigma_cut:g}" for r in of_client)
            raise MismatchError(f"client {name!r} sent releases at different cuts (sigma {cuts}); keep those of one.")
    return found


def sites_of(found: Mapping[str, Sequence[releases.Release]]) -> dict[str, Site]:
    """What the releases say of their clients."""
    sites = {}
    for name, of_client in found.items():
        shared = None
        if all(r.labels is not None for r in of_client):
            # Only labels that really occur: a name without an image teaches nothing.
            used = [n for r in of_client for i, n in enumerate(r.label_names) if r.labels[:, i].any()]
            shared = tuple(dict.fromkeys(used))
        sites[name] = Site(of_client[0].sigma_cut, shared, any(r.simulated for r in of_client))
    return sites


def mixture_warning(sites: Mapping[str, Site]) -> str | None:
    """The warning that mixed cuts without labels need, or None."""
    cuts = {site.sigma_cut for site in sites.values()}
    if len(cuts) < 2 or all(site.label_names for site in sites.values()):
        return None
    return (
        "clients with different cuts do not all share labels: at a level between two cuts the server has learned only "
        "the sites below it, so what it delivers leans towards them. Share labels, or give the clients one cut."
    )


class Server:
    """A trained server: its model and what it may deliver to whom."""

    def __init__(
        self, config: Config, model: weights.TrainedModel, sites: Mapping[str, Site], device: torch.device
    ) -> None:
        self.config = config
        self.model = model
        self.sites = dict(sites)
        self.device = device
        model.denoiser.to(device)

    @classmethod
    def load(cls, folder: NodeFolder, device: torch.device) -> Server:
        """A server from its folder. Raises FileFormatError when it is not trained or damaged."""
        config = folder.read_config()
        return cls(config, weights.load(folder.weights, "server"), _read_sites(folder.sites), device)

    def deliver(
        self,
        client: str,
        count: int,
        *,
        labels: Sequence[str] | None = None,
        seed: int | None = None,
        batch_size: int = 256,
        half: bool = False,
        advance: Callable[[int], None] = lambda count: None,
    ) -> Intermediate:
        """``count`` intermediates for a client, at its own cut.

        labels: what every image shows (several: all at once); None deals the client's shared labels out evenly, or
        delivers without labels when it keeps them. Each image has its own noise, keyed by (seed, index), so that
        batch size does not change a picture; no seed takes the system's randomness. ``advance`` hears of each
        finished batch. Raises RefusedError for what the server has not learned: see :meth:`plan_labels` and
        :meth:`levels`.
        """
        if not 1 <= count <= MAX_DELIVERY:
            raise UsageError(f"count={count}; ask for 1 to {MAX_DELIVERY} images.")
        multi_hot = self.plan_labels(client, count, labels)
        sigmas = self.levels(client)
        base = secrets.randbits(64) if seed is None else seed
        parts = []
        for start in range(0, count, batch_size):
            rows = slice(start, min(start + batch_size, count))
            parts.append(self._sample(multi_hot, rows, sigmas, base))
            advance(rows.stop - rows.start)
        x = np.concatenate([x for x, _, _ in parts])
        previous = None
        if self.config.server.send_previous and parts[0][1] is not None:
            previous = np.concatenate([history.x0_hat.cpu().numpy() for _, history, _ in parts])
        return self.package(x, multi_hot, sigmas, parts[0][2], previous, half=half)

    def package(
        self,
        x: NDArray[np.float32],
        labels: Labels | None,
        sigmas: Sequence[float],
        nfe: int,
        previous: NDArray[np.float32] | None,
        *,
        sampler: str | None = None,
        half: bool = False,
    ) -> Intermediate:
        """Sampled images x [N, C, H, W] as they travel; previous is the last x0_hat, where that travels too."""
        settings, dtype = self.config.server.sampler, np.float16 if half else np.float32
        return Intermediate(
            x=x.astype(dtype),
            sigma=sigmas[-1],
            labels=labels,
            label_names=self.model.label_names if labels is not None else (),
            server_model=self.model.id,
            sampler=sampler or settings.name,
            nfe=nfe,
            guidance=settings.guidance,
            previous_x0_hat=None if previous is None else previous.astype(dtype),
            previous_sigma=None if previous is None else sigmas[-2],
        )

    def site(self, client: str) -> Site:
        """What is known of a client. Raises ConfigError for a name that nobody has, RefusedError for a client that
        the server has not learned from."""
        if client not in self.sites and client not in self.config.clients:
            raise unknown_client(client, self.sites)
        if client not in self.sites:
            raise RefusedError(
                f"the server has no release of client {client!r}; it learned from {', '.join(self.sites)}. "
                "Deliver to one of these, or train again with that client's release."
            )
        return self.sites[client]

    def handover_sigma(self, client: str) -> float:
        """The level at which this client takes over: its released cut times its configured handover."""
        cut = Cut(self.site(client).sigma_cut)
        settings = self.config.clients.get(client)
        if settings is None:
            return cut.sigma
        configured = settings.cut.resolve().sigma
        if abs(configured - cut.sigma) > SIGMA_SLACK * cut.sigma:
            raise MismatchError(
                f"client {client!r} released at sigma {cut.sigma:g}, the configuration says {configured:g}; "
                "make both agree, since a level below the release cannot be delivered."
            )
        return settings.handover_sigma

    def plan_labels(self, client: str, count: int, labels: Sequence[str] | None) -> Labels | None:
        """Multi-hot labels [count, K] in the model's order, or None for images without labels.

        A label is delivered to a client only where it was released at or below that client's cut: above a cut the
        server has learned only the sites whose cuts lie below. Raises RefusedError otherwise.
        """
        site = self.site(client)
        if labels is None and not site.label_names:
            return None
        allowed = self.deliverable(client)
        if labels is not None:
            indices_of(labels, self.model.label_names)
            for label in labels:
                if label not in allowed:
                    raise RefusedError(
                        f"label {label!r} was not released at or below sigma {site.sigma_cut:g}, the cut of "
                        f"client {client!r}; deliverable to it are {', '.join(allowed) or 'unlabelled images only'}."
                    )
        multi_hot = np.zeros((count, len(self.model.label_names)), dtype=np.uint8)
        if labels is not None:
            multi_hot[:, indices_of(labels, self.model.label_names)] = 1
        else:
            columns = np.asarray(indices_of(site.label_names or (), self.model.label_names))
            # In blocks, as evenly as it goes: 0 0 0 1 1 1 2 2.
            multi_hot[np.arange(count), columns[np.arange(count) * len(columns) // count]] = 1
        return multi_hot

    def deliverable(self, client: str) -> tuple[str, ...]:
        """The labels that may be delivered to a client."""
        cut = self.site(client).sigma_cut
        known = {n for s in self.sites.values() if s.sigma_cut <= cut * (1 + SIGMA_SLACK) for n in s.label_names or ()}
        return tuple(name for name in self.model.label_names if name in known)

    def levels(self, client: str, sampler: str | None = None) -> list[float]:
        """The server's noise levels for a client, from SIGMA_MAX down to where it takes over.

        ``sampler`` stands in for the configured one. Raises ConfigError for a schedule that would ask the denoiser
        about levels where nothing was learned.
        """
        sigmas = server_sigmas(self.handover_sigma(client), self.config.server.sampler.steps)
        name = sampler or self.config.server.sampler.name
        evaluated = sigmas if name in EVALUATES_AT_END else sigmas[:-1]
        lowest = Cut(self.site(client).sigma_cut).lowest_trained
        if evaluated and min(evaluated) < lowest * (1 - SIGMA_SLACK):
            raise ConfigError(
                f"server.sampler ({name}, {self.config.server.sampler.steps} steps) would evaluate at sigma "
                f"{min(evaluated):.4g}, below {lowest:.4g} where the release of {client!r} teaches nothing; "
                f"use fewer steps, or give clients.{client}.handover at least 1.05."
            )
        return sigmas

    @torch.inference_mode()
    def _sample(
        self, labels: Labels | None, rows: slice, sigmas: Sequence[float], seed: int
    ) -> tuple[NDArray[np.float32], History | None, int]:
        """One batch: x at the last level, the sampler's memory, and the network evaluations per image."""
        count = rows.stop - rows.start
        conditions = conditions_from_labels(
            None if labels is None else labels[rows], count, len(self.model.label_names)
        )
        start = start_noise(range(rows.start, rows.stop), self.model.denoiser.image_shape, seed)
        x = torch.from_numpy(start).to(self.device) * SIGMA_MAX
        model = Counted(self.model.denoiser)
        guidance = self.config.server.sampler.guidance if labels is not None else 1.0
        denoise = guided(model, torch.from_numpy(conditions).to(self.device), guidance)
        x, state = run(STEPS[self.config.server.sampler.name], denoise, x, sigmas)
        return x.float().cpu().numpy(), state, model.nfe


def start_noise(indices: range, image_shape: tuple[int, int, int], seed: int) -> NDArray[np.float32]:
    """Standard normal noise [N, C, H, W], each image's own stream keyed by (seed, index)."""
    rows = [np.random.Generator(np.random.Philox([seed, i])).standard_normal(image_shape) for i in indices]
    return np.stack(rows).astype(np.float32)


def train_server(
    config: Config,
    found: Mapping[str, Sequence[releases.Release]],
    folder: NodeFolder,
    device: torch.device,
    observer: Observer,
    *,
    resume: bool = False,
    trackers: Sequence[str] = (),
) -> Server:
    """Train the high-noise denoiser on releases alone and write its weights."""
    sites = sites_of(found)
    if (warning := mixture_warning(sites)) is not None:
        observer.note(f"warning: {warning}")
    label_names = tuple(sorted({name for site in sites.values() for name in site.label_names or ()}))
    data, settings = training_data(found, label_names), config.server.training
    shape = next(iter(found.values()))[0].image_shape
    if shape != config.data.image_shape:
        raise MismatchError(
            f"the releases hold images of shape {shape}, the configuration says {config.data.image_shape}."
        )
    denoiser = fresh_denoiser(config.server.network, shape, len(label_names), data, settings, "server")
    model = weights.TrainedModel(
        denoiser, "server", label_names, float(data.sigma_floor.min()), SIGMA_MAX, settings.steps
    )

    untrained = Server(config, model, sites, device)
    for name in sites:
        untrained.levels(name)  # what could not be delivered is refused now, not after the training

    def sheet(averaged: Denoiser) -> Pixels:
        server = Server(config, replace(model, denoiser=averaged), sites, device)
        parts = [server.deliver(name, SHEET_IMAGES, seed=settings.seed).x for name in sites]
        return contact_sheet(to_uint8(np.concatenate(parts)), columns=SHEET_IMAGES)

    def ready() -> None:
        # Not before a resume is accepted: both must stay those of the weights that lie there.
        folder.write_config(config.for_server())
        _write_sites(folder.sites, sites)

    watching = NodeObserver(folder.path, observer, trackers, sheet)
    try:
        trained = Trainer(denoiser, data, settings, folder.path, device, watching).run(resume, ready)
    finally:
        watching.close()
    weights.save(folder.weights, replace(model, denoiser=trained))
    return Server.load(folder, device)


def training_data(found: Mapping[str, Sequence[releases.Release]], label_names: tuple[str, ...]) -> TrainingData:
    """All releases as one training set; an image whose labels were kept carries "no label".

    A release at SIGMA_MAX teaches nothing and is left out. Raises RefusedError when nothing else is there.
    """
    sites = sites_of(found)
    each = [(name, r) for name, rs in found.items() for r in rs if Cut(r.sigma_cut).lowest_trained < SIGMA_MAX]
    if not each:
        raise RefusedError(
            f"every release stands at sigma {SIGMA_MAX:g}, which is pure noise: the clients do everything themselves "
            "and no server can learn. Lower a cut, or train the clients alone."
        )
    conditions = []
    for name, release in each:
        # A site that shares its labels in one release and keeps them in another keeps them.
        labels = release.labels if sites[name].label_names is not None else None
        if labels is not None:
            labels = translate_labels(labels, release.label_names, label_names)
        conditions.append(conditions_from_labels(labels, len(release.z), len(label_names)))
    floors = [np.full(len(release.z), release.sigma_cut, dtype=np.float32) for _, release in each]
    return TrainingData(
        images=torch.from_numpy(np.concatenate([release.z for _, release in each])),
        conditions=torch.from_numpy(np.concatenate(conditions)),
        sigma_floor=torch.from_numpy(np.concatenate(floors)),
        sigma_high=SIGMA_MAX,
    )


def _write_sites(path: Path, sites: Mapping[str, Site]) -> None:
    values: dict[str, Any] = {name: vars(site) for name, site in sites.items()}
    write_bytes(path, json.dumps(values, indent=2).encode(), overwrite=True)


def _read_sites(path: Path) -> dict[str, Site]:
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
        sites[name] = Site(sigma_cut, names, simulated)
    return sites
