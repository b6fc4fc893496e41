"""The sections of a configuration, and what must hold between them."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ..core.conditioning import MAX_GUIDANCE
from ..core.errors import ConfigError, RuntimeMissingError
from ..core.mechanism import Budget
from ..core.noise import SIGMA_MAX, SIGMA_MIN, Cut
from ..core.samplers import EVALUATES_AT_END, STEPS
from ..core.statistics import most_coefficients
from .data import DataSettings, Selection, TextSettings
from .section import Count, Positive, Section, Seed, Share

ClientName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
MixedPrecision = bool | Literal["cpu"]
"""Whether a network runs in bfloat16 on CUDA; "cpu": on a CPU as well."""
SamplerName = Literal["euler", "heun", "dpmpp_2m"]
MethodName = Literal["collafuse", "centralised", "local", "fedavg", "reference", "reference-repaired", "pfdm"]

WITHOUT_HANDOVER = frozenset({"reference", "reference-repaired"})
"""Methods whose server stops at the cut, whatever ``handover`` says."""


class CutSettings(Section):
    """Exactly one of sigma, log_snr, or t with schedule."""

    sigma: float | None = None
    log_snr: float | None = None
    t: float | None = None
    schedule: Literal["cosine", "linear"] | None = None

    @model_validator(mode="after")
    def _valid(self) -> CutSettings:
        self.resolve()
        return self

    def resolve(self) -> Cut:
        """The cut as a noise level. Raises ConfigError."""
        return Cut.from_settings(**self.model_dump())


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
    """What keeps features at one size. group: group norm. magnitude: weights that are normalised themselves (Karras et
    al. 2024), which costs a device nothing. none: nothing, as in networks for image restoration (Zhang et al. 2021):
    ReLU, and noise level and labels as planes beside the image, so that a device does little else than convolutions.
    What each costs and gains: docs/results.md."""

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
    """Linear rise of the learning rate; afterwards it falls along a cosine to 1 % at the last step."""
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
    sigma_data: Positive | Literal["auto"] = "auto"
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
    compile: bool = False
    """Train through torch.compile, and without where it does not work; minutes at the start, see docs/training.md."""
    shard: bool = False
    """Of several processes each holds a part of the weights, averages and moments (torch's FSDP2): for a network that
    outgrows a GPU. A process alone holds all."""

    @model_validator(mode="after")
    def _valid(self) -> TrainingSettings:
        if self.shard and self.compile:
            raise ConfigError("training.shard and training.compile do not go together; leave one of them out.")
        return self


class SamplerSettings(Section):
    """How a node denoises."""

    name: SamplerName = "dpmpp_2m"
    steps: Annotated[int, Field(ge=1, le=1000)] = 18
    guidance: Annotated[float, Field(ge=0, le=MAX_GUIDANCE)] = 1.0
    """Weight of classifier-free guidance; 1 is plain conditioning at half the cost."""


class DistillationSettings(Section):
    """How ``train-client --distill`` trains a client for one evaluation; all else is as in its training."""

    steps: Count = 2_000
    teacher_steps: Annotated[int, Field(ge=1, le=100)] = 8
    """In how many steps the trained client makes what the distilled one learns to make at once."""


class ClientSamplerSettings(SamplerSettings):
    """A device's half."""

    steps: Annotated[int, Field(ge=1, le=1000)] = 6
    sigma_low: Annotated[float, Field(ge=SIGMA_MIN)] = 0.02
    """Lowest level evaluated before the last step to 0; 0.02 is 2.5 of 255 grey levels. At most half the cut."""


class StatisticsSettings(Section):
    """What a site releases where ``server.kind`` is statistics: moments of its images in place of the images."""

    coefficients: Count | None = None
    """Lowest frequencies of each channel that describe an image; all of them up to 768 values when not given, else as
    many as make 768. All sites need the same. With a budget, fewer carry less noise."""
    epsilon: Positive | None = None
    """Budget of the release; noise for it is added at the site. None: exact, and a label needs 50 images."""
    delta: Positive = 1e-5
    """Of the budget; well below one over the number of images."""
    clip: Annotated[float, Field(gt=0, le=1)] = 1.0
    """With a budget: an image whose values in [-1, 1] have a larger root mean square is scaled down to it, so that less
    noise is needed; 1 scales none."""

    @property
    def budget(self) -> Budget | None:
        """What the release may tell of one image; None: nothing is promised. Raises ConfigError."""
        return None if self.epsilon is None else Budget(self.epsilon, self.delta)

    @model_validator(mode="after")
    def _valid(self) -> StatisticsSettings:
        if self.epsilon is not None:
            Budget(self.epsilon, self.delta)
        return self


class ServerSettings(Section):
    """The high-noise half. ``data`` never appears here: a server has none."""

    kind: Literal["images", "statistics"] = "images"
    """What it learns from: images that were noised once, with a network; or per-label statistics, of which it draws
    intermediates in one step. ``network``, ``training`` and ``sampler`` are of the first."""
    network: NetworkSettings = NetworkSettings()
    training: TrainingSettings = TrainingSettings()
    sampler: SamplerSettings = SamplerSettings()
    mixed_precision: MixedPrecision = False
    """Sample in bfloat16 on CUDA; "cpu": on a CPU too. Pictures differ by its rounding."""
    send_previous: bool = False
    """Send the last x0_hat with an intermediate, so that a multistep sampler starts warm at the client."""


class ClientSettings(Section):
    """One site: its cut, its data and its low-noise half."""

    cut: CutSettings
    handover: Annotated[float, Field(ge=1, le=4)] = 1.0
    """The server stops at this multiple of the cut and the client is trained up to it. Above 1 the server is
    not asked about levels just above the release, where it is least well trained."""
    labels: Selection | None = None
    """The images this site holds: those with at least one label of a list, or those that fit an expression such as
    "Eyeglasses and not Smiling"; all of its data when not given. A list also says which labels describe them."""
    share_labels: bool = True
    """Whether labels go into the release."""
    share_text: bool = True
    """Whether the captions' numbers go into the release, with ``data.text``. Shared text is as good as in clear."""
    statistics: StatisticsSettings = StatisticsSettings()
    path: Path | None = None
    """This site's own image folder, in place of ``data.path``."""
    ledger: Path | None = None
    """Where this site keeps its record of released images; needed by the ``release`` command."""
    network: NetworkSettings = NetworkSettings(channels=32)
    training: TrainingSettings = TrainingSettings()
    sampler: ClientSamplerSettings = ClientSamplerSettings()
    distillation: DistillationSettings = DistillationSettings()

    @property
    def handover_sigma(self) -> float:
        """The level at which the client takes over."""
        return min(self.cut.resolve().sigma * self.handover, SIGMA_MAX)


class Config(Section):
    """A whole experiment. ``client`` has been merged into each of ``clients``."""

    name: str = "experiment"
    method: MethodName = "collafuse"
    """collafuse, or a baseline on the same networks, steps and data (docs/concepts.md)."""
    data: DataSettings
    server: ServerSettings = ServerSettings()
    clients: Annotated[dict[ClientName, ClientSettings], Field(min_length=1)]

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        statistics = self.server.kind == "statistics"
        networks = {f"clients.{n}": c.network for n, c in self.clients.items()}
        if not statistics:
            networks["server"] = self.server.network
        for where, network in networks.items():
            try:
                network.check_side(self.data.image_shape[1])
            except ConfigError as error:
                raise ConfigError(f"{where}.network: {error}") from error
        if self.method in WITHOUT_HANDOVER and self.server.sampler.name in EVALUATES_AT_END:
            raise ValueError(
                f"server.sampler.name={self.server.sampler.name} evaluates at its last level, the cut, and "
                f"method={self.method} has no handover above it to end at; use dpmpp_2m or euler"
            )
        for name, client in self.clients.items():
            if (
                not statistics
                and self.server.sampler.name in EVALUATES_AT_END
                and client.handover_sigma < client.cut.resolve().lowest_trained
            ):
                raise ValueError(
                    f"server.sampler.name={self.server.sampler.name} evaluates at its last level, where a release "
                    f"teaches nothing; give clients.{name}.handover at least 1.05, or use dpmpp_2m or euler"
                )
            if client.sampler.steps > 1 and client.sampler.sigma_low > max(client.handover_sigma / 2, SIGMA_MIN):
                raise ValueError(
                    f"clients.{name}.sampler.sigma_low={client.sampler.sigma_low} is above half the level "
                    f"{client.handover_sigma:.3g} at which it takes over; lower it, or raise the cut"
                )
        nodes = {"server": self.server} | {f"clients.{name}": client for name, client in self.clients.items()}
        for where, node in nodes.items():
            if node.sampler.guidance != 1.0 and node.training.label_dropout == 0.0:
                raise ValueError(
                    f"{where}.sampler.guidance={node.sampler.guidance:g} compares with images without a label, which "
                    f"{where}.training.label_dropout=0 never trains; set label_dropout above 0, such as 0.1"
                )
        if statistics:
            self._check_statistics()
        if self.data.text is not None:
            self._check_text(self.data.text)
        if self.server.send_previous and self.server.sampler.name != "dpmpp_2m":
            raise ValueError(
                f"server.send_previous is for dpmpp_2m, which remembers a step; server.sampler.name="
                f"{self.server.sampler.name} does not. Leave it out, or sample with dpmpp_2m"
            )
        return self

    def _check_text(self, text: TextSettings) -> None:
        if self.method != "collafuse":
            raise ValueError(f"method={self.method} is a baseline, which labels describe; leave data.text out")
        for name, client in self.clients.items():
            if text.captions == "labels" and client.share_text and not client.share_labels:
                raise ValueError(
                    f"clients.{name} keeps its labels (share_labels=false) and would tell them in its text, since "
                    f"data.text.captions=labels writes their names; set clients.{name}.share_text=false too"
                )

    def _check_statistics(self) -> None:
        if self.server.sampler.guidance != 1.0 or self.server.send_previous:
            raise ValueError(
                "server.kind=statistics draws an intermediate in one step, without guidance and without a last "
                "estimate to send; leave out server.sampler.guidance and server.send_previous"
            )
        for name, client in self.clients.items():
            if self.data.text is not None and client.share_text:
                raise ValueError(
                    f"server.kind=statistics says nothing of text; set clients.{name}.share_text=false, and text is "
                    "chosen at the device"
                )
            most = most_coefficients(self.data.image_shape)
            if (client.statistics.coefficients or 0) > most:
                raise ValueError(
                    f"clients.{name}.statistics.coefficients={client.statistics.coefficients}; images of shape "
                    f"{list(self.data.image_shape)} are described by at most {most} of each channel"
                )

    def client(self, name: str) -> ClientSettings:
        """The settings of one client. Raises ConfigError for an unknown name, with the closest match."""
        if name not in self.clients:
            raise unknown_client(name, self.clients)
        return self.clients[name]

    def refuse_baseline(self, what: str) -> None:
        """Raise ConfigError where ``method`` names a baseline; ``what`` is a part of collafuse itself."""
        if self.method != "collafuse":
            raise ConfigError(
                f"method={self.method} is a baseline, which `collafuse train` trains as a whole; for {what}, leave "
                "method out or set it to collafuse."
            )

    def for_server(self) -> Config:
        """What of it a server may see: no paths, nothing about where images come from, no labels that a site keeps."""
        clients = {
            name: client.model_copy(
                update={"path": None, "ledger": None, "labels": client.labels if client.share_labels else None}
            )
            for name, client in self.clients.items()
        }
        # Only what it needs, by name: whatever is added to the data section stays at the sites.
        data = DataSettings(**{key: getattr(self.data, key) for key in ("dataset", "image_size", "channels")})
        return self.model_copy(update={"data": data, "clients": clients})

    def for_client(self, name: str) -> Config:
        """What of it this client needs and may see: nothing about the other sites."""
        return self.model_copy(update={"clients": {name: self.client(name)}})

    def to_yaml(self) -> str:
        """Every setting, resolved, as it is written beside the results."""
        return str(yaml_package().safe_dump(json.loads(self.model_dump_json(exclude_none=True)), sort_keys=False))


def unknown_client(name: str, known: Iterable[str]) -> ConfigError:
    """The refusal of a client's name that nobody knows, with the closest one that somebody does."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return ConfigError(f"client {name!r} does not exist; known are {', '.join(known)}.{hint}")


def yaml_package() -> Any:
    """PyYAML, which a device does not need."""
    try:
        import yaml
    except ImportError as error:
        raise RuntimeMissingError("reading a configuration needs PyYAML; pip install 'collafuse[train]'.") from error
    return yaml


assert set(STEPS) == set(SamplerName.__args__)  # type: ignore[attr-defined]
