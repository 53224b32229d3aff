"""The diffusion around the network: which states it sees, and the walk from noise to a picture.

Shapes: B batch, S side. A *state* is what is noised: the picture, or with ``residual_x0`` its
distance from the degraded one, (x - y) / ``residual_scale``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vsp_model.condition import Dial, guided
from vsp_model.idm.config import IDMConfig
from vsp_model.idm.samplers import Sampler, advance, plan
from vsp_model.idm.schedule import alpha_bars, level_at, noised, times, to_x0
from vsp_model.randomness import generator_for

_NO_DIAL = Dial()
_SHARED = "mean"

Network = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""State (B, 3, S, S), signal (B,), degraded picture, qualities (B,) -> prediction."""


class Settings(NamedTuple):
    """How a restoration goes, as plain numbers."""

    dial: Dial | None
    """None without a quality condition."""
    steps: int
    sampler: Sampler
    eta: float
    start: str
    """"noise" or "estimate"."""
    t0: float
    """Share of the schedule at which an estimate's chain begins; 1 for pure noise."""


@dataclass(frozen=True)
class StepNoise:
    """The noise of a sampler's steps, each drawn when it is asked for and then forgotten.

    Attributes:
        keys: One a face.
        seed: Of the run.
        shape: (3, S, S).
        device: Where it is wanted.
    """

    keys: tuple[str, ...]
    seed: int
    shape: tuple[int, ...]
    device: torch.device | str = "cpu"

    def at(self, time: int) -> Tensor:
        """Standard normal noise of the step to a time, (B, 3, S, S) float32."""
        return _normal(self.keys, self.seed, f"idm.{time}", self.shape).to(self.device)


class Drawn(NamedTuple):
    """Every random quantity of a batch."""

    start: Tensor
    """(B, 3, S, S) float32, standard normal."""
    steps: StepNoise | None
    """None: no step adds any."""

    def to(self, device: torch.device | str) -> Drawn:
        """The same values on another device."""
        steps = self.steps and StepNoise(self.steps.keys, self.steps.seed, self.steps.shape, device)
        return Drawn(self.start.to(device, non_blocking=True), steps)


def draw(size: int, keys: Sequence[str], seed: int = 0, mode: str = "seeded") -> Drawn:
    """Draw for one batch; "mean": one start for every face and run, and no noise afterwards.

    Raises:
        ValueError: for another mode.
    """
    shape = (3, size, size)
    if mode == "mean":
        start = _normal((_SHARED,), 0, "idm.mean", shape)
        return Drawn(_format(start.expand(len(keys), -1, -1, -1)), None)
    if mode != "seeded":
        raise ValueError(f"noise mode {mode!r}: expected one of seeded, mean")
    start = _normal(keys, seed, "idm.start", shape)
    return Drawn(start, StepNoise(tuple(keys), seed, shape))


def _normal(keys: Sequence[str], seed: int, purpose: str, shape: tuple[int, ...]) -> Tensor:
    rows = torch.empty(len(keys), *shape)
    for row, key in zip(rows.numpy(), keys, strict=True):
        generator_for(seed, key, purpose).standard_normal(out=row, dtype=np.float32)
    return _format(rows)


def _format(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


class Chain:
    """The forward process of a configuration and the ways back."""

    def __init__(self, config: IDMConfig) -> None:
        self.config = config
        self.alpha_bar = alpha_bars(config.noise)  # (T + 1,)

    def state_of(self, picture: Tensor, lq: Tensor) -> Tensor:
        """What is diffused for a picture."""
        if self.config.param != "residual_x0":
            return picture
        return (picture - lq) / self.config.residual_scale

    def picture_of(self, state: Tensor, lq: Tensor) -> Tensor:
        """The picture of a clean state."""
        if self.config.param != "residual_x0":
            return state
        return lq + self.config.residual_scale * state

    def clipped(self, x0: Tensor, lq: Tensor) -> Tensor:
        """A clean state whose picture lies in [-1, 1]."""
        if self.config.param != "residual_x0":
            return x0.clamp(-1, 1)
        scale = self.config.residual_scale
        return torch.clamp(x0, (-1 - lq) / scale, (1 - lq) / scale)

    def top(self, settings: Settings) -> int:
        """The time at which a chain begins."""
        if settings.start == "noise":
            return self.config.noise.num_steps
        return start_time(settings.t0, self.config.noise.num_steps)

    def begin(self, settings: Settings, start: Tensor, lq: Tensor, estimate: Tensor) -> Tensor:
        """The first state: pure noise, or an estimate that is clamped and noised (DifFace).

        What another model made may lie a little beyond [-1, 1], where no training face ever was.
        """
        if settings.start == "noise":
            return start
        level = level_at(float(self.alpha_bar[self.top(settings)]))
        return noised(self.state_of(estimate.clamp(-1, 1), lq), start, level)

    def sample(
        self,
        network: Network,
        lq: Tensor,
        drawn: Drawn,
        settings: Settings,
        estimate: Tensor | None = None,
    ) -> Tensor:
        """Walk a whole chain.

        Args:
            network: Of one step.
            lq: Degraded faces y, (B, 3, S, S) in [-1, 1].
            drawn: Of this batch, on the same device.
            settings: How.
            estimate: What a chain with start "estimate" begins at, (B, 3, S, S), clamped to
                [-1, 1]; None: ``lq`` itself.

        Returns:
            (B, 3, S, S) in [-1, 1] but for rounding.
        """
        start = drawn.start.to(lq.dtype)
        state = self.begin(settings, start, lq, lq if estimate is None else estimate)
        walk = times(self.top(settings), settings.steps)
        for step in plan(self.alpha_bar, walk, settings.sampler, settings.eta):
            signal = torch.full((len(lq),), float(step.level.signal), device=lq.device)
            said = guided(partial(network, state, signal, lq), settings.dial or _NO_DIAL, lq)
            x0 = to_x0(self.config.param, said.to(lq.dtype), state, step.level)
            noise = drawn.steps.at(step.to_time) if drawn.steps and step.of_noise > 0 else None
            state = advance(state, self.clipped(x0, lq), step, noise)
        return self.picture_of(state, lq)


def start_time(t0: float, num_steps: int) -> int:
    """The time that lies at a share of the schedule, at least 1."""
    return max(1, math.floor(t0 * num_steps + 0.5))
