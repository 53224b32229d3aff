"""When to stop training for a score: a judge that is trained for can be fooled, others tell.

Watched are the trained judge A, a monitor B that is never trained for, the identity and the energy
of the highest frequencies. When A rises while another falls, time and again, or when B stays ever
further behind A, the loss's weight becomes zero for good (inferred; spec of IQP 1.9).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from vsp_model.config import Config

_FIGURES = ("score", "monitor", "cosine", "detail", "natural")


class Evaluation(NamedTuple):
    """One look at the restored faces, means over them."""

    trained: float
    """Score of judge A, which the loss maximises, 0 to 1."""
    monitor: float | None = None
    """Score of judge B, 0 to 1; None where there is none."""
    identity: float | None = None
    """Cosine to the true faces."""
    detail: float | None = None
    """Energy of the highest frequencies; see ``detail_energy``."""
    natural: float | None = None
    """That of the true faces; None where nobody knows."""


class GuardConfig(Config):
    """When it is enough.

    Attributes:
        patience: Looks in a row at which A rose while B or the identity fell, or the detail grew
            out of proportion.
        gap: By how much B's distance to A may grow beyond that of the first look.
        detail: More than so many times the detail of the first look, or of the true faces if they
            have more, is out of proportion.
        slack: Changes up to this count as none.
        every_steps: Training steps whose mean is one look.
    """

    patience: int = Field(3, ge=1)
    gap: float = Field(0.05, gt=0)
    detail: float = Field(1.5, gt=1)
    slack: float = Field(0.0, ge=0)
    every_steps: int = Field(100, ge=1)


class QualityGuard:
    """Follows evaluations; once it has stopped, it stays so.

    Attributes:
        stopped: Why, in words; empty while all is well.
    """

    def __init__(self, config: GuardConfig) -> None:
        self.config = config
        self.stopped = ""
        self._first: Evaluation | None = None
        self._last: Evaluation | None = None
        self._bad_looks = 0

    @property
    def weight(self) -> float:
        """What the loss's weight is multiplied with, 1 or 0."""
        return 0.0 if self.stopped else 1.0

    def observe(self, now: Evaluation) -> float:
        """Take a look; returns the weight from now on."""
        first, last = self._first or now, self._last or now
        self._first, self._last = first, now
        if self.stopped:
            return self.weight
        self._bad_looks = self._bad_looks + 1 if self._is_bad(first, last, now) else 0
        if self._bad_looks >= self.config.patience:
            self.stopped = f"the score rose for {self._bad_looks} looks at the cost of the rest"
        elif self._gap(now) - self._gap(first) > self.config.gap:
            behind, before = self._gap(now), self._gap(first)
            self.stopped = f"the monitor is {behind:.3f} behind, {before:.3f} before"
        return self.weight

    def _is_bad(self, first: Evaluation, last: Evaluation, now: Evaluation) -> bool:
        slack = self.config.slack
        if now.trained <= last.trained + slack:
            return False
        pairs = ((last.monitor, now.monitor), (last.identity, now.identity))
        if any(a is not None and b is not None and b < a - slack for a, b in pairs):
            return True
        return (
            first.detail is not None
            and now.detail is not None
            and now.detail > max(first.detail, now.natural or 0.0) * self.config.detail
        )

    @staticmethod
    def _gap(look: Evaluation) -> float:
        return 0.0 if look.monitor is None else look.trained - look.monitor

    def state_dict(self) -> dict[str, Any]:
        """What must be resumed, as plain values."""
        return {
            "stopped": self.stopped,
            "first": None if self._first is None else list(self._first),
            "last": None if self._last is None else list(self._last),
            "bad_looks": self._bad_looks,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state_dict``."""
        self.stopped = state["stopped"]
        self._first = None if state["first"] is None else Evaluation(*state["first"])
        self._last = None if state["last"] is None else Evaluation(*state["last"])
        self._bad_looks = state["bad_looks"]


class Watch:
    """Means over steps as the guard's looks, of figures that a stage puts out.

    Known are "score", "monitor", "cosine", "detail" and "natural", as in ``Evaluation``.
    """

    def __init__(self, config: GuardConfig) -> None:
        self.guard = QualityGuard(config)
        self._steps: list[dict[str, float]] = []

    def observe(self, terms: Mapping[str, Tensor]) -> float:
        """Follow a step, by its means over all workers; returns the weight from now on."""
        self._steps.append({name: terms[name].item() for name in _FIGURES if name in terms})
        if len(self._steps) >= self.guard.config.every_steps:
            sums = {n: sum(step[n] for step in self._steps) for n in self._steps[0]}
            means = {n: total / len(self._steps) for n, total in sums.items()}
            self._steps = []
            self.guard.observe(Evaluation(means["score"], *map(means.get, _FIGURES[1:])))
        return self.guard.weight

    def state_dict(self) -> dict[str, Any]:
        """What must be resumed, as plain values."""
        return {"guard": self.guard.state_dict(), "steps": list(self._steps)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state_dict``."""
        self.guard.load_state_dict(state["guard"])
        self._steps = list(state["steps"])


def detail_energy(image: Tensor) -> Tensor:
    """Mean square of what a 3 x 3 mean takes away, a scalar; (B, 3, H, W)."""
    return (image[..., 1:-1, 1:-1] - F.avg_pool2d(image, 3, stride=1)).square().mean()
