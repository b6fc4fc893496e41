"""The closed-form denoiser and draws of a mixture of Gaussians per label.

    x at level sigma ~ sum_k share_k N(mu_k, C_k + sigma^2 I)
    D(x, sigma) = sum_k P(k | x) D_k(x, sigma)

with D_k as of one Gaussian.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from collafuse.core.conditioning import Conditions
from collafuse.core.moments import Basis, Gaussian
from collafuse.learning.gaussian import GaussianDenoiser


class MixtureDenoiser(GaussianDenoiser):
    """D(x [B, C, H, W], sigma [B] or a float, conditions [B, L + 1]) -> x0_hat [B, C, H, W], float32, in closed form.

    mixtures: the Gaussians of each label, then those of all images together; each weighs as many images as it counts.
    With one Gaussian each it is GaussianDenoiser, number for number.
    """

    def __init__(self, basis: Basis, mixtures: Sequence[Sequence[Gaussian]]) -> None:
        super().__init__(basis, [one for several in mixtures for one in several])
        self.condition_width = len(mixtures)
        width = max(len(several) for several in mixtures)
        members = np.zeros((len(mixtures), width), dtype=np.int64)
        shares = np.zeros((len(mixtures), width))
        first = 0
        for row, several in enumerate(mixtures):
            counts = np.array([one.count for one in several])
            members[row, : len(several)] = first + np.arange(len(several))
            shares[row, : len(several)] = counts / counts.sum()
            first += len(several)
        self.shares = shares
        """Of each condition's Gaussians [L + 1, K]; 0 where it has fewer than K."""
        self.members: Tensor
        self.log_shares: Tensor
        self.register_buffer("members", torch.from_numpy(members))
        self.register_buffer("log_shares", torch.from_numpy(shares).float().log())

    def forward(self, x: Tensor, sigma: Any, conditions: Tensor) -> Tensor:
        likely = self.log_parts(x, sigma, conditions).softmax(dim=1)
        mine, estimate = self.members[conditions.argmax(dim=1)], torch.zeros_like(x)
        for k in range(mine.shape[1]):
            one = functional.one_hot(mine[:, k], len(self.gaussians))
            estimate += likely[:, k, None, None, None] * super().forward(x, sigma, one)
        return estimate

    def log_parts(self, x: Tensor, sigma: Any, conditions: Tensor) -> Tensor:
        """log(share_k N(x; mu_k, C_k + sigma^2 I)) [B, K] of noisy images, for the Gaussians of each one's condition.

        Their log-sum-exp is the log-likelihood of an image in nats.
        """
        count, channels = x.shape[:2]
        sigmas = torch.as_tensor(sigma, dtype=torch.float32, device=x.device).expand(count)
        y = (x.reshape(count, channels, -1) @ self.matrix.T).reshape(count, -1)
        which = conditions.argmax(dim=1)
        mine, parts = self.members[which], self.log_shares[which]
        for one in mine.unique():
            rows, columns = (mine == one).nonzero(as_tuple=True)
            variances = self.eigenvalues[one] + sigmas[rows, None].square()
            along = (y[rows] - self.means[one]) @ self.eigenvectors[one]
            parts[rows, columns] -= 0.5 * (along.square() / variances + variances.log()).sum(dim=1)
        above = (x.square().flatten(1).sum(dim=1) - y.square().sum(dim=1)).clamp(min=0)  # frequencies with C = 0
        alone = above / sigmas.square() + 2 * (x[0].numel() - y.shape[1]) * sigmas.log()
        return parts - 0.5 * (alone + x[0].numel() * math.log(2 * math.pi))[:, None]

    def draw(self, noise: NDArray[np.float32], sigma: float, conditions: Conditions) -> NDArray[np.float32]:
        """Draws [B, C, H, W] at a level, made of standard normal noise of that shape: a Gaussian by its share, chosen
        by :func:`uniforms` of the noise, then as from that Gaussian."""
        which = conditions.argmax(axis=1)
        chosen = (uniforms(noise)[:, None] >= self.shares.cumsum(axis=1)[which, :-1]).sum(axis=1)
        mine = self.members.cpu().numpy()[which, chosen]
        return super().draw(noise, sigma, np.eye(len(self.gaussians), dtype=np.uint8)[mine])


def uniforms(noise: NDArray[np.float32]) -> NDArray[np.float64]:
    """A number in [0, 1) for each image's noise [B, C, H, W], by its SHA-256: keyed as the noise is, whatever the
    batch, and to any statistic independent of its values."""
    digests = (hashlib.sha256(np.ascontiguousarray(one).tobytes()).digest() for one in noise)
    return np.array([(int.from_bytes(one[:8], "little") >> 11) / 2**53 for one in digests])
