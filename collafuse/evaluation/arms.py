"""Arms of a comparison: each way to make images that is measured, for any client.

A trained run brings the arms of its ``method``; METHODS says how they are made. A further kind of run stands in the
same tables once it has an entry there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ..config import Config
from ..config.settings import WITHOUT_HANDOVER
from ..core.conditioning import Conditions, guided, translate_labels
from ..core.errors import ConfigError
from ..core.intermediate import Intermediate
from ..core.noise import SIGMA_MAX, Cut, server_sigmas, whole_sigmas
from ..core.pairing import conditions_for
from ..core.pictures import Pixels, to_uint8
from ..core.samplers import History, run
from ..data.imageset import ImageSet
from ..learning.autoguidance import AutoGuided
from ..learning.denoiser import Denoiser
from ..learning.gaussian import GaussianDenoiser
from ..learning.seeds import keyed_seed
from ..nodes.client import finish_all, load_client
from ..nodes.planned import Planned
from ..nodes.runfolder import RunFolder
from ..nodes.server import Server
from ..nodes.streams import draw, server_step, start_noise, streams
from . import baselines
from .generated import Generated

BATCH = 256
"""Images per evaluation of a network."""

DEFAULT_METHOD = "collafuse"

Generate = Callable[[str, int, int], Generated]
"""(client, count, seed) -> so many images for a client; the same seed makes the same."""


@dataclass(frozen=True)
class Arm:
    """One row of a comparison; ``meaning`` says in a sentence how its images are made."""

    name: str
    generate: Generate
    meaning: str


class SplitRun:
    """A trained run of server and clients, and everything that can be made with its two halves.

    held_out: each client's images that nobody trained on, for :meth:`from_true_noise`.
    """

    def __init__(self, folder: RunFolder, held_out: Mapping[str, ImageSet], device: torch.device) -> None:
        self.server = Server.load(folder.server, device)
        self.settings = {n: folder.trained_client(n).read_config().client(n) for n in held_out}
        self.models = {n: load_client(folder.client(n), each) for n, each in self.settings.items()}
        self.held_out = held_out
        self.device = device

    def arms(self) -> list[Arm]:
        """What a split run is measured by."""
        return [
            Arm("server + client", self.composite, "the method: first the server, from there the client"),
            Arm("server alone", self.server_alone, "the server down to its lowest trained level, then its x0_hat"),
            Arm("client alone", self.client_alone, "the client's denoiser from pure noise: the failure it is"),
            Arm(
                "true noise + client",
                self.from_true_noise,
                "held-out images noised to the client's level and finished: as from a perfect server, and flattered, "
                "since the images it starts from are those it is compared with",
            ),
        ]

    def from_server(self, client: str, count: int, seed: int) -> Intermediate:
        """What the server delivers; with the text of the client's held-out images, where the site shared its own."""
        return self.server.deliver(client, count, planned=self._planned(client, count), seed=seed, batch_size=BATCH)

    def _planned(self, client: str, count: int) -> Planned:
        return self.server.plan_like(client, count, self.held_out[client])

    def composite(self, client: str, count: int, seed: int) -> Generated:
        """Server, then client."""
        return self.finished(client, self.from_server(client, count, seed))

    def finished(self, client: str, delivered: Intermediate) -> Generated:
        """What the client makes of what the server delivered."""
        conditions = conditions_for(delivered, self.models[client].space)
        history = delivered.history(slice(None))
        pixels = self._finish(client, delivered.x, delivered.sigma, conditions, history)
        return Generated(pixels, delivered.labels, delivered.label_names)

    def server_alone(self, client: str, count: int, seed: int) -> Generated:
        """The server as far down as it was trained for this client's labels, and what it then takes for the image."""
        sampler = self.server.config.server.sampler
        lowest = Cut(self.server.site(client).sigma_cut).lowest_trained
        planned = self._planned(client, count)
        conditions = planned.conditions(count, self.server.model.space)
        levels, denoiser = server_sigmas(lowest, sampler.steps), self.server.model.denoiser
        guidance = sampler.guidance if planned.conditioned else 1.0
        x = self._sampled(denoiser, sampler.name, guidance, conditions, levels, seed, x0_hat_at_end=True)
        names = self.server.model.label_names if planned.labels is not None else ()
        return Generated(to_uint8(x), planned.labels, names)

    def client_alone(self, client: str, count: int, seed: int) -> Generated:
        """The client's denoiser along the whole way, in as many steps as both halves take together."""
        mine, theirs = self.settings[client].sampler, self.server.config.server.sampler
        model, planned = self.models[client], self._planned(client, count)
        asked, names = planned.labels, self.server.model.label_names
        labels = None if asked is None else translate_labels(asked, names, model.label_names)
        conditions = Planned(labels, planned.text).conditions(count, model.space)
        cut = self.settings[client].handover_sigma
        levels, _ = whole_sigmas(cut, theirs.steps, mine.steps, mine.sigma_low)
        x = self._sampled(model.denoiser.to(self.device), mine.name, mine.guidance, conditions, levels, seed)
        return Generated(to_uint8(x), asked, names if asked is not None else ())

    def from_true_noise(self, client: str, count: int, seed: int) -> Generated:
        """Held-out images noised to where the client takes over, then finished; each as often as it takes.

        As in the other arms the client is told what the server knows: what the site keeps is not asked for.
        """
        images = self.held_out[client]
        images = images.take(np.arange(count) % len(images))
        sigma, shape = self.settings[client].handover_sigma, self.models[client].denoiser.image_shape
        noise = start_noise(range(count), shape, keyed_seed(seed, "true noise"))
        space, labels, text = self.models[client].space, None, None
        site = self.server.site(client)
        if site.label_names is not None:
            labels = translate_labels(images.labels, images.label_names, space.label_names)
        if site.text:
            text = images.text
        pixels = self._finish(
            client, images.x0() + sigma * noise, sigma, Planned(labels, text).conditions(count, space)
        )
        return Generated(pixels, labels, space.label_names if labels is not None else ())

    def _finish(
        self,
        client: str,
        x: NDArray[np.floating],
        sigma: float,
        conditions: Conditions,
        history: History | None = None,
    ) -> Pixels:
        denoiser, settings = self.models[client].denoiser, self.settings[client]
        return finish_all(denoiser, x, sigma, conditions, settings, self.device, BATCH, history)

    @torch.inference_mode()
    def _sampled(
        self,
        denoiser: Denoiser | AutoGuided | GaussianDenoiser,
        sampler: str,
        guidance: float,
        conditions: Conditions,
        levels: list[float],
        seed: int,
        *,
        x0_hat_at_end: bool = False,
    ) -> NDArray[np.float32]:
        """One denoiser from pure noise along the levels; ``x0_hat_at_end``: what it takes for the image there."""
        parts = []
        for rows in _batches(len(conditions)):
            own = streams(range(rows.start, rows.stop), seed)
            x = torch.from_numpy(draw(own, denoiser.image_shape)).to(self.device) * SIGMA_MAX
            denoise = guided(denoiser, torch.from_numpy(conditions[rows]).to(self.device), guidance)
            x, _ = run(server_step(sampler, own), denoise, x, levels)
            parts.append((denoise(x, levels[-1]) if x0_hat_at_end else x).float().cpu())
        return torch.cat(parts).numpy()


def _batches(count: int) -> list[slice]:
    return [slice(start, min(start + BATCH, count)) for start in range(0, count, BATCH)]


ArmsOf = Callable[[RunFolder, Mapping[str, ImageSet], torch.device], Sequence[Arm]]


def _split_arms(folder: RunFolder, held_out: Mapping[str, ImageSet], device: torch.device) -> Sequence[Arm]:
    return SplitRun(folder, held_out, device).arms()


BASELINES = {
    "centralised": "one model of the whole noise range, trained on everybody's clean images",
    "local": "a model of the whole noise range at each site, trained on its own images alone",
    "fedavg": "one model of the whole noise range, averaged over the sites' own steps",
    "reference": "the reference's protocol: fresh noise at every step, noised twice, started at c + c (1 - c)",
    "reference-repaired": "the reference's protocol, started where the double noising really stands",
    "pfdm": "clipped images, noised once for a stated guarantee",
}


def levels_of(config: Config, client: str) -> tuple[float, float]:
    """A client's cut, up to which the server saw its images, and where it takes over."""
    settings = config.client(client)
    return settings.cut.resolve().sigma, settings.handover_sigma


def sampling_schedule(config: Config, client: str) -> tuple[object, ...]:
    """What decides at which levels a client's images are evaluated: where it takes over, and both sides' samplers. A
    whole model has those of both."""
    theirs, settings = config.server.sampler, config.client(client)
    mine = settings.sampler
    return (settings.handover_sigma, theirs.name, theirs.steps, mine.name, mine.steps, mine.sigma_low)


def takes_over_above(config: Config, client: str) -> float | None:
    """The level at which a client takes over, where that lies above its cut."""
    cut, handover = levels_of(config, client)
    return handover if handover > cut and config.method not in WITHOUT_HANDOVER else None


def _baseline_arms(folder: RunFolder, held_out: Mapping[str, ImageSet], device: torch.device) -> Sequence[Arm]:
    method = method_of(folder)
    baselines.check_trained(folder, list(held_out))

    def generate(client: str, count: int, seed: int) -> Generated:
        return baselines.generate(folder, client, count, seed, device, held_out.get(client))

    return [Arm(method, generate, BASELINES[method])]


METHODS: dict[str, ArmsOf] = {DEFAULT_METHOD: _split_arms, **dict.fromkeys(BASELINES, _baseline_arms)}
"""How the arms of a run are made, by its ``method``: from its folder and each client's held-out images."""


def arms_of(folder: RunFolder, held_out: Mapping[str, ImageSet], device: torch.device) -> Sequence[Arm]:
    """The arms of a trained run. Raises FileFormatError where it is not trained."""
    method = method_of(folder)
    if method not in METHODS:
        raise ConfigError(f"method {method!r} of {folder.path} is not measured; known are {', '.join(METHODS)}.")
    return METHODS[method](folder, held_out, device)


def method_of(folder: RunFolder) -> str:
    """By which method a run was trained."""
    return folder.read_config().method
