"""How a node learns and how it denoises: sections that server and clients have alike."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ..core.conditioning import MAX_GUIDANCE
from ..core.errors import ConfigError
from ..core.samplers import SERVER_SAMPLERS, STEPS
from .section import Count, Positive, Section, Seed, Share

MixedPrecision = bool | Literal["cpu"]
"""Whether a network runs in bfloat16 on CUDA; "cpu": on a CPU as well."""
MAX_SIGMA_DATA = 1e3
"""The largest standard deviation of clean data that weights may name; images in [-1, 1] have at most 1."""
SamplerName = Literal["euler", "heun", "dpmpp_2m"]
ServerSamplerName = Literal["euler", "heun", "dpmpp_2m", "euler_ancestral"]


class NetworkSettings(Section):
    """Size of a U-Net."""

    channels: Annotated[int, Field(ge=8, multiple_of=8)] = 64
    """Width at full resolution."""
    multipliers: Annotated[tuple[Count, ...], Field(min_length=1, max_length=6)] = (1, 2, 2)
    """Width of each level over ``channels``; each level after the first halves the resolution."""
    blocks: Count = 2
    """Residual blocks per level on the way down; one more on the way up."""
    attention: tuple[Count, ...] = ()
    """Resolutions (in pixels) at which self-attention is used."""
    dropout: Share = 0.0
    norm: Literal["group", "magnitude", "none"] = "group"
    """What keeps features at one size; by default group at a server and none at a client. group: group norm. magnitude:
    weights that are normalised themselves (Karras et al. 2024), which costs a device nothing. none: features as they
    come, as in networks for image restoration (Zhang et al. 2021): ReLU, and weights with a learned size per channel
    (Salimans and Kingma 2016), so that a device does little else than convolutions. What each costs and gains:
    docs/results.md."""

    def check_side(self, side: int) -> None:
        """Raise ConfigError, naming what works, unless a U-Net of this kind can halve an image's side cleanly and has
        each resolution at which attention is asked for."""
        halvings = len(self.multipliers) - 1
        if side % 2**halvings:
            below, above = (side // 2**halvings + more << halvings for more in (0, 1))
            raise ConfigError(
                f"image_size={side} cannot be halved {halvings} times, which multipliers={list(self.multipliers)} "
                f"need; use image_size {f'{below} or {above}' if below else above}, or fewer multipliers."
            )
        sides = [side >> level for level in range(halvings + 1)]
        if missing := [s for s in self.attention if s not in sides]:
            raise ConfigError(
                f"attention={list(self.attention)}: a network for image_size={side} has the resolutions "
                f"{', '.join(map(str, sides))}, not {missing[0]}; name some of these."
            )


class TrainingSettings(Section):
    """One training loop serves every node."""

    steps: Count = 10_000
    batch_size: Count = 128
    learning_rate: Positive = 1e-3
    warmup_steps: Annotated[int, Field(ge=0)] = 200
    """Linear rise of the learning rate; afterwards it falls along a cosine to 1 % at the last step. A training
    that is all warm-up says so at its start."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    gradient_clip: Positive = 1.0
    """Largest global norm of a step's gradient."""
    ema_halflife_images: Positive = 50_000
    """The averaged weights forget half of the past in this many images (Karras et al. 2022, appendix F)."""
    label_dropout: Share = 0.1
    """Share of images trained without their label, which guidance needs."""
    log_sigma_mean: float = -0.4
    log_sigma_std: Positive = 1.6
    """Levels are drawn with ln sigma normal, cut off at the node's own range."""
    validation: Share = 0.0
    """Share of its images, at a server of its releases, that a node keeps back (at most 1,024) to measure the loss by
    every ``log_every`` steps. The weights of the step where that was least are kept in place of the last one's: for
    few images, which a long training learns by heart."""
    sigma_data: Annotated[float, Field(gt=0, le=MAX_SIGMA_DATA)] | Literal["auto"] = "auto"
    """Standard deviation of the clean data; auto estimates it from what the node holds."""
    log_every: Count = 50
    sample_every: Count = 2_000
    checkpoint_every: Count = 1_000
    seed: Seed = 0
    mixed_precision: MixedPrecision = True
    """bfloat16 autocast on CUDA; "cpu": on a CPU too, where that pays (docs/performance.md)."""
    accumulate: Count = 1
    """Parts in which a step's images pass through the network, one after the other: memory for one part is enough."""
    recompute: bool = False
    """Keep only what goes into each residual block and compute it again on the way back: less memory, more work."""
    compile: bool | Literal["graphs"] = False
    """Train through torch.compile, and without where it does not work; minutes at the start, see docs/training.md.
    graphs: on CUDA the network is also replayed as a CUDA graph, which small networks gain by."""
    shard: bool = False
    """Of several processes each holds a part of the weights, averages and moments (torch's FSDP2): for a network that
    outgrows a GPU. A process alone holds all."""

    @model_validator(mode="after")
    def _valid(self) -> TrainingSettings:
        if self.shard and self.compile:
            raise ConfigError("training.shard and training.compile do not go together; leave one of them out.")
        if self.batch_size % self.accumulate:
            raise ConfigError(
                f"training.accumulate={self.accumulate} does not divide the {self.batch_size} images of a step; use a "
                "divisor of training.batch_size, or another batch_size."
            )
        if self.compile == "graphs" and self.accumulate > 1:
            raise ConfigError(
                f"training.compile=graphs replays one batch and training.accumulate={self.accumulate} makes several of "
                "it; use compile=true, or accumulate=1."
            )
        return self


class SamplerSettings(Section):
    """How a node denoises."""

    name: ServerSamplerName = "dpmpp_2m"
    """euler (DDIM), heun, dpmpp_2m (DPM-Solver++ 2M); at a server also euler_ancestral (DDPM), which adds fresh noise
    at every step and wants more of them."""
    steps: Annotated[int, Field(ge=1, le=1000)] = 18
    guidance: Annotated[float, Field(ge=0, le=MAX_GUIDANCE)] = 1.0
    """Weight of classifier-free guidance; 1 is plain conditioning at half the cost."""
    autoguidance: Annotated[float, Field(ge=1, le=MAX_GUIDANCE)] = 1.0
    """Weight of guidance by the network as it was after a quarter of its training (Karras et al. 2024); 1 is without,
    at half the cost."""


assert set(STEPS) == set(SamplerName.__args__)  # type: ignore[attr-defined]
assert set(SERVER_SAMPLERS) == set(ServerSamplerName.__args__)  # type: ignore[attr-defined]
