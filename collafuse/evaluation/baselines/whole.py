"""Sampling from one model of the whole noise range, along the very levels that server and client would walk."""

from __future__ import annotations

import numpy as np
import torch

from ...core.conditioning import guided
from ...core.noise import SIGMA_MAX, whole_sigmas
from ...core.pictures import to_uint8
from ...core.samplers import STEPS, run
from ...nodes.server import start_noise
from ..generated import Generated
from .asked import Asked

BATCH = 256
WHOLE = "whole"
"""The node of a baseline that trains one model."""


@torch.inference_mode()
def sample(asked: Asked, node: str = WHOLE) -> Generated:
    """What is asked for, from the noise that a server with this seed starts from, by the model of a node.

    As many evaluations as server and client take together, by the server's sampler.
    """
    sampler, mine = asked.config.server.sampler, asked.config.client(asked.client)
    model, count, device = asked.models[node], asked.count, asked.device
    sigmas, _ = whole_sigmas(mine.handover_sigma, sampler.steps, mine.sampler.steps, mine.sampler.sigma_low)
    planned = asked.planned(model.space)
    conditions = planned.conditions(count, model.space)
    guidance = sampler.guidance if planned.conditioned else 1.0
    denoiser = model.denoiser.to(device)
    parts = []
    for start in range(0, count, BATCH):
        rows = range(start, min(start + BATCH, count))
        x = torch.from_numpy(start_noise(rows, denoiser.image_shape, asked.seed)).to(device) * SIGMA_MAX
        given = torch.from_numpy(conditions[rows.start : rows.stop]).to(device)
        denoise = guided(denoiser, given, guidance)
        parts.append(run(STEPS[sampler.name], denoise, x, sigmas)[0].cpu().numpy())
    names = model.label_names if planned.labels is not None else ()
    return Generated(to_uint8(np.concatenate(parts)), planned.labels, names)
