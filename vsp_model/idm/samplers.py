"""The reverse process: each step is one sum, x_s = a x_0 + b x_t + c noise, whatever the sampler.

The noise that a state holds is always computed from the clipped estimate of x_0, not taken from the
network, so that clipping holds the chain in range [S: SR3]. With it both samplers are sums of the
same three terms, and DDIM with eta 1 is the ancestral sampler, on any sub-sequence of times.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import sqrt
from typing import Literal, NamedTuple

import numpy as np
from torch import Tensor

from vsp_model.idm.schedule import Level, level_at

Sampler = Literal["ddim", "ancestral"]


class Step(NamedTuple):
    """From time t to a lower time s, as plain numbers."""

    to_time: int
    """s."""
    level: Level
    """Of the state before."""
    of_x0: float
    """Weight of the estimate of x_0."""
    of_state: float
    """Weight of x_t."""
    of_noise: float
    """Deviation of the noise that is added."""


def ddim_step(alpha_bar: np.ndarray, t: int, s: int, eta: float) -> Step:
    """DDIM (Song et al., Eq. 12, 16): eta 0 adds no noise, 1 as much as the ancestral sampler."""
    here, there = float(alpha_bar[t]), float(alpha_bar[s])
    sigma = eta * sqrt((1 - there) / (1 - here) * (1 - here / there))
    kept = sqrt(max(0.0, 1 - there - sigma**2)) / sqrt(1 - here)  # of the state's own noise
    return Step(s, level_at(here), sqrt(there) - kept * sqrt(here), kept, sigma)


def ancestral_step(alpha_bar: np.ndarray, t: int, s: int) -> Step:
    """Mean and variance of q(x_s | x_t, x_0) (Eq. 7, DDPM), of neighbours and of distant times."""
    here, there = float(alpha_bar[t]), float(alpha_bar[s])
    alpha = here / there
    return Step(
        s,
        level_at(here),
        sqrt(there) * (1 - alpha) / (1 - here),
        sqrt(alpha) * (1 - there) / (1 - here),
        sqrt((1 - there) / (1 - here) * (1 - alpha)),
    )


def plan(
    alpha_bar: np.ndarray, times: Sequence[int], sampler: Sampler, eta: float = 0.0
) -> list[Step]:
    """All steps of a chain.

    Args:
        alpha_bar: (T + 1,).
        times: Falling, to 0.
        sampler: Which.
        eta: Of DDIM; the ancestral sampler does not read it.
    """
    if sampler == "ancestral":
        return [ancestral_step(alpha_bar, t, s) for t, s in pairwise(times)]
    return [ddim_step(alpha_bar, t, s, eta) for t, s in pairwise(times)]


def advance(state: Tensor, x0: Tensor, step: Step, noise: Tensor | None = None) -> Tensor:
    """One step: the state at s.

    Args:
        state: x_t.
        x0: The estimate of x_0, clipped.
        step: Its numbers.
        noise: Standard normal; None for none.
    """
    moved = step.of_x0 * x0 + step.of_state * state
    return moved if noise is None else moved + step.of_noise * noise
