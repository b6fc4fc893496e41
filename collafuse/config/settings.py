"""A whole configuration, and what must hold between its sections."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ..core.errors import ConfigError, RuntimeMissingError
from ..core.noise import SIGMA_MIN, server_sigmas
from ..core.samplers import check_taught
from ..core.statistics import most_coefficients
from .data import DataSettings, TextSettings
from .nodes import ClientSettings, ServerSettings
from .section import Section

ClientName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
MethodName = Literal["collafuse", "centralised", "local", "fedavg", "reference", "reference-repaired", "pfdm"]

WITHOUT_HANDOVER = frozenset({"reference", "reference-repaired"})
"""Methods whose server stops at the cut, whatever ``handover`` says."""
SPLIT = frozenset({"collafuse", "pfdm"}) | WITHOUT_HANDOVER
"""Methods whose server learns from images that were noised up to a cut, and knows no lower level."""


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
        for name, client in self.clients.items():
            if not statistics and self.method in SPLIT:
                self.check_levels(name, client)
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
        elif self.method == "collafuse":
            self._check_no_budget()
        if self.data.text is not None:
            self._check_text(self.data.text)
        if self.server.send_previous and self.server.sampler.name != "dpmpp_2m":
            raise ValueError(
                f"server.send_previous is for dpmpp_2m, which remembers a step; server.sampler.name="
                f"{self.server.sampler.name} does not. Leave it out, or sample with dpmpp_2m"
            )
        return self

    def check_levels(self, name: str, client: ClientSettings) -> None:
        """Raise ConfigError where the server would be asked about levels that a client's releases do not teach."""
        cut, handover = client.cut.resolve(), self.method not in WITHOUT_HANDOVER
        sampler = self.server.sampler
        sigmas = server_sigmas(client.handover_sigma if handover else cut.sigma, sampler.steps)
        check_taught(sampler.name, sigmas, cut, name, handover=handover)

    def _check_text(self, text: TextSettings) -> None:
        for name, client in self.clients.items():
            if text.captions == "labels" and client.share_text and not client.share_labels:
                raise ValueError(
                    f"clients.{name} keeps its labels (share_labels=false) and would tell them in its text, since "
                    f"data.text.captions=labels writes their names; set clients.{name}.share_text=false too"
                )

    def _check_statistics(self) -> None:
        sampler = self.server.sampler
        if sampler.guidance != 1.0 or sampler.autoguidance != 1.0 or self.server.send_previous:
            raise ValueError(
                "server.kind=statistics draws an intermediate in one step, without guidance and without a last "
                "estimate to send; leave out server.sampler.guidance, its autoguidance and server.send_previous"
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

    def _check_no_budget(self) -> None:
        for name, client in self.clients.items():
            if client.statistics.epsilon is not None:
                raise ValueError(
                    f"clients.{name}.statistics.epsilon={client.statistics.epsilon:g} is a budget of statistics, and "
                    "server.kind=images has sites send noised images, which keep none; set server.kind=statistics, or "
                    "leave the budget out"
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
        needed = ("dataset", "image_size", "channels", "horizontal_flip")
        data = DataSettings(**{key: getattr(self.data, key) for key in needed})
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
