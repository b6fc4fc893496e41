"""Samplers as pure functions ``sampler(denoise, x, sigmas) -> x``, on torch tensors and NumPy arrays alike.

    x          float array [N, ...], a noisy batch at level sigmas[0]
    sigmas     falling noise levels, plain floats; the last may be 0
    denoise    denoise(x, sigma) -> x0_hat, the estimate of the clean batch; sigma as the step got it
    state      what a multistep method remembers, per image; None is a cold start

Each sampler is a loop over its public step ``step(denoise, x, sigma, sigma_next, state) -> (x, state)``. A
step's levels are plain floats or one per image ([N], float64, the same kind of array as x), so an engine
can hold images at different levels in one batch. Steps decide by ``sigma_next``, never by an index:
therefore ``sigmas[:k + 1]`` followed by ``sigmas[k:]`` is the whole sampler, exactly for one-step methods.

Only + - * / and powers touch the arrays, so one file serves torch at the server and NumPy on a device.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from .errors import ConfigError, UsageError
from .noise import LOWEST_TRAINED_ABOVE_CUT, SIGMA_MAX, SIGMA_SLACK, Cut

Array = Any
"""A torch tensor or a NumPy array."""
Level = Any
"""A noise level: a float, or an array [N] with one level per image."""
Denoise = Callable[[Array, Level], Array]
Step = Callable[..., tuple[Array, Any]]


class History(NamedTuple):
    """What dpmpp_2m remembers of the previous step: its x0_hat [N, ...] and its sigma (float or [N]).

    An infinite sigma means "no history", per image.
    """

    x0_hat: Array
    sigma: Level


def _factor(value: Level, x: Array) -> Any:
    """A coefficient that multiplies x: a float as it is, a per-image one in x's dtype, shaped [N, 1, ...]."""
    if not hasattr(value, "reshape") or getattr(value, "ndim", 0) == 0:
        # A NumPy scalar would turn float32 images into float64 ones; a plain float does not.
        return float(value) if isinstance(value, np.generic | np.ndarray) else value
    column = value.reshape((-1,) + (1,) * (x.ndim - 1))
    return column.astype(x.dtype) if isinstance(column, np.ndarray) else column.to(x.dtype)


def _log(value: Level) -> Any:
    if isinstance(value, float | int):
        return math.log(value) if value > 0 else -math.inf
    return value.log() if hasattr(value, "log") else np.log(value)


def _toward(x: Array, x0_hat: Array, keep: Level) -> Array:
    """The point that keeps this share of the distance from x0_hat to x; exactly x0_hat for 0."""
    return x0_hat + _factor(keep, x) * (x - x0_hat)


def euler_step(denoise: Denoise, x: Array, sigma: Level, sigma_next: Level, state: None = None) -> tuple[Array, None]:
    """One Euler step from sigma to sigma_next, which is one DDIM step (Karras et al. 2022, eq. 3)."""
    return _toward(x, denoise(x, sigma), sigma_next / sigma), None


def heun_step(denoise: Denoise, x: Array, sigma: Level, sigma_next: Level, state: None = None) -> tuple[Array, None]:
    """One Heun step (Karras et al. 2022, alg. 1): Euler, then the mean of both slopes.

    Where sigma_next is 0 it is an Euler step. It evaluates the denoiser at sigma_next, so a server needs a
    handover level above its release level to use it (at the release level nothing is learned).
    """
    x0_hat = denoise(x, sigma)
    x_euler = _toward(x, x0_hat, sigma_next / sigma)
    corrected = (sigma_next > 0) * 1.0
    if not _any(corrected):
        return x_euler, None
    # An image that ends at 0 is evaluated at its old level instead and the result dropped.
    sigma_second = sigma_next + (1.0 - corrected) * sigma
    slope = (x - x0_hat) / _factor(sigma, x)
    slope_next = (x_euler - denoise(x_euler, sigma_second)) / _factor(sigma_second, x)
    half = 0.5 * corrected * (sigma_next - sigma)
    return x_euler + _factor(half, x) * (slope_next - slope), None


def dpmpp_2m_step(
    denoise: Denoise, x: Array, sigma: Level, sigma_next: Level, state: History | None = None
) -> tuple[Array, History]:
    """One step of DPM-Solver++(2M) (Lu et al. 2022, alg. 2), first order without history or when ending at 0.

    Across a cut the history is lost unless the last x0_hat travels with the intermediate; what that costs is
    measured in the tests.
    """
    x0_hat = denoise(x, sigma)
    if state is None:
        extrapolated = x0_hat
    else:
        # 1 / (2 r) of the paper, r = h_last / h with h the change of log sigma; 0 where there is no history
        # (infinite h_last) and where the step ends at 0 (infinite h).
        ends = (sigma_next > 0) * 1.0
        h = _log(sigma) - _log(sigma_next + (1.0 - ends) * sigma)
        h_last = _log(state.sigma) - _log(sigma)
        extrapolated = x0_hat + _factor(0.5 * ends * h / h_last, x) * (x0_hat - state.x0_hat)
    return _toward(x, extrapolated, sigma_next / sigma), History(x0_hat, sigma)


def euler_ancestral_step(
    denoise: Denoise,
    x: Array,
    sigma: Level,
    sigma_next: Level,
    state: None = None,
    *,
    noise: Callable[[Array], Array],
    eta: float = 1.0,
) -> tuple[Array, None]:
    """One ancestral step: Euler to a level below sigma_next, then fresh noise up to it (Song et al. 2021, DDIM
    with eta). ``noise(x)`` returns standard normal noise like x; eta 0 is Euler, eta 1 is DDPM. Raises UsageError
    for another eta: beyond 1 the level before the noise would be imaginary."""
    if not 0.0 <= eta <= 1.0:
        raise UsageError(f"eta={eta}; expected a number from 0 (no fresh noise) to 1.")
    # Of the variance at sigma_next so much is fresh. Not by sigma_next^2 - variance: in float32, which is all that some
    # devices have, that can fall below 0 for one long step.
    share = eta**2 * (1 - (sigma_next / sigma) ** 2)
    x = _toward(x, denoise(x, sigma), sigma_next / sigma * (1 - share) ** 0.5)
    return x + _factor(sigma_next * share**0.5, x) * noise(x), None


def _any(mask: Level) -> bool:
    return bool(mask) if isinstance(mask, float | int) else bool(mask.any())


def check_sigmas(sigmas: Sequence[float]) -> None:
    """Raise UsageError unless the levels fall strictly, are positive, and end at 0 or above."""
    falling = all(a > b for a, b in itertools.pairwise(sigmas))
    if len(sigmas) < 1 or not falling or sigmas[-1] < 0 or not math.isfinite(sigmas[0]):
        raise UsageError(f"sigmas={list(sigmas)!r} do not fall strictly to 0 or above; pass falling noise levels.")


def run(step: Step, denoise: Denoise, x: Array, sigmas: Sequence[float], state: Any = None) -> tuple[Array, Any]:
    """Loop a step over the levels; returns x at sigmas[-1] and the state, so that a run can be continued."""
    check_sigmas(sigmas)
    for sigma, sigma_next in itertools.pairwise(sigmas):
        x, state = step(denoise, x, sigma, sigma_next, state)
    return x, state


def euler(denoise: Denoise, x: Array, sigmas: Sequence[float]) -> Array:
    """First order, one evaluation per step. Composes exactly at any cut."""
    return run(euler_step, denoise, x, sigmas)[0]


def heun(denoise: Denoise, x: Array, sigmas: Sequence[float]) -> Array:
    """Second order, two evaluations per step (one when ending at 0). Composes exactly at any cut."""
    return run(heun_step, denoise, x, sigmas)[0]


def dpmpp_2m(denoise: Denoise, x: Array, sigmas: Sequence[float], state: History | None = None) -> Array:
    """Second-order multistep, one evaluation per step. Starts first order unless given a history."""
    return run(dpmpp_2m_step, denoise, x, sigmas, state)[0]


def euler_ancestral(
    denoise: Denoise, x: Array, sigmas: Sequence[float], noise: Callable[[Array], Array], eta: float = 1.0
) -> Array:
    """Stochastic, first order, one evaluation per step; ``noise(x)`` is the source of fresh noise."""

    def step(denoise: Denoise, x: Array, sigma: Level, sigma_next: Level, state: None) -> tuple[Array, None]:
        return euler_ancestral_step(denoise, x, sigma, sigma_next, state, noise=noise, eta=eta)

    return run(step, denoise, x, sigmas)[0]


STEPS: dict[str, Step] = {"euler": euler_step, "heun": heun_step, "dpmpp_2m": dpmpp_2m_step}
"""The deterministic steps by the names that configurations, bundles and commands use."""

STOCHASTIC: dict[str, Step] = {"euler_ancestral": euler_ancestral_step}
"""Steps that add fresh noise, for servers: what a device makes of an intermediate is decided by the intermediate."""
SERVER_SAMPLERS = (*STEPS, *STOCHASTIC)

EVALUATES_AT_END = frozenset({"heun"})
"""Samplers whose step evaluates the denoiser at sigma_next; a server cannot end them at its release level."""


def check_taught(sampler: str, sigmas: Sequence[float], cut: Cut, client: str, *, handover: bool = True) -> None:
    """Raise ConfigError where a server would evaluate below the lowest level that a release at a client's cut teaches.

    sigmas: the server's levels for that client. handover: whether a handover above the cut is a way out.
    """
    evaluated = sigmas if sampler in EVALUATES_AT_END else sigmas[:-1]
    if len(sigmas) == 1:
        return
    above = f", or give clients.{client}.handover at least {LOWEST_TRAINED_ABOVE_CUT:g}" if handover else ""
    if cut.lowest_trained >= SIGMA_MAX:
        raise ConfigError(
            f"a release of clients.{client} at sigma {cut.sigma:g} teaches a server nothing, so there is no level at "
            f"which to ask it; lower that cut{above}."
        )
    if min(evaluated) >= cut.lowest_trained * (1 - SIGMA_SLACK):
        return
    out = "sample with dpmpp_2m or euler" if sampler in EVALUATES_AT_END else "use fewer steps"
    raise ConfigError(
        f"server.sampler ({sampler}, {len(sigmas) - 1} steps) would evaluate at sigma {min(evaluated):.4g}, below "
        f"{cut.lowest_trained:.4g} where a release of clients.{client} teaches nothing; {out}{above}."
    )


def evaluations(sampler: str, sigmas: Sequence[float], *, guided: bool) -> int:
    """Network evaluations that one image costs along these levels, as a file's ``nfe`` counts them."""
    steps = len(sigmas) - 1
    again = sum(level > 0 for level in sigmas[1:]) if sampler in EVALUATES_AT_END else 0
    return (steps + again) * (2 if guided else 1)


class Counted:
    """A denoiser, or a model that also takes conditions, that counts its evaluations in ``nfe``."""

    def __init__(self, model: Callable[..., Array]) -> None:
        self.model = model
        self.nfe = 0

    def __call__(self, *arguments: Any) -> Array:
        self.nfe += 1
        return self.model(*arguments)
