"""Sampling from one model of the whole noise range, along the very levels that server and client would walk."""

from __future__ import annotations

import numpy as np
import torch

from ...core.conditioning import guided
from ...core.noise import SIGMA_MAX, whole_sigmas
from ...core.pictures import to_uint8
from ...core.samplers import STEPS, run
from ...nodes.streams import draw, server_step, streams
from ..generated import Generated
from .asked import Asked

BATCH = 256
WHOLE = "whole"
"""The node of a baseline that trains one model."""


@torch.inference_mode()
def sample(asked: Asked, node: str = WHOLE) -> Generated:
    """What is asked for, from the noise that a server with this seed starts from, by the model of a node.

    As many evaluations as server and client take together, by the server's sampler and guidance down to where the
    client takes over and by the client's from there; a sampler that both have goes on with what it remembers.
    """
    sampler, mine = asked.config.server.sampler, asked.config.client(asked.client)
    model, count, device = asked.models[node], asked.count, asked.device
    sigmas, k = whole_sigmas(mine.handover_sigma, sampler.steps, mine.sampler.steps, mine.sampler.sigma_low)
    planned = asked.planned(model.space)
    conditions = planned.conditions(count, model.space)
    guidances = [each.guidance if planned.conditioned else 1.0 for each in (sampler, mine.sampler)]
    denoisers = [asked.model(node, each).denoiser.to(device) for each in (sampler, mine.sampler)]
    parts = []
    for start in range(0, count, BATCH):
        rows = range(start, min(start + BATCH, count))
        own = streams(rows, asked.seed)
        x = torch.from_numpy(draw(own, denoisers[0].image_shape)).to(device) * SIGMA_MAX
        given = torch.from_numpy(conditions[rows.start : rows.stop]).to(device)
        high, low = (guided(one, given, weight) for one, weight in zip(denoisers, guidances, strict=True))
        x, state = run(server_step(sampler.name, own), high, x, sigmas[: k + 1])
        state = state if mine.sampler.name == sampler.name else None
        parts.append(run(STEPS[mine.sampler.name], low, x, sigmas[k:], state)[0].cpu().numpy())
    names = model.label_names if planned.labels is not None else ()
    return Generated(to_uint8(np.concatenate(parts)), planned.labels, names)
