"""The server: it learns from releases alone and delivers intermediates. It never sees a clean image."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ..config import Config, unknown_client
from ..core.conditioning import (
    Conditions,
    ConditionSpace,
    Labels,
    check_one_each,
    check_same_text,
    dealt_labels,
    dealt_row,
    indices_of,
    same_labels,
)
from ..core.errors import CollaFuseError, MismatchError, RefusedError, UsageError, first_line
from ..core.intermediate import Intermediate
from ..core.noise import SIGMA_SLACK, Cut
from ..core.samplers import History, check_taught, evaluations, run
from ..core.texts import EncodedText
from ..data.imageset import ImageSet
from ..learning import gaussian, weights
from ..learning.autoguidance import AutoGuided
from ..learning.batchsize import evaluation_seconds, fastest_batch
from ..learning.compiled import CompiledDenoiser, SamplingDenoiser
from ..learning.denoiser import Denoiser, guided_together
from .planned import Planned, check_asked, planned_like
from .runfolder import NodeFolder
from .sites import Site, read_sites
from .streams import Stream, draw, server_step, streams
from .taught import refuse_untaught

SHEET_IMAGES = 8
"""Images per client on a sample sheet."""
MAX_DELIVERY = 1_000_000


class ServerModel(Protocol):
    """What a server learned: a network (``weights.TrainedModel``) or Gaussians (``gaussian.TrainedGaussians``)."""

    @property
    def denoiser(self) -> Denoiser | AutoGuided | gaussian.GaussianDenoiser: ...
    @property
    def label_names(self) -> tuple[str, ...]: ...
    @property
    def space(self) -> ConditionSpace: ...
    @property
    def id(self) -> str: ...
    @property
    def mixes_labels(self) -> bool: ...
    def levels(self, handover: float, num_steps: int) -> list[float]: ...
    def begin(self, noise: NDArray[np.float32], sigma: float, conditions: Conditions) -> NDArray[np.float32]: ...


class Server:
    """A trained server: its model and what it may deliver to whom."""

    def __init__(self, config: Config, model: ServerModel, sites: Mapping[str, Site], device: torch.device) -> None:
        self.config = config
        self.model = model
        self.sites = dict(sites)
        self.device = device
        layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
        model.denoiser.to(device, memory_format=layout)  # type: ignore[call-overload]
        model.denoiser.mixed_precision = config.server.mixed_precision
        self._compiled: CompiledDenoiser | None = None

    @classmethod
    def load(cls, folder: NodeFolder, device: torch.device) -> Server:
        """A server from its folder. Raises FileFormatError when it is not trained or damaged, MismatchError where it
        is to be guided by an earlier version and has none."""
        config = folder.read_config()
        if config.server.kind == "statistics":
            return cls(config, gaussian.load(folder.weights), read_sites(folder.sites), device)
        model = weights.load_sampling(folder.weights, "server", config.server.sampler.autoguidance)
        return cls(config, model, read_sites(folder.sites), device)

    @property
    def denoiser(self) -> SamplingDenoiser:
        """What is evaluated: the model's own, or a compiled one."""
        return self._compiled or self.model.denoiser

    def fastest_batch(self) -> int:
        """The batch size at which this device makes nearly the most images per second; takes seconds. Raises
        CollaFuseError where not even one image fits."""
        return fastest_batch(evaluation_seconds(self.denoiser, self.config.server.sampler.guidance, self.device))

    def compile(self, rows: int, note: Callable[[str], None]) -> None:
        """Sample batches of ``rows`` images with compiled kernels from now on, as :class:`CompiledDenoiser` says;
        ``note`` hears where that does not work. Raises UsageError for a server of statistics."""
        if not isinstance(self.model.denoiser, Denoiser | AutoGuided):
            raise UsageError("a server of statistics evaluates no network; leave compiling out.")
        self._compiled = CompiledDenoiser(self.model.denoiser, rows, note)

    def deliver(
        self,
        client: str,
        count: int,
        *,
        labels: Sequence[str] | None = None,
        text: EncodedText | None = None,
        planned: Planned | None = None,
        seed: int | None = None,
        batch_size: int = 256,
        half: bool = False,
        advance: Callable[[int], None] = lambda count: None,
    ) -> Intermediate:
        """``count`` intermediates for a client, where it takes over.

        labels: what every image shows (several: all at once). text: what the images show, dealt out to them in turn.
        None of both deals the client's shared labels out evenly, or delivers without labels when it keeps them.
        planned: what each image shows, in place of both. Each image has its own noise, keyed by (seed, index), so that
        batch size does not change a picture; no seed takes the system's randomness. A batch for which the device has no
        memory is halved and tried again. ``advance`` hears of each
        finished batch. Raises RefusedError for what the server has not learned: see :meth:`plan` and
        :meth:`levels`.
        """
        if not 1 <= count <= MAX_DELIVERY:
            raise UsageError(f"count={count}; ask for 1 to {MAX_DELIVERY} images.")
        planned = planned or self.plan(client, count, labels, text)
        sigmas = self.levels(client)
        base = secrets.randbits(64) if seed is None else seed
        parts, start = [], 0
        while start < count:
            rows = slice(start, min(start + batch_size, count))
            try:
                parts.append(self._sample(planned.take(rows), rows, sigmas, base))
            except torch.OutOfMemoryError as error:
                if batch_size == 1:
                    raise CollaFuseError(
                        f"{self.device} has no memory for one image ({first_line(error)}); free some, or take another."
                    ) from error
                batch_size = max(1, min(batch_size, count) // 2)
                if self._compiled is not None:
                    self._compiled = self._compiled.of_rows(batch_size)
                continue
            advance(rows.stop - rows.start)
            start = rows.stop
        x = np.concatenate([x for x, _, _ in parts])
        previous = None
        if self.config.server.send_previous and parts[0][1] is not None:
            previous = np.concatenate([history.x0_hat.cpu().numpy() for _, history, _ in parts if history is not None])
        return self.package(x, planned, sigmas, parts[0][2], previous, half=half)

    def package(
        self,
        x: NDArray[np.float32],
        planned: Planned,
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
            labels=planned.labels,
            label_names=self.model.label_names if planned.labels is not None else (),
            server_model=self.model.id,
            sampler=sampler or settings.name,
            nfe=nfe,
            guidance=settings.guidance,
            previous_x0_hat=None if previous is None else previous.astype(dtype),
            previous_sigma=None if previous is None else sigmas[-2],
            text=planned.text,
            autoguidance=settings.autoguidance,
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
        """The level at which this client takes over: its released cut times its configured handover, or times 1 for one
        that the configuration does not name."""
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

    def plan(
        self,
        client: str,
        count: int,
        labels: Sequence[str] | None = None,
        text: EncodedText | None = None,
        rows: range | None = None,
    ) -> Planned:
        """What each image of a delivery shows, or these ``rows`` of it; with text and without labels no labels are
        dealt. Nothing of the other images is held.

        Raises RefusedError for what was not released at or below this client's cut, or was never learned, MismatchError
        for text of another encoder, UsageError for more texts than images.
        """
        indices = np.arange(count) if rows is None else np.arange(rows.start, rows.stop)
        shown = self.plan_labels(client, count, labels) if labels is not None or text is None else None
        if text is not None:
            check_asked(text.space, self.model.space.text)
            if not self.delivers_text(client):
                raise RefusedError(
                    f"no site released text at or below sigma {self.site(client).sigma_cut:g}, the cut of client "
                    f"{client!r}; ask without text, or choose it at the device (finish --text)."
                )
            check_one_each(count, len(text))
            text = text.take(dealt_row(indices, count, len(text)))
        self._check_learned(client, shown, text is not None)
        return Planned(None if shown is None else shown[indices], text)

    def plan_like(self, client: str, count: int, images: ImageSet, *, in_turn: bool = False) -> Planned:
        """What images show that are to stand beside these, see :func:`planned_like`; what the site keeps from the
        server is not asked for."""
        site, text = self.site(client), images.text is not None and self.site(client).text
        if images.text is not None and text:
            check_same_text(images.text.space, self.model.space.text, "the data")
        known, several = self.model.label_names, self.model.mixes_labels
        planned = planned_like(count, site.label_names, known, images, text=text, several=several, in_turn=in_turn)
        self._check_learned(client, planned.labels, text)
        return planned

    def _check_learned(self, client: str, shown: Labels | None, text: bool) -> None:
        """Raise RefusedError for labels [N, K], or none, with text or without, that the server never saw so. Only a
        training without dropout leaves such; statistics have a part of each label and one of all."""
        settings, names = self.config.server, self.model.label_names
        if settings.kind == "images" and settings.training.label_dropout == 0:
            asked = None if shown is None else [names[k] for k in np.flatnonzero(shown.any(axis=0))]
            refuse_untaught(client, self._taught(client), asked, text)

    def _taught(self, client: str) -> list[Site]:
        """The sites of which the server has learned at this client's cut; labels that no image shows say nothing."""
        cut = self.site(client).sigma_cut
        taught = [site for site in self.sites.values() if site.taught_from <= cut * (1 + SIGMA_SLACK)]
        return taught if self.model.label_names else [replace(site, label_names=None) for site in taught]

    def delivers_text(self, client: str) -> bool:
        """Whether text was released at or below this client's cut."""
        return any(site.text for site in self._taught(client))

    def plan_labels(self, client: str, count: int, labels: Sequence[str] | None) -> Labels | None:
        """Multi-hot labels [count, K] in the model's order, or None for images without labels. All absent for a client
        whose images show none of the labels that it shared.

        A label is delivered to a client only where it was released at or below that client's cut: above a cut the
        server has learned only the sites whose cuts lie below. Raises RefusedError otherwise, and for several labels
        at once where statistics of them were not released.
        """
        site = self.site(client)
        if labels is None and (site.label_names is None or not self.model.label_names):
            return None
        if labels is None:
            columns = indices_of(site.label_names or (), self.model.label_names)
            return dealt_labels(count, columns, len(self.model.label_names))
        try:
            self._check_labels(client, labels)
        except (MismatchError, RefusedError) as error:
            if site.label_names is not None:
                raise
            raise type(error)(
                f"{error} The labels of {client!r} stay at its site: ask without any, and choose them at the device "
                "(finish --label)."
            ) from error
        return same_labels(count, labels, self.model.label_names)

    def _check_labels(self, client: str, labels: Sequence[str]) -> None:
        """Raise MismatchError, or RefusedError, for labels that may not be delivered to a client."""
        indices_of(labels, self.model.label_names)
        if len(set(labels)) != 1 and not self.model.mixes_labels:
            raise RefusedError(
                f"labels {', '.join(labels) or 'of no kind'}: sites released statistics of one label at a time, so "
                "an image is asked for with exactly one, or without labels by a client that keeps them."
            )
        allowed = self.deliverable(client)
        for label in labels:
            if label not in allowed:
                raise RefusedError(
                    f"label {label!r} was not released at or below sigma {self.site(client).sigma_cut:g}, the cut of "
                    f"client {client!r}; deliverable to it are {', '.join(allowed) or 'unlabelled images only'}."
                )

    def deliverable(self, client: str) -> tuple[str, ...]:
        """The labels that may be delivered to a client."""
        known = {name for site in self._taught(client) for name in site.label_names or ()}
        return tuple(name for name in self.model.label_names if name in known)

    def levels(self, client: str, sampler: str | None = None) -> list[float]:
        """The server's noise levels for a client, down to where it takes over: from SIGMA_MAX, or that level alone.

        ``sampler`` stands in for the configured one. Raises ConfigError for a schedule that would ask the denoiser
        about levels where nothing was learned.
        """
        sigmas = self.model.levels(self.handover_sigma(client), self.config.server.sampler.steps)
        check_taught(sampler or self.config.server.sampler.name, sigmas, Cut(self.site(client).sigma_cut), client)
        return sigmas

    def begin(self, of: Sequence[Stream], planned: Planned, sigma: float) -> NDArray[np.float32]:
        """Images [N, C, H, W] at the first level of their way, from the first noise of their streams.

        planned: of these images.
        """
        noise = draw(of, self.model.denoiser.image_shape)
        return self.model.begin(noise, sigma, planned.conditions(len(noise), self.model.space))

    @torch.inference_mode()
    def _sample(
        self, planned: Planned, rows: slice, sigmas: Sequence[float], seed: int
    ) -> tuple[NDArray[np.float32], History | None, int]:
        """One batch: x at the last level, the sampler's memory, and the network evaluations per image."""
        conditions = planned.conditions(rows.stop - rows.start, self.model.space)
        own = streams(range(rows.start, rows.stop), seed)
        x = torch.from_numpy(self.begin(own, planned, sigmas[0])).to(self.device)
        name = self.config.server.sampler.name
        guidance = self.config.server.sampler.guidance if planned.conditioned else 1.0
        denoise = guided_together(self.denoiser, torch.from_numpy(conditions).to(self.device), guidance)
        x, state = run(server_step(name, own), denoise, x, sigmas)
        return x.float().cpu().numpy(), state, evaluations(name, sigmas, guided=guidance != 1.0)
