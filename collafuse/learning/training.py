"""The one training loop, for either node.

Every random number is keyed by (seed, step), and every batch by its place in an endless shuffled stream, so
a resumed training sees exactly what an uninterrupted one sees. On several ranks each draws the numbers of the whole
batch and keeps those of its own images; only the masks of ``dropout`` are a rank's own.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..config import NetworkSettings, TrainingSettings
from ..core.conditioning import ConditionSpace
from ..core.errors import CollaFuseError, ConfigError, first_line
from . import checkpoint
from .autoguidance import EARLY_SHARE, Early
from .compiled import COMPILING_FAILS_WITH
from .denoiser import Denoiser
from .distributed import ALONE, Ranks
from .early import EarlyWeights
from .examples import Batch, TrainingData, batch_rows, estimate_sigma_data, parts_of, sent, to_float
from .feeding import feed
from .holding import Holding, Replicated, Sharded
from .losses import Losses, LossWindow, by_heart
from .magnitude import force_magnitudes
from .objective import OBJECTIVE, denoising_loss, draw_levels, least_loss, lowest_level
from .observer import Observer
from .schedule import all_warm_up, learning_rate_at
from .seeds import keyed_seed
from .validation import Draw, Validation, parted

EMA_RAMP = 0.1
"""Early on the average forgets faster: its half-life is at most this share of the images seen so far."""


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


class Trainer:
    """Trains a denoiser on one node's data. ``run`` starts or goes on; ``ema`` holds the averaged weights.

    learned: the rows of the data that it learns from. step_kept: the step whose weights ``run`` returned, the last one
    unless images were kept back to choose by. early: an earlier version of these, for autoguidance, on the first rank;
    None where there is none. early_weights: says before the first step whether there will be.
    """

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
        self._parts = parts_of(self._share.stop - self._share.start, settings.accumulate)
        denoiser.mixed_precision = settings.mixed_precision
        denoiser.network.recompute = settings.recompute
        in_parts = settings.shard and ranks.size > 1
        self._held: Holding = (Sharded if in_parts else Replicated)(denoiser, device, ranks)
        self.model, self.ema = self._held.model, self._held.ema
        self._denoise: nn.Module = self.model
        self.data = data.to(device)
        self.learned, kept_back = parted(data, settings)
        self._validation = Validation(kept_back, settings.seed) if len(kept_back) else None
        self.step_kept = settings.steps
        self.early: Early | None = None
        self.early_weights = EarlyWeights(round(EARLY_SHARE * settings.steps))
        self._feed = feed(self.data.images, self._rows, device)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=settings.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=settings.weight_decay,
            fused=device.type in ("cuda", "cpu"),
        )
        plain = {
            "training": checkpoint.settings_that_count(settings),
            "network": denoiser.network_settings.model_dump(),
            "sigma_data": denoiser.sigma_data,
            "objective": OBJECTIVE,
            "start": start,
        }
        self.identity = checkpoint.Identity(checkpoint.digest_of_settings(plain), data.digest())

    def run(self, resume: bool = False, ready: Callable[[int], None] = lambda step: None) -> Denoiser:
        """Train to the configured number of steps; returns the denoiser with averaged weights, on every rank: those of
        the last step, or with ``validation`` of the one with the least loss on what was kept back.

        ``ready`` is called once a resume has been accepted, with the step that it goes on from (0: none is done), and
        before the first step, on the first rank: the place to refuse that, or to write what belongs to this training
        beside its weights. Raises MismatchError when a checkpoint to resume from was made with another configuration
        or data.
        """
        start = self._resume() if resume else 0
        if self.ranks.leads:
            ready(start)
            if start < self.settings.steps:
                self._say_first()
            self.observer.started(start, self.settings.steps)
        self.model.train()
        with self._feed:
            averaged = self._train(start)
        chosen = self._chosen(self._held.averaged()) if averaged is None else averaged
        self.early = self.early_weights.before(self.step_kept, chosen)
        return chosen

    def _say_first(self) -> None:
        if self.settings.steps <= self.settings.warmup_steps:
            self.observer.note(f"warning: {all_warm_up(self.settings)}")
        if self._validation is not None:
            kept_back, count = self._validation.images, len(self.data)
            self.observer.note(f"keeping back {kept_back} of {count} images to choose the best step by")

    def _resume(self) -> int:
        """The step to go on from; the first rank reads the checkpoint, the others get what it holds."""
        start = 0
        tensors: dict[str, Tensor] = {}
        if self.ranks.leads:
            start, tensors = checkpoint.newest(self.folder / "checkpoints", self.identity, self.observer.note)
        start = self.ranks.same(start, self.device)
        if start > 0:
            self._held.fill(self.optimizer, tensors)
            self.early_weights.restore(tensors)
            if self._validation is not None:
                self._validation.restore(tensors)
        return start

    def _train(self, start: int) -> Denoiser | None:
        """Every step from ``start`` on; returns the averages after the last one, None where no step is left."""
        pixels = math.prod(self.data.images.shape[1:])
        window = LossWindow(self.device, self.model.dtype, self.ranks, self.data.sigma_floor[self.learned], pixels)
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

    def examples(self, images: Tensor, rows: Tensor, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """What a step learns from: images [B, C, H, W] of its rows, as they lie in the data; the level each has already
        [B]; and the lowest level to train each at [B]. A baseline that noises at every step overrides it."""
        floor = self.data.sigma_floor[rows]
        return images, floor, lowest_level(floor)

    def levels(self, uniform: Tensor, low: Tensor) -> Tensor:
        """The level of each image [B] from a number in [0, 1)."""
        settings = self.settings
        return draw_levels(uniform, low, self.data.sigma_high, settings.log_sigma_mean, settings.log_sigma_std)

    def _rows(self, step: int) -> Tensor:
        """The rows of this rank's share of a step's batch."""
        order = batch_rows(len(self.learned), self.settings.batch_size, step, self.settings.seed)
        return self.learned[order[self._share]]

    def _batch(self, step: int) -> Batch:
        """This rank's images of a step, ready to learn from. Nothing here makes the host wait for the device."""
        settings, data, mine, dtype = self.settings, self.data, self._share, self.model.dtype
        generator = torch.Generator(self.device).manual_seed(keyed_seed(settings.seed, "step", step))
        rows = sent(self._rows(step), self.device)
        z, floor, low = self.examples(to_float(self._feed.batch(step, rows)), rows, step)
        uniform = torch.rand(3, settings.batch_size, generator=generator, device=self.device)[:, mine]
        if data.horizontal_flip:
            z = torch.where((uniform[0] < 0.5).reshape(-1, 1, 1, 1), z.flip(-1), z)
        space, share = self.model.space, settings.label_dropout
        conditions = space.with_parts_dropped(data.conditions[rows], uniform[1], share)
        sigma = self.levels(uniform[2], low)
        shape = (settings.batch_size, *z.shape[1:])
        noise = torch.randn(shape, generator=generator, device=self.device)[mine]
        return Batch(*(tensor.to(dtype) for tensor in (z, conditions, floor, sigma, noise)))

    @torch.no_grad()
    def _validate(self, step: int, averaged: Denoiser) -> dict[str, float]:
        """The loss on what was kept back, for the log; on the first rank."""
        validation = self._validation
        if validation is None:
            return {}
        size, losses = self._parts[0].stop, []
        for draw in validation.draws():
            batch = self._noised(draw)
            parts = (slice(start, start + size) for start in range(0, len(batch.z), size))
            losses += [self._part_losses(averaged, batch.take(part)) for part in parts]
        loss = float(torch.cat(losses).cpu().double().mean())
        validation.seen(step, loss, averaged)
        return {"validation_loss": loss}

    def _noised(self, draw: Draw) -> Batch:
        """A part of what was kept back, noised as it is each time, with the labels that it has."""
        place, dtype = -1 - draw.number, self.model.dtype  # no step's
        rows = draw.rows.to(self.device)
        images = to_float(self.data.take(draw.rows).to(self.device))
        z, floor, low = self.examples(images, rows, place)
        generator = torch.Generator(self.device).manual_seed(keyed_seed(self.settings.seed, "step", place))
        noise = torch.randn(z.shape, generator=generator, device=self.device)
        sigma = self.levels(draw.uniform.to(self.device), low)
        return Batch(*(tensor.to(dtype) for tensor in (z, self.data.conditions[rows], floor, sigma, noise)))

    def _chosen(self, averaged: Denoiser) -> Denoiser:
        """The averages to keep after the last step, given those of that step; on every rank."""
        if self._validation is None:
            return averaged
        best = self._validation.best
        # The averages of a training that is held whole are its own, and stay those of its last step.
        chosen = copy.deepcopy(averaged) if averaged is self.ema else averaged
        if best is not None:  # on the first rank alone
            chosen.load_state_dict(best.weights)
        self.ranks.copy_from_first(list(chosen.state_dict().values()))
        self.step_kept = self.ranks.same(self.settings.steps if best is None else best.step, self.device)
        return chosen

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
        validate_now = log_now and self._validation is not None
        sample_now, keep_now = last or step % settings.sample_every == 0, self.early_weights.due(step)
        averaged = self._held.averaged() if sample_now or validate_now or keep_now else None
        if averaged is not None and keep_now and self.ranks.leads:
            self.early_weights.take(averaged)
        if log_now or save_now:
            losses = window.all()
            if not math.isfinite(losses.mean):
                raise CollaFuseError(f"the loss is {losses.mean} by step {step}; {self._remedy}")
            if log_now and self.ranks.leads:
                self._log(step, losses, self._validate(step, averaged) if averaged is not None else {})
            if log_now:
                window.restart()
        tensors = self._to_save(step) if save_now else {}
        if save_now and self.ranks.leads:
            checkpoint.save(self.folder / "checkpoints", step, tensors, self.identity)
        kept = self._chosen(averaged) if last and averaged is not None else None
        if self.ranks.leads and averaged is not None and sample_now:
            self.observer.sampled(step, averaged if kept is None else kept)
        return kept

    def _log(self, step: int, losses: Losses, validation: dict[str, float]) -> None:
        """Tell the observer what was learned since it last was; on the first rank."""
        if losses.by_heart and not self._warned:
            self._warned = True
            self.observer.note(f"warning: {by_heart(step, losses, chooses=self._validation is not None)}")
        self.observer.logged(
            losses.record() | validation | {"step": step, "learning_rate": learning_rate_at(step - 1, self.settings)}
        )
        if validation and step == self.settings.steps and self._validation is not None:
            self._validation.say(step, validation["validation_loss"], self.observer)

    def _to_save(self, step: int) -> dict[str, Tensor]:
        """What a checkpoint keeps, on the first rank. Raises CollaFuseError, on every rank, where it is not finite: the
        losses, which were computed before the step, do not tell."""
        tensors = self._held.tensors(self.optimizer)
        bad = sum(int((~tensor.isfinite()).sum()) for tensor in tensors.values()) if self.ranks.leads else 0
        if (bad := self.ranks.same(bad, self.device)) > 0:
            raise CollaFuseError(
                f"{bad} values of weights and moments are not finite after step {step}; {self._remedy}"
            )
        best = {} if self._validation is None else self._validation.saved()
        return tensors | best | self.early_weights.saved()

    @property
    def _remedy(self) -> str:
        return (
            f"lower learning_rate={self.settings.learning_rate} or take another seed, and train into a new run folder."
        )
