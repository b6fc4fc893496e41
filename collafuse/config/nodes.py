"""The sections of the two kinds of node: the server, and a client with its cut."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from ..core.mechanism import Budget
from ..core.noise import SIGMA_MAX, SIGMA_MIN, Cut
from .data import Selection
from .learning import MixedPrecision, NetworkSettings, SamplerName, SamplerSettings, TrainingSettings
from .section import Count, Positive, Section


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


class DistillationSettings(Section):
    """How ``train-client --distill`` trains a client for one evaluation; all else is as in its training."""

    steps: Count = 2_000
    teacher_steps: Annotated[int, Field(ge=1, le=100)] = 8
    """In how many steps the trained client makes what the distilled one learns to make at once."""


class ClientSamplerSettings(SamplerSettings):
    """A device's half."""

    name: SamplerName = "dpmpp_2m"
    steps: Annotated[int, Field(ge=1, le=1000)] = 6
    sigma_low: Annotated[float, Field(ge=SIGMA_MIN)] = 0.02
    """Lowest level evaluated before the last step to 0; 0.02 is 2.5 of 255 grey levels. At most half the cut."""


class StatisticsSettings(Section):
    """What a site releases where ``server.kind`` is statistics: moments of its images in place of the images."""

    coefficients: Count | None = None
    """Lowest frequencies of each channel that describe an image; all of them up to 768 values when not given, else as
    many as make 768. All sites need the same. With a budget, fewer carry less noise."""
    epsilon: Positive | None = None
    """Budget of the release; noise for it is added at the site, and shared labels are those that ``labels`` lists.
    None: exact, and a label needs 50 images."""
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
        for name in ("delta", "clip"):
            value = getattr(self, name)
            if self.epsilon is None and value != type(self).model_fields[name].default:
                raise ValueError(
                    f"statistics.{name}={value:g} is of a budget, and without an epsilon no noise is added: the "
                    f"numbers would be exact. Set statistics.epsilon too, or leave {name} out"
                )
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


FOR_DEVICES = NetworkSettings(channels=32, norm="none")
"""A client's network where its configuration says nothing else."""


class ClientSettings(Section):
    """One site: its cut, its data and its low-noise half."""

    cut: CutSettings
    handover: Annotated[float, Field(ge=1, le=4)] = 2.0
    """The server stops at this multiple of the cut and the client is trained up to it, so that the server is not asked
    about levels just above the release, where it is least well trained (docs/results.md). Where sites send statistics
    there is no such level, and 1 when not given."""
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
    network: NetworkSettings = FOR_DEVICES
    """Its defaults are other ones than a server's: 32 channels, and no norms, since a device is to run it."""
    training: TrainingSettings = TrainingSettings()
    sampler: ClientSamplerSettings = ClientSamplerSettings()
    distillation: DistillationSettings = DistillationSettings()

    @field_validator("network", mode="before")
    @classmethod
    def _for_devices(cls, given: Any) -> Any:
        return {**FOR_DEVICES.model_dump(), **given} if isinstance(given, Mapping) else given

    @property
    def handover_sigma(self) -> float:
        """The level at which the client takes over."""
        return min(self.cut.resolve().sigma * self.handover, SIGMA_MAX)
