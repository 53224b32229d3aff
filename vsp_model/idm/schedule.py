"""The forward process q(x_t | x_0) = N(sqrt(ab_t) x_0, (1 - ab_t) I) as pure functions (DDPM; SR3).

Times count t = 0 ... T: 0 is clean, T the noisiest; ``alpha_bar`` has T + 1 values and begins with
1. All of it is float64 arithmetic; tensors see the roundings of its results.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from vsp_model.idm.config import NoiseConfig

Param = Literal["eps", "v", "x0", "residual_x0"]
Share = TypeVar("Share", float, np.ndarray)


class Level(NamedTuple):
    """How much of a state is signal: x_t = signal x_0 + noise eps, signal^2 + noise^2 = 1.

    Plain numbers for a whole batch, or (B, 1, 1, 1) tensors, one for each item.
    """

    signal: float | Tensor
    """sqrt(ab): what the network is told."""
    noise: float | Tensor
    """sqrt(1 - ab)."""


def alpha_bars(config: NoiseConfig) -> np.ndarray:
    """Products of 1 - beta with betas evenly spaced [S], (T + 1,) float64, from 1 down."""
    betas = np.linspace(config.beta_start, config.beta_end, config.num_steps, dtype=np.float64)
    return np.concatenate([[1.0], np.cumprod(1 - betas)])


def continuous_signal(alpha_bar: np.ndarray, t: np.ndarray, share: np.ndarray) -> np.ndarray:
    """A signal level between the times t - 1 and t, even in sqrt(ab) [S: SR3].

    Args:
        alpha_bar: (T + 1,).
        t: Integers in 1 ... T, of any shape.
        share: Where between sqrt(ab_t), 0, and sqrt(ab_{t-1}), 1, of that shape.
    """
    low, high = np.sqrt(alpha_bar[t]), np.sqrt(alpha_bar[t - 1])
    return low + share * (high - low)


def level_at(alpha_bar: float) -> Level:
    """The level of a whole batch."""
    return Level(float(np.sqrt(alpha_bar)), float(np.sqrt(1 - alpha_bar)))


def levels_of(signal: np.ndarray, like: Tensor) -> Level:
    """Signal levels (B,) as tensors (B, 1, 1, 1) beside a batch."""
    pair = (signal, np.sqrt(1 - np.square(signal)))
    tensors = (torch.from_numpy(each).to(like)[:, None, None, None] for each in pair)
    return Level(*tensors)


def noised(x0: Tensor, noise: Tensor, level: Level) -> Tensor:
    """Noise clean states to a level (Eq. 4, DDPM)."""
    return level.signal * x0 + level.noise * noise


def target_of(param: Param, x0: Tensor, noise: Tensor, level: Level) -> Tensor:
    """What the network has to predict; v = signal eps - noise x_0 (Salimans and Ho)."""
    if param == "eps":
        return noise
    if param == "v":
        return level.signal * noise - level.noise * x0
    return x0


def to_x0(param: Param, prediction: Tensor, x_t: Tensor, level: Level) -> Tensor:
    """The clean state that a prediction means."""
    if param == "eps":
        return (x_t - level.noise * prediction) / level.signal
    if param == "v":
        return level.signal * x_t - level.noise * prediction
    return prediction


def from_x0(param: Param, x0: Tensor, x_t: Tensor, level: Level) -> Tensor:
    """The prediction that means a clean state: the inverse of ``to_x0``."""
    if param == "eps":
        return (x_t - level.signal * x0) / level.noise
    if param == "v":
        return (level.signal * x_t - x0) / level.noise
    return x0


def times(top: int, steps: int) -> list[int]:
    """``steps + 1`` times from ``top`` down to 0, evenly spread, all different.

    Args:
        top: Where the chain begins.
        steps: 1 to ``top``.
    """
    return [(top * left + steps // 2) // steps for left in range(steps, -1, -1)]
