"""A run's configuration, from YAML. Unknown keys are refused with the closest match.

The file has ``data``, ``server``, ``client`` (defaults of every client) and ``clients`` (by name, each
overriding the defaults). Everything has a default except ``data.dataset``, the clients and their cuts.
Nothing here needs torch.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator

from ..core.conditioning import MAX_GUIDANCE
from ..core.errors import CollaFuseError, ConfigError
from ..core.noise import SIGMA_MAX, SIGMA_MIN, Cut
from ..core.samplers import EVALUATES_AT_END, STEPS
from .data import EXPRESSION, LIST, DataSettings, Selection
from .section import Count, Positive, Section, Seed, Share

ClientName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
SamplerName = Literal["euler", "heun", "dpmpp_2m"]


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
    mixed_precision: bool = True
    """bfloat16 autocast on CUDA; without effect elsewhere."""


class SamplerSettings(Section):
    """How a node denoises."""

    name: SamplerName = "dpmpp_2m"
    steps: Annotated[int, Field(ge=1, le=1000)] = 18
    guidance: Annotated[float, Field(ge=0, le=MAX_GUIDANCE)] = 1.0
    """Weight of classifier-free guidance; 1 is plain conditioning at half the cost."""


class ClientSamplerSettings(SamplerSettings):
    """A device's half."""

    steps: Annotated[int, Field(ge=1, le=1000)] = 6
    sigma_low: Annotated[float, Field(ge=SIGMA_MIN)] = 0.02
    """Lowest level evaluated before the last step to 0; 0.02 is 2.5 of 255 grey levels. At most half the cut."""


class ServerSettings(Section):
    """The high-noise half. ``data`` never appears here: a server has none."""

    network: NetworkSettings = NetworkSettings()
    training: TrainingSettings = TrainingSettings()
    sampler: SamplerSettings = SamplerSettings()
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
    path: Path | None = None
    """This site's own image folder, in place of ``data.path``."""
    ledger: Path | None = None
    """Where this site keeps its record of released images; needed by the ``release`` command."""
    network: NetworkSettings = NetworkSettings(channels=32)
    training: TrainingSettings = TrainingSettings()
    sampler: ClientSamplerSettings = ClientSamplerSettings()

    @property
    def handover_sigma(self) -> float:
        """The level at which the client takes over."""
        return min(self.cut.resolve().sigma * self.handover, SIGMA_MAX)


class Config(Section):
    """A whole experiment. ``client`` has been merged into each of ``clients``."""

    name: str = "experiment"
    data: DataSettings
    server: ServerSettings = ServerSettings()
    clients: Annotated[dict[ClientName, ClientSettings], Field(min_length=1)]

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        networks = {"server": self.server.network} | {f"clients.{n}": c.network for n, c in self.clients.items()}
        for where, network in networks.items():
            try:
                network.check_side(self.data.image_shape[1])
            except ConfigError as error:
                raise ConfigError(f"{where}.network: {error}") from error
        for name, client in self.clients.items():
            if (
                self.server.sampler.name in EVALUATES_AT_END
                and client.handover_sigma < client.cut.resolve().lowest_trained
            ):
                raise ValueError(
                    f"server.sampler.name={self.server.sampler.name} evaluates at its last level, where a release "
                    f"teaches nothing; give clients.{name}.handover at least 1.05, or use dpmpp_2m or euler"
                )
            if client.sampler.sigma_low > client.handover_sigma / 2:
                raise ValueError(
                    f"clients.{name}.sampler.sigma_low={client.sampler.sigma_low} is above half the level "
                    f"{client.handover_sigma:.3g} at which it takes over; lower it, or raise the cut"
                )
        if self.server.send_previous and self.server.sampler.name != "dpmpp_2m":
            raise ValueError(
                f"server.send_previous is for dpmpp_2m, which remembers a step; server.sampler.name="
                f"{self.server.sampler.name} does not. Leave it out, or sample with dpmpp_2m"
            )
        return self

    def client(self, name: str) -> ClientSettings:
        """The settings of one client. Raises ConfigError for an unknown name, with the closest match."""
        if name not in self.clients:
            raise unknown_client(name, self.clients)
        return self.clients[name]

    def for_server(self) -> Config:
        """What of it a server may see: no paths of data or ledgers, and no labels that a site keeps."""
        clients = {
            name: client.model_copy(
                update={"path": None, "ledger": None, "labels": client.labels if client.share_labels else None}
            )
            for name, client in self.clients.items()
        }
        shared = all(client.share_labels for client in self.clients.values())
        attributes = self.data.attributes if shared else None
        data = self.data.model_copy(update={"path": None, "table": None, "attributes": attributes})
        return self.model_copy(update={"data": data, "clients": clients})

    def for_client(self, name: str) -> Config:
        """What of it this client needs and may see: nothing about the other sites."""
        return self.model_copy(update={"clients": {name: self.client(name)}})

    def to_yaml(self) -> str:
        """Every setting, resolved, as it is written beside the results."""
        return str(_yaml().safe_dump(json.loads(self.model_dump_json(exclude_none=True)), sort_keys=False))


def unknown_client(name: str, known: Iterable[str]) -> ConfigError:
    """The refusal of a client's name that nobody knows, with the closest one that somebody does."""
    known = list(known)
    return ConfigError(f"client {name!r} does not exist; known are {', '.join(known)}.{_closest(name, known)}")


def load(path: Path | str, overrides: Sequence[str] = ()) -> Config:
    """The configuration in a YAML file, with ``a.b=c`` overrides applied on top.

    A bare name such as ``digits.yaml`` that is not in the working directory is looked up among those that ship.

    Raises ConfigError naming the key, its value and what was expected.
    """
    path = _shipped_or_own(Path(path))
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ConfigError(f"cannot read the configuration {path}: {reason}; see configs/ for examples.") from error
    values = _parse(text, str(path))
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds {type(values).__name__}, expected keys and values; see configs/ for examples.")
    for override in overrides:
        _override(values, override)
    return from_mapping(values, source=str(path))


def _shipped_or_own(path: Path) -> Path:
    """The file itself, or the one of this name that ships with the package for a bare name or configs/NAME."""
    shipped = Path(str(resources.files("configs"))) / path.name
    return shipped if not path.exists() and str(path.parent) in (".", "configs") and shipped.is_file() else path


def from_mapping(values: Mapping[str, Any], source: str = "the configuration") -> Config:
    """The configuration in a mapping; ``client`` is merged into each of ``clients``. Raises ConfigError."""
    values = dict(values)
    defaults = values.pop("client", None)
    defaults = {} if defaults is None else defaults
    if not isinstance(defaults, Mapping):
        raise ConfigError(f"{source}: client={defaults!r}: expected keys and values, the defaults of every client.")
    clients = values.get("clients")
    if isinstance(clients, Mapping):
        values["clients"] = {str(name): _merged(defaults, {} if one is None else one) for name, one in clients.items()}
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(_sentence(e, source) for e in error.errors()[:5])) from error


def _merged(base: Any, over: Any) -> Any:
    """``over`` on top of ``base``, section by section. A cut is replaced whole, never mixed from two."""
    if not isinstance(over, Mapping) or not isinstance(base, Mapping):
        return over
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        deeper = isinstance(old, Mapping) and isinstance(value, Mapping) and key != "cut"
        merged[key] = _merged(old, value) if deeper else value
    return merged


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r} is not of the form a.b=value, such as server.training.steps=500.")
    *sections, last = key.split(".")
    here = values
    for section in sections:
        if here.get(section) is None:  # not there, or there with nothing in it
            here[section] = {}
        here = here[section]
        if not isinstance(here, dict):
            raise ConfigError(f"override {override!r}: {section!r} is a value, not a section.")
    here[last] = _parse(text, f"override {override!r}")


def _sentence(error: Any, source: str) -> str:
    where = ".".join(str(part) for part in error["loc"] if part not in (LIST, EXPRESSION))
    if error["type"] == "extra_forbidden":
        hint = _closest(str(error["loc"][-1]), _known_keys(error["loc"]))
        return f"{source}: unknown key {where}.{hint}"
    cause = (error.get("ctx") or {}).get("error")
    if isinstance(cause, CollaFuseError | ValueError):
        return f"{source}: {where + ': ' if where else ''}{cause}"
    if error["type"] == "missing":
        return f"{source}: {where} is missing; add it, as in the files under configs/."
    value = error["input"]
    shown = f"={value!r}" if isinstance(value, str | int | float | bool | None) else ""
    return f"{source}: {where}{shown}: {error['msg'][0].lower()}{error['msg'][1:]}."


def _closest(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else f" Known are {', '.join(known)}."


def _known_keys(location: Sequence[Any]) -> list[str]:
    """The keys that exist in the section where an unknown key was found."""
    section: type[BaseModel] = Config
    for part in location[:-1]:
        for model in _models_in(section.model_fields[part].annotation) if part in section.model_fields else ():
            section = model
    extra = ["client"] if section is Config else []
    return [*section.model_fields, *extra]


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in getattr(annotation, "__args__", ()):
        yield from _models_in(inner)


def _parse(text: str, source: str) -> Any:
    """YAML as plain values. A key that stands there twice is refused, where YAML itself keeps the last in silence."""
    yaml = _yaml()

    class Loader(yaml.SafeLoader):  # type: ignore[name-defined, misc]
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            twice = next((name for i, name in enumerate(names) if name in names[:i] and name != "<<"), None)
            if twice is not None:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {twice!r} is given twice", node.start_mark
                )
            return super().construct_mapping(node, deep)

    try:
        return Loader(text).get_single_data()
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{source} is not valid YAML: {' '.join(str(error).split())[:300]}") from error


def _yaml() -> Any:
    """PyYAML, which a device does not need."""
    try:
        import yaml
    except ImportError as error:
        from ..core.errors import RuntimeMissingError

        raise RuntimeMissingError("reading a configuration needs PyYAML; pip install 'collafuse[train]'.") from error
    return yaml


assert set(STEPS) == set(SamplerName.__args__)  # type: ignore[attr-defined]
assert SIGMA_MIN < SIGMA_MAX
