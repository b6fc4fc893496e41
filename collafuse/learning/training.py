"""The one training loop, for either node.

Every random number is keyed by (seed, step), and every batch by its place in an endless shuffled stream, so
a resumed training sees exactly what an uninterrupted one sees. On several ranks each draws the numbers of the whole
batch and keeps those of its own images; only the masks of ``dropout`` are a rank's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..config import NetworkSettings, TrainingSettings
from ..core.conditioning import ConditionSpace
from ..core.errors import CollaFuseError, ConfigError, first_line
from . import checkpoint
from .compiled import COMPILING_FAILS_WITH
from .denoiser import Denoiser
from .distributed import ALONE, Ranks
from .examples import TrainingData, batch_rows, estimate_sigma_data, to_float
from .feeding import feed
from .holding import Holding, Replicated, Sharded
from .losses import LossWindow, by_heart
from .magnitude import force_magnitudes
from .objective import OBJECTIVE, denoising_loss, draw_levels, least_loss, lowest_level
from .observer import Observer
from .seeds import keyed_seed

EMA_RAMP = 0.1
"""Early on the average forgets faster: its half-life is at most this share of the images seen so far."""
FINAL_LEARNING_RATE = 0.01
MANNER = frozenset({"accumulate", "compile", "recompute", "shard"})
"""Settings that say how a step is computed, not what; a training may go on with others."""


def fresh_denoiser(
    network: NetworkSettings,
    image_shape: tuple[int, int, int],
    space: ConditionSpace,
    data: TrainingData,
    settings: TrainingSettings,
    node: str,
) -> Denoiser:
    """A denoiser to train on this data, with fresh weights that are the same for the same seed and node.

    ``sigma_data: auto`` is estimated from the data. torch's own random state is put back.
    """
    sigma_data = estimate_sigma_data(data) if settings.sigma_data == "auto" else settings.sigma_data
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(keyed_seed(settings.seed, "weights", node))
        return Denoiser(network, image_shape, space, sigma_data)


def learning_rate_at(step: int, settings: TrainingSettings) -> float:
    """Linear warm-up, then a cosine down to 1 % at the last step."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    progress = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return settings.learning_rate * (FINAL_LEARNING_RATE + (1 - FINAL_LEARNING_RATE) * cosine)


def _all_warm_up(settings: TrainingSettings) -> str:
    """What to say of a training whose learning rate rises to the end."""
    reached = learning_rate_at(settings.steps - 1, settings)
    return (
        f"training.warmup_steps={settings.warmup_steps} for a training of {settings.steps} steps: the learning rate "
        f"rises to the end, to {reached:g} of {settings.learning_rate:g}; take fewer warmup_steps, or more steps."
    )


class Batch(NamedTuple):
    """A step's images, or a part of them: z [B, C, H, W] at levels sigma_floor [B], to train at sigma [B]."""

    z: Tensor
    conditions: Tensor
    sigma_floor: Tensor
    sigma: Tensor
    noise: Tensor

    def take(self, rows: slice) -> Batch:
        return Batch(*(tensor[rows] for tensor in self))


class Trainer:
    """Trains a denoiser on one node's data. ``run`` starts or goes on; ``ema`` holds the averaged weights."""

    def __init__(
        self,
        denoiser: Denoiser,
        data: TrainingData,
        settings: TrainingSettings,
        folder: Path,
        device: torch.device,
        observer: Observer,
        start: str = "fresh",
        ranks: Ranks = ALONE,
    ) -> None:
        """``start`` says which weights the denoiser holds now; a training resumes from a checkpoint of the same
        settings, network, data and start. On several ``ranks`` the first one alone writes and tells the observer.
        Raises ConfigError when the batch cannot be dealt to them evenly."""
        self.settings = settings
        self.folder = folder
        self.device = device
        self.observer = observer
        self.ranks = ranks
        if settings.compile == "graphs" and ranks.size > 1:
            raise ConfigError(
                f"training.compile=graphs is for one process, here are {ranks.size}; use compile=true with several."
            )
        self._share = ranks.share(settings.batch_size)
        self._warned = False
        self._parts = _parts(self._share.stop - self._share.start, settings.accumulate)
        denoiser.mixed_precision = settings.mixed_precision
        denoiser.network.recompute = settings.recompute
        in_parts = settings.shard and ranks.size > 1
        self._held: Holding = (Sharded if in_parts else Replicated)(denoiser, device, ranks)
        self.model, self.ema = self._held.model, self._held.ema
        self._denoise: nn.Module = self.model
        self.data = data.to(device)
        self._feed = feed(self.data.images, self._rows, device)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=settings.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=settings.weight_decay,
            fused=device.type in ("cuda", "cpu"),
        )
        plain = {
            "training": settings.model_dump(exclude=set(MANNER)),
            "network": denoiser.network_settings.model_dump(),
            "sigma_data": denoiser.sigma_data,
            "objective": OBJECTIVE,
            "start": start,
        }
        self.identity = checkpoint.Identity(checkpoint.digest_of_settings(plain), data.digest())

    def run(self, resume: bool = False, ready: Callable[[int], None] = lambda step: None) -> Denoiser:
        """Train to the configured number of steps; returns the denoiser with averaged weights, on every rank.

        ``ready`` is called once a resume has been accepted, with the step that it goes on from (0: none is done), and
        before the first step, on the first rank: the place to refuse that, or to write what belongs to this training
        beside its weights. Raises MismatchError when a checkpoint to resume from was made with another configuration
        or data.
        """
        start = self._resume() if resume else 0
        if self.ranks.leads:
            ready(start)
            if start < self.settings.steps <= self.settings.warmup_steps:
                self.observer.note(f"warning: {_all_warm_up(self.settings)}")
            self.observer.started(start, self.settings.steps)
        self.model.train()
        with self._feed:
            averaged = self._train(start)
        return self._held.averaged() if averaged is None else averaged

    def _resume(self) -> int:
        """The step to go on from; the first rank reads the checkpoint, the others get what it holds."""
        start = 0
        tensors: dict[str, Tensor] = {}
        if self.ranks.leads:
            start, tensors = checkpoint.newest(self.folder / "checkpoints", self.identity, self.observer.note)
        start = self.ranks.same(start, self.device)
        if start > 0:
            self._held.fill(self.optimizer, tensors)
        return start

    def _train(self, start: int) -> Denoiser | None:
        """Every step from ``start`` on; returns the averages after the last one, None where no step is left."""
        pixels = math.prod(self.data.images.shape[1:])
        window = LossWindow(self.device, self.model.dtype, self.ranks, self.data.sigma_floor, pixels)
        # Dropout draws from torch's global generator; it is seeded per step and put back afterwards.
        devices = [self.device] if self.device.type == "cuda" else []
        place = () if self.ranks.leads else (self.ranks.rank,)
        with torch.random.fork_rng(devices=devices):
            if start < self.settings.steps:
                self._denoise = self._held.joined(self._fastest())
            for step in range(start, self.settings.steps):
                torch.manual_seed(keyed_seed(self.settings.seed, "dropout", step, *place))
                window.add(*self.take_step(step))
                if (averaged := self._after(step + 1, window)) is not None:
                    return averaged
        return None

    def _fastest(self) -> nn.Module:
        """The model, compiled where that is asked for and works, on all ranks or on none."""
        if not self.settings.compile:
            return self.model
        graphs = self.settings.compile == "graphs"
        compiled: Any = torch.compile(self.model, dynamic=False, mode="reduce-overhead" if graphs else None)
        batch = self._batch(0)
        failure = None
        try:  # torch compiles at the first call, forwards and backwards, and records graphs at the next two
            for _ in range(3 if graphs else 1):
                self.optimizer.zero_grad(set_to_none=True)
                self._part_losses(compiled, batch.take(self._parts[0])).mean().backward()
        except COMPILING_FAILS_WITH as error:
            failure = first_line(error)
        self.optimizer.zero_grad(set_to_none=True)
        if self.ranks.total(torch.tensor(float(failure is not None), device=self.device)) == 0:
            return compiled
        if self.ranks.leads:
            where = failure or "another process said so"
            asked = str(self.settings.compile).lower()
            self.observer.note(f"training.compile={asked} does not work here and is left out: {where}")
        return self.model

    def take_step(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """One optimiser step; returns levels, losses and the least losses [B] of this rank's images."""
        settings = self.settings
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(step, settings)
        batch = self._batch(step)
        self.optimizer.zero_grad(set_to_none=True)
        losses = [self._learn(batch.take(part), last=part == self._parts[-1]) for part in self._parts]
        nn.utils.clip_grad_norm_(self.model.parameters(), settings.gradient_clip)
        self.optimizer.step()
        force_magnitudes(self.model)
        self._update_ema(step)
        return batch.sigma, torch.cat(losses), self.least_losses(batch.sigma_floor, batch.sigma)

    def _learn(self, part: Batch, last: bool) -> Tensor:
        """Add a part's gradient to the step's; the ranks exchange them once, with the last part."""
        with nullcontext() if last else self._held.unjoined(self._denoise):
            losses = self._part_losses(self._denoise, part)
            (losses.mean() / len(self._parts)).backward()
        return losses.detach()

    def _part_losses(self, denoise: nn.Module, part: Batch) -> Tensor:
        return self.losses(
            lambda x, level: denoise(x, level, part.conditions), part.z, part.sigma_floor, part.sigma, part.noise
        )

    def losses(
        self, denoise: Callable[[Tensor, Tensor], Tensor], z: Tensor, floor: Tensor, sigma: Tensor, noise: Tensor
    ) -> Tensor:
        """The objective per image [B]; a study of weights overrides it."""
        return denoising_loss(denoise, z, floor, sigma, noise, self.model.sigma_data)

    def least_losses(self, floor: Tensor, sigma: Tensor) -> Tensor:
        """The least of it per image [B]; overridden with it."""
        return least_loss(floor, sigma, self.model.sigma_data)

    def examples(self, rows: Tensor, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """What a step learns from: images [B, C, H, W] of its rows, the level each has already [B], and the lowest
        level to train each at [B]. A baseline that noises at every step overrides it."""
        floor = self.data.sigma_floor[rows]
        return to_float(self._feed.batch(step, rows)), floor, lowest_level(floor)

    def _rows(self, step: int) -> Tensor:
        """The rows of this rank's share of a step's batch."""
        return batch_rows(len(self.data), self.settings.batch_size, step, self.settings.seed)[self._share]

    def _batch(self, step: int) -> Batch:
        """This rank's images of a step, ready to learn from. Nothing here makes the host wait for the device."""
        settings, data, mine, dtype = self.settings, self.data, self._share, self.model.dtype
        generator = torch.Generator(self.device).manual_seed(keyed_seed(settings.seed, "step", step))
        rows = _sent(self._rows(step), self.device)
        z, floor, low = self.examples(rows, step)
        uniform = torch.rand(3, settings.batch_size, generator=generator, device=self.device)[:, mine]
        if data.horizontal_flip:
            z = torch.where((uniform[0] < 0.5).reshape(-1, 1, 1, 1), z.flip(-1), z)
        space, share = self.model.space, settings.label_dropout
        conditions = space.with_parts_dropped(data.conditions[rows], uniform[1], share)
        sigma = draw_levels(uniform[2], low, data.sigma_high, settings.log_sigma_mean, settings.log_sigma_std)
        shape = (settings.batch_size, *z.shape[1:])
        noise = torch.randn(shape, generator=generator, device=self.device)[mine]
        return Batch(*(tensor.to(dtype) for tensor in (z, conditions, floor, sigma, noise)))

    def _update_ema(self, step: int) -> None:
        images = (step + 1) * self.settings.batch_size
        halflife = min(self.settings.ema_halflife_images, EMA_RAMP * images)
        self._held.average(1 - 0.5 ** (self.settings.batch_size / halflife))

    def _after(self, step: int, window: LossWindow) -> Denoiser | None:
        """What is due once ``step`` steps are done; the first rank does it, with the losses of all.

        Returns the averages after the last step, on every rank: gathered once, for the sheet and for :meth:`run`.
        """
        settings, last = self.settings, step == self.settings.steps
        log_now, save_now = (step % every == 0 or last for every in (settings.log_every, settings.checkpoint_every))
        if log_now or save_now:
            losses = window.all()
            if not math.isfinite(losses.mean):
                raise CollaFuseError(f"the loss is {losses.mean} by step {step}; {self._remedy}")
            if log_now:
                window.restart()
        tensors = self._to_save(step) if save_now else {}
        averaged = self._held.averaged() if last or step % settings.sample_every == 0 else None
        if not self.ranks.leads:
            return averaged if last else None
        if log_now:
            if losses.by_heart and not self._warned:
                self._warned = True
                self.observer.note(f"warning: {by_heart(step, losses)}")
            self.observer.logged(
                losses.record() | {"step": step, "learning_rate": learning_rate_at(step - 1, settings)}
            )
        if save_now:
            checkpoint.save(self.folder / "checkpoints", step, tensors, self.identity)
        if averaged is not None:
            self.observer.sampled(step, averaged)
        return averaged if last else None

    def _to_save(self, step: int) -> dict[str, Tensor]:
        """What a checkpoint keeps, on the first rank. Raises CollaFuseError, on every rank, where it is not finite: the
        losses, which were computed before the step, do not tell."""
        tensors = self._held.tensors(self.optimizer)
        bad = sum(int((~tensor.isfinite()).sum()) for tensor in tensors.values()) if self.ranks.leads else 0
        if (bad := self.ranks.same(bad, self.device)) > 0:
            raise CollaFuseError(
                f"{bad} values of weights and moments are not finite after step {step}; {self._remedy}"
            )
        return tensors

    @property
    def _remedy(self) -> str:
        return (
            f"lower learning_rate={self.settings.learning_rate} or take another seed, and train into a new run folder."
        )


def _parts(count: int, accumulate: int) -> list[slice]:
    """A rank's images in as many parts. Raises ConfigError when they do not divide evenly."""
    if count % accumulate:
        raise ConfigError(
            f"training.accumulate={accumulate} does not divide the {count} images of a step in each process; "
            "use a divisor of it, or another batch_size."
        )
    each = count // accumulate
    return [slice(start, start + each) for start in range(0, count, each)]


def _sent(values: Tensor, device: torch.device) -> Tensor:
    """Values of the host on the device, without waiting for what the device still has to do."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)
