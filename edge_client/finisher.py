"""Finishing: the client's half of the sampler, from where the client takes over to an image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collafuse.core import bundle as bundles
from collafuse.core.conditioning import (
    MAX_GUIDANCE,
    Conditions,
    check_one_each,
    check_same_text,
    dealt_row,
    guided,
    indices_of,
    same_labels,
)
from collafuse.core.errors import MismatchError, UsageError
from collafuse.core.intermediate import Intermediate, Source
from collafuse.core.noise import client_sigmas
from collafuse.core.pairing import check_guidance, check_pair, check_stated, conditions_for
from collafuse.core.pictures import to_uint8
from collafuse.core.samplers import STEPS, Counted, run
from collafuse.core.texts import Prompts

from . import proof
from .choice import open_fastest
from .denoiser import OnnxDenoiser, require_step
from .providers import AUTO, CPU, default_batch_size, most_at_once
from .session import Say, open_session


@dataclass(frozen=True)
class Settings:
    """How to finish; what is not given comes from the bundle. labels: what all images show, where it is chosen here.
    prompts: what the images show, in turn, where it is chosen here."""

    steps: int
    sampler: str
    guidance: float
    labels: tuple[str, ...] | None = None
    prompts: Prompts | None = None

    def describe(self) -> dict[str, str]:
        """Name and value of each setting, for a picture's metadata."""
        text = {"steps": str(self.steps), "sampler": self.sampler, "guidance": str(self.guidance)}
        if self.labels is not None:
            text["labels"] = ", ".join(self.labels)
        if self.prompts is not None:
            text["prompts"] = f"{len(self.prompts)}, {self.prompts.digest[:16]}"
        return text


class Finisher:
    """A loaded bundle that finishes intermediates. Make one with :meth:`load`."""

    def __init__(self, bundle: bundles.Bundle, model: OnnxDenoiser, settings: Settings) -> None:
        self.bundle = bundle
        self.settings = settings
        self.nfe = 0
        """Network evaluations per image in the last batch, guidance counted."""
        self.model = model
        """The denoiser, which knows what it runs on."""

    @property
    def provider(self) -> str:
        """The name of the provider that evaluates the bundle."""
        return self.model.provider

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        provider: str = CPU,
        threads: int | None = None,
        steps: int | None = None,
        sampler: str | None = None,
        guidance: float | None = None,
        trust: Path | None = None,
        say: Say = lambda text: None,
    ) -> Finisher:
        """Check a bundle, load it into onnxruntime and run its known-answer test.

        The first time on a machine this happens in a process of its own before it happens here; see ``proof``.

        provider: a name of :data:`providers.PROVIDERS`, or "auto" for the fastest that works. threads: per evaluation,
        by default the physical cores, at most 4. trust: a file of public keys, one of which has to have signed the
        bundle, see ``trust.require``. ``say`` hears which provider was chosen and what takes long. Raises
        FileFormatError for a damaged or foreign bundle, MismatchError for one that holds a whole graph, UsageError for
        an unknown sampler or provider or an impossible number of threads, RuntimeMissingError for a provider that does
        not really run the bundle here, and TrustError for a bundle that is not trusted.
        """
        path = Path(path)
        bundle = bundles.read(path)
        if trust is not None:
            from .trust import require  # here, because most devices start without

            say(f"The bundle is {require(bundle, str(path), trust)}.")
        info = bundle.info
        require_step(info, str(path))
        settings = Settings(
            steps=info.steps if steps is None else steps,
            sampler=sampler or info.sampler,
            guidance=info.guidance if guidance is None else guidance,
        )
        if settings.sampler not in STEPS:
            raise UsageError(f"sampler {settings.sampler!r} is not known; use one of {', '.join(STEPS)}.")
        if not 0.0 <= settings.guidance <= MAX_GUIDANCE:
            raise UsageError(
                f"guidance={settings.guidance}; expected a number from 0 (labels and text ignored) to "
                f"{MAX_GUIDANCE:g}; 1 is plain."
            )
        check_guidance(settings.guidance, info)
        if not 1 <= settings.steps <= bundles.MAX_STEPS:
            raise UsageError(f"steps={settings.steps}; expected a whole number from 1 to {bundles.MAX_STEPS}.")
        proof.require(bundle, say)
        if provider == AUTO:
            return cls(bundle, open_fastest(path, bundle, threads, say), settings)
        return cls(bundle, open_session(bundle, provider, threads, say), settings)

    def showing(self, labels: Sequence[str]) -> Finisher:
        """The same for images that all show these labels, chosen here: for intermediates that come without, as those of
        a site do that keeps its labels from the server. Raises MismatchError for a name that the bundle does not know.
        """
        indices_of(labels, self.bundle.info.label_names)
        return Finisher(self.bundle, self.model, replace(self.settings, labels=tuple(dict.fromkeys(labels))))

    def reading(self, prompts: Prompts) -> Finisher:
        """The same for images that show these prompts in turn, chosen here, for intermediates that come without text.

        Raises MismatchError unless the bundle was trained with text of the same encoder.
        """
        check_same_text(prompts.text.space, self.bundle.info.text, "the file of prompts")
        return Finisher(self.bundle, self.model, replace(self.settings, prompts=prompts))

    def finish(self, intermediate: Intermediate, batch_size: int | None = None) -> NDArray[np.uint8]:
        """Finished images, uint8 [N, H, W, C]. Raises MismatchError when the intermediate does not fit.

        batch_size: images per evaluation at most, by default what suits provider and image size.
        """
        channels, height, width = self.bundle.info.image_shape
        none = np.empty((0, height, width, channels), np.uint8)
        return np.concatenate([none, *self.batches(intermediate, batch_size)])

    def batches(self, intermediate: Source, batch_size: int | None = None) -> Iterator[NDArray[np.uint8]]:
        """As :meth:`finish`, a batch at a time, so that a large job needs little memory."""
        batch_size = self.check(intermediate, batch_size)
        for start in range(0, len(intermediate), batch_size):
            yield self.finish_block(intermediate, start, batch_size)[1]

    def check(self, intermediate: Source, batch_size: int | None = None) -> int:
        """The batch size, by default the one that suits provider and image size; at most what the provider takes.

        Raises MismatchError when the intermediate does not fit the bundle, UsageError for an impossible size or more
        prompts than images.
        """
        if batch_size is not None and batch_size < 1:
            raise UsageError(f"batch size {batch_size}; expected at least 1.")
        self.check_fits(intermediate)
        if self.settings.labels is not None and intermediate.labelled:
            made_for = ", ".join(intermediate.used_labels) or "none of the labels"
            raise MismatchError(
                f"the intermediates were made for {made_for} and are finished as that; leave "
                f"{', '.join(self.settings.labels)} out, or let the server deliver for it."
            )
        if self.settings.prompts is not None:
            check_one_each(len(intermediate), len(self.settings.prompts))
            if intermediate.text_space is not None:
                raise MismatchError(
                    "the intermediates were made for text and are finished as that; leave --text out, or let the "
                    "server deliver for it."
                )
        wanted = batch_size or default_batch_size(self.provider, self.bundle.info.image_shape)
        return most_at_once(self.provider, wanted)

    def check_fits(self, intermediate: Source) -> None:
        """Raise MismatchError, naming both values, unless the bundle can finish these with what is chosen here."""
        check_pair(intermediate, self.bundle.info)
        self.check_stated(intermediate.labelled, intermediate.text_space is not None)

    def check_stated(self, labelled: bool, with_text: bool) -> None:
        """Raise MismatchError where neither this nor what is chosen here says of images what has to be said."""
        settings = self.settings
        labelled, with_text = labelled or settings.labels is not None, with_text or settings.prompts is not None
        check_stated(labelled, with_text, self.bundle.info)

    def finish_block(self, intermediate: Source, start: int, count: int) -> tuple[Intermediate, NDArray[np.uint8]]:
        """At most ``count`` images from ``start`` on: what was delivered, and it finished, uint8 [n, H, W, C].

        Nothing else of the intermediate is read or held. Raises MismatchError when an image does not come out finite.
        """
        block = intermediate.block(slice(start, start + count))
        x = self._trajectory(block, self._conditions(block, start, len(intermediate)))
        if not np.isfinite(x).all():
            raise MismatchError(
                f"the images from {start} on do not come out finite: the intermediate holds values up to "
                f"{np.abs(block.x).max():.3g}, at sigma {block.sigma:g} up to {1 + 6 * block.sigma:.3g} are expected; "
                "let the server deliver it again."
            )
        return block, to_uint8(x)

    def _trajectory(self, block: Intermediate, conditions: Conditions) -> NDArray[np.float32]:
        model = Counted(self.model)
        denoise = guided(model, conditions, self.settings.guidance)
        sigmas = client_sigmas(block.sigma, self.settings.steps, self.bundle.info.sigma_low)
        history = block.history(slice(None)) if self.settings.sampler == "dpmpp_2m" else None
        x: NDArray[Any] = block.x.astype(np.float32)
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused by whoever asked
            x, _ = run(STEPS[self.settings.sampler], denoise, x, sigmas, history)
        self.nfe = model.nfe
        return x

    def _conditions(self, block: Intermediate, start: int, total: int) -> Conditions:
        """What the images from ``start`` on, of so many, show: what was asked of the server and what is chosen here."""
        settings, info = self.settings, self.bundle.info
        if settings.labels is not None:
            labels = same_labels(len(block), settings.labels, info.label_names)
            block = replace(block, labels=labels, label_names=info.label_names)
        if settings.prompts is not None:
            rows = dealt_row(np.arange(start, start + len(block)), total, len(settings.prompts))
            block = replace(block, text=settings.prompts.text.take(rows))
        return conditions_for(block, info.space)
