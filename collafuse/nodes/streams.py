"""Random numbers of images that are made: each has a stream of its own, keyed by (seed, index).

So a picture does not depend on what is made beside it, in which batch or on which device.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from ..core.samplers import STEPS, STOCHASTIC, Step

Stream = np.random.Generator


def streams(indices: range, seed: int) -> list[Stream]:
    """The stream of each image, at its beginning."""
    return [np.random.Generator(np.random.Philox([seed, index])) for index in indices]


def draw(of: Sequence[Stream], image_shape: Sequence[int]) -> NDArray[np.float32]:
    """The next standard normal noise [N, C, H, W] of each image; the first is what it starts from."""
    return np.stack([stream.standard_normal(tuple(image_shape)) for stream in of]).astype(np.float32)


def start_noise(indices: range, image_shape: Sequence[int], seed: int) -> NDArray[np.float32]:
    """Standard normal noise [N, C, H, W] that images start from."""
    return draw(streams(indices, seed), image_shape)


def server_step(sampler: str, of: Sequence[Stream]) -> Step:
    """A server's step for a batch on torch; one that adds fresh noise draws it from the images' streams."""
    if sampler not in STOCHASTIC:
        return STEPS[sampler]

    def fresh(x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(draw(of, x.shape[1:])).to(x)

    return partial(STOCHASTIC[sampler], noise=fresh)
