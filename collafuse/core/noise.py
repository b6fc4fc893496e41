"""Noise levels and conversions; step spacings; where the cut lies.

Notation (Karras et al. 2022): a noisy image is ``x = x0 + sigma * n`` with ``n ~ N(0, I)`` and ``x0`` in
[-1, 1]. ``log_snr = -2 ln sigma``. A variance-preserving schedule with cumulative signal power
``alpha_bar`` has ``sigma = sqrt((1 - alpha_bar) / alpha_bar)``. ``t`` is continuous time in [0, 1].

A step fraction is not a noise level: t = 0.2 is sigma 0.34 on the cosine schedule and 0.72 on the linear
one. The cut is therefore stored as sigma and shown in all three coordinates.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .errors import ConfigError

SIGMA_MIN = 0.002
"""The lowest noise level a denoiser is asked about (Karras et al. 2022, table 1)."""
SIGMA_MAX = 80.0
"""Where sampling starts: x is pure noise for every practical purpose."""
SIGMA_SLACK = 1e-6
"""Relative difference up to which two noise levels are the same: they travelled as decimal text."""
LOWEST_TRAINED_ABOVE_CUT = 1.05
"""A server learns from this multiple of the release level upwards: at the level itself a release says
nothing about the denoiser (the factor 1 - k in the objective is zero there)."""

COSINE_OFFSET = 0.008
BETA_MIN, BETA_MAX = 0.1, 20.0
SCHEDULES = ("cosine", "linear")

Noise = Callable[[Sequence[int]], Any]
"""A noise source: shape -> an array of that shape with independent standard normal entries."""


def log_snr_from_sigma(sigma: float) -> float:
    """log(alpha_bar / (1 - alpha_bar)) = -2 ln sigma. sigma > 0."""
    return 0.0 - 2.0 * math.log(sigma)  # and not -0.0 at sigma 1


def sigma_from_log_snr(log_snr: float) -> float:
    """exp(-log_snr / 2), the inverse of :func:`log_snr_from_sigma`; infinite where a float cannot hold it."""
    return math.inf if log_snr < -1400.0 else math.exp(-log_snr / 2.0)


def sigma_from_alpha_bar(alpha_bar: float) -> float:
    """sqrt((1 - alpha_bar) / alpha_bar) for alpha_bar in (0, 1]."""
    return math.sqrt((1.0 - alpha_bar) / alpha_bar)


def alpha_bar_from_sigma(sigma: float) -> float:
    """1 / (1 + sigma^2), the inverse of :func:`sigma_from_alpha_bar`."""
    return 1.0 / (1.0 + sigma * sigma)


def _cosine_angle(t: float) -> float:
    return (t + COSINE_OFFSET) / (1.0 + COSINE_OFFSET) * math.pi / 2.0


def sigma_from_t(t: float, schedule: str) -> float:
    """Noise level at continuous time t in [0, 1] of a named variance-preserving schedule.

    ``cosine`` is Nichol and Dhariwal 2021 (eq. 17) with s = 0.008; ``linear`` is Ho et al. 2020 in the
    continuous form of Song et al. 2021 (beta from 0.1 to 20, integrated).

    Raises ConfigError for an unknown schedule or a t outside [0, 1].
    """
    if schedule not in SCHEDULES:
        raise ConfigError(f"schedule {schedule!r} is not known; use one of {', '.join(SCHEDULES)}.")
    if not 0.0 <= t <= 1.0:
        raise ConfigError(f"t={t} lies outside [0, 1]; t is continuous time, not a step index.")
    if schedule == "linear":
        # alpha_bar = exp(-integral of beta), hence sigma^2 = exp(integral) - 1.
        return math.sqrt(math.expm1(BETA_MIN * t + 0.5 * (BETA_MAX - BETA_MIN) * t * t))
    # alpha_bar = cos^2(angle) / cos^2(angle at 0).
    alpha_bar = (math.cos(_cosine_angle(t)) / math.cos(_cosine_angle(0.0))) ** 2
    return math.inf if alpha_bar < 1e-12 else sigma_from_alpha_bar(alpha_bar)


def t_from_sigma(sigma: float, schedule: str) -> float:
    """Continuous time at which a schedule reaches sigma > 0; the inverse of :func:`sigma_from_t`.

    A level noisier than the schedule's end maps to 1.
    """
    if schedule not in SCHEDULES:
        raise ConfigError(f"schedule {schedule!r} is not known; use one of {', '.join(SCHEDULES)}.")
    if schedule == "linear":
        slope = BETA_MAX - BETA_MIN
        integral = math.log1p(sigma * sigma)
        t = (math.sqrt(BETA_MIN * BETA_MIN + 2.0 * slope * integral) - BETA_MIN) / slope
    else:
        cosine = math.sqrt(alpha_bar_from_sigma(sigma)) * math.cos(_cosine_angle(0.0))
        t = math.acos(cosine) * 2.0 / math.pi * (1.0 + COSINE_OFFSET) - COSINE_OFFSET
    return min(max(t, 0.0), 1.0)


@dataclass(frozen=True)
class Cut:
    """The noise level of what a site sends. The server learns from there on; the client takes over there or above.

    Lies in (SIGMA_MIN, SIGMA_MAX]: a release at or below SIGMA_MIN would be a clean image; a cut at
    SIGMA_MAX means that the client does everything. Raises ConfigError otherwise.
    """

    sigma: float

    def __post_init__(self) -> None:
        if not SIGMA_MIN < self.sigma <= SIGMA_MAX:
            raise ConfigError(
                f"cut sigma={self.sigma:g} lies outside ({SIGMA_MIN:g}, {SIGMA_MAX:g}]; a lower one would "
                "release a clean image, a higher one is above pure noise. Choose a sigma inside the range."
            )

    @classmethod
    def from_settings(
        cls,
        *,
        sigma: float | None = None,
        log_snr: float | None = None,
        t: float | None = None,
        schedule: Literal["cosine", "linear"] | None = None,
    ) -> Cut:
        """The cut from exactly one of ``sigma``, ``log_snr`` or ``t`` with ``schedule``.

        Raises ConfigError when none or several are given or the result is out of range.
        """
        given = [k for k, v in (("sigma", sigma), ("log_snr", log_snr), ("t", t)) if v is not None]
        if len(given) != 1:
            raise ConfigError(
                f"a cut is given by {' and '.join(given) if given else 'nothing'}; "
                "give exactly one of sigma, log_snr, or t with schedule."
            )
        if (t is None) != (schedule is None):
            raise ConfigError(
                f"a cut has t={t} and schedule={schedule!r}; t and schedule belong together: "
                "the same t is another noise level on another schedule."
            )
        if sigma is not None:
            return cls(float(sigma))
        if log_snr is not None:
            return cls(sigma_from_log_snr(log_snr))
        assert t is not None and schedule is not None
        return cls(sigma_from_t(t, schedule))

    @property
    def log_snr(self) -> float:
        """log-SNR of the cut."""
        return log_snr_from_sigma(self.sigma)

    @property
    def lowest_trained(self) -> float:
        """The lowest level at which a server learns from releases at this cut (see the objective)."""
        return min(self.sigma * LOWEST_TRAINED_ABOVE_CUT, SIGMA_MAX)

    def describe(self) -> str:
        """The cut in all three coordinates, for people."""
        cosine, linear = (t_from_sigma(self.sigma, name) for name in SCHEDULES)
        return f"sigma {self.sigma:.3g} (log-SNR {self.log_snr:+.2f}, t {cosine:.2f} cosine / {linear:.2f} linear)"


def karras_sigmas(sigma_start: float, sigma_end: float, num_steps: int, rho: float = 7.0) -> list[float]:
    """num_steps + 1 falling levels from sigma_start to sigma_end (Karras et al. 2022, eq. 5).

    Both ends are exact. Raises ConfigError unless sigma_start > sigma_end > 0 and num_steps >= 1.
    """
    if not sigma_start > sigma_end > 0 or num_steps < 1:
        raise ConfigError(
            f"cannot space {num_steps} steps from sigma {sigma_start:g} to {sigma_end:g}; "
            "at least one step and sigma_start > sigma_end > 0 are needed."
        )
    high, low = sigma_start ** (1 / rho), sigma_end ** (1 / rho)
    inner = [(high + i / num_steps * (low - high)) ** rho for i in range(1, num_steps)]
    return [float(sigma_start), *inner, float(sigma_end)]


def _told_apart(sigma: float) -> float:
    """The level, or SIGMA_MAX where only rounding tells them apart: levels between would not fall, or leave the
    multistep solver a step of no length."""
    return SIGMA_MAX if sigma >= SIGMA_MAX * (1 - SIGMA_SLACK) else sigma


def server_sigmas(handover: float, num_steps: int) -> list[float]:
    """The server's levels: from SIGMA_MAX to where the client takes over, in num_steps. [SIGMA_MAX] alone for one that
    takes over there."""
    handover = _told_apart(handover)
    return [SIGMA_MAX] if handover >= SIGMA_MAX else karras_sigmas(SIGMA_MAX, handover, num_steps)


def client_sigmas(handover: float, num_steps: int, sigma_low: float) -> list[float]:
    """The client's levels: from where it takes over down to sigma_low, then 0; num_steps in all.

    sigma_low is the lowest level at which the client's denoiser is evaluated; the last step goes from
    there to 0. One step goes to 0 at once. An intermediate may stand lower than a configuration
    foresaw; below 2 sigma_low it is evaluated down to half its own level.
    """
    handover = _told_apart(handover)
    if num_steps < 1:
        raise ConfigError(f"steps={num_steps}; a client needs at least one step to finish.")
    if num_steps == 1:
        return [float(handover), 0.0]
    return [*karras_sigmas(handover, min(sigma_low, handover / 2), num_steps - 1), 0.0]


def whole_sigmas(handover: float, server_steps: int, client_steps: int, sigma_low: float) -> tuple[list[float], int]:
    """One falling list of levels and the index k of the one where the client takes over.

    The server runs ``sigmas[:k + 1]`` and the client ``sigmas[k:]``: cutting is slicing, and the shared
    entry is that level exactly.
    """
    server = server_sigmas(handover, server_steps)
    return server[:-1] + client_sigmas(handover, client_steps, sigma_low), len(server) - 1


def system_noise(shape: Sequence[int]) -> NDArray[np.float64]:
    """Standard normal noise of this shape from the operating system's randomness.

    There is no seed and no state, so it cannot be repeated: the only noise source for a release. Uses the
    Box-Muller transform on 53-bit uniforms.
    """
    count = math.prod(shape)
    pairs = (count + 1) // 2
    bits = np.frombuffer(secrets.token_bytes(16 * pairs), dtype="<u8").reshape(2, pairs) >> np.uint64(11)
    radius = np.sqrt(-2.0 * np.log((bits[0] + 1.0) * 2.0**-53))
    angle = bits[1] * (2.0 * math.pi * 2.0**-53)
    normal = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    return normal[:count].reshape(tuple(shape))


def system_order(count: int) -> NDArray[np.int64]:
    """The numbers below ``count`` in an order from the operating system's randomness, which cannot be repeated."""
    return np.argsort(np.frombuffer(secrets.token_bytes(8 * count), dtype="<u8"), kind="stable").astype(np.int64)
