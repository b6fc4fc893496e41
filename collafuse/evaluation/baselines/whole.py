"""Sampling from one model of the whole noise range, along the very levels that server and client would walk."""

from __future__ import annotations

import numpy as np
import torch

from ...config import Config
from ...core.conditioning import Labels, conditions_from_labels, guided, translate_labels
from ...core.noise import SIGMA_MAX, whole_sigmas
from ...core.pictures import to_uint8
from ...core.samplers import STEPS, run
from ...learning.weights import TrainedModel
from ...nodes.server import start_noise
from ..generated import Generated

BATCH = 256


@torch.inference_mode()
def sample(
    config: Config,
    model: TrainedModel,
    client: str,
    asked: tuple[str, ...],
    count: int,
    seed: int,
    device: torch.device,
) -> Generated:
    """``count`` images for a client, from the noise that a server with this seed starts from.

    asked: the labels to show, dealt out evenly. As many evaluations as server and client take together, by the server's
    sampler.
    """
    sampler, mine = config.server.sampler, config.client(client)
    sigmas, _ = whole_sigmas(mine.handover_sigma, sampler.steps, mine.sampler.steps, mine.sampler.sigma_low)
    labels = dealt(asked, count)
    known = None if labels is None else translate_labels(labels, asked, model.label_names)
    conditions = conditions_from_labels(known, count, len(model.label_names))
    denoiser = model.denoiser.to(device)
    parts = []
    for start in range(0, count, BATCH):
        rows = range(start, min(start + BATCH, count))
        x = torch.from_numpy(start_noise(rows, denoiser.image_shape, seed)).to(device) * SIGMA_MAX
        given = torch.from_numpy(conditions[rows.start : rows.stop]).to(device)
        denoise = guided(denoiser, given, sampler.guidance if asked else 1.0)
        parts.append(run(STEPS[sampler.name], denoise, x, sigmas)[0].cpu().numpy())
    return Generated(to_uint8(np.concatenate(parts)), labels, asked)


def dealt(names: tuple[str, ...], count: int) -> Labels | None:
    """Multi-hot labels [count, K], each image one of the names, in blocks as a server deals; None without names."""
    if not names:
        return None
    labels = np.zeros((count, len(names)), dtype=np.uint8)
    labels[np.arange(count), np.arange(count) * len(names) // count] = 1
    return labels
