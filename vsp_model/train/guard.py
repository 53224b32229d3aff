"""When to stop training for a score: a judge that is trained for can be fooled, others tell.

Watched are the trained judge A, a monitor B that is never trained for, the identity and the energy
of the highest frequencies. When A rises while another falls, time and again, or when B stays ever
further behind A, the loss's weight becomes zero for good (inferred; spec of IQP 1.9).

A look is a mean over some hundred faces, so each differs from the last: what rises or falls is told
by a trend over many looks, never by two of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from vsp_model.config import Config

Values = NDArray[np.float64]

WINDOW = 40
"""Looks that a trend is sought in: the last ones."""
FEW = 8
"""Looks that are averaged where the first are compared with the last."""
CERTAINTY = 3.5
"""Standard errors that a change must have to be one; so large as every look tests anew."""
FIGURES = ("score", "monitor", "cosine", "detail", "natural")
"""What a stage calls the fields of an ``Evaluation``, in their order."""
_LATER, _EARLIER = np.tril_indices(WINDOW, -1)  # pairs of looks; those of the first n come first


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
        patience: Looks in a row that find A rising while B or the identity falls, or the detail
            grown out of proportion.
        gap: By how much B's distance to A may grow beyond that of the first looks.
        fall: By how much the identity may fall below that of the first looks [I]: a score that is
            fooled takes the person before a trend can be told. Null: by anything.
        detail: More than so many times the detail of the first looks, or of the true faces if they
            have more, is out of proportion.
        slack: Changes up to this within ``WINDOW`` looks count as none.
        every_steps: Training steps whose mean is one look. A trend is not told from fewer than
            eleven looks, so a run should have some dozens.
    """

    patience: int = Field(3, ge=1)
    gap: float = Field(0.05, gt=0)
    fall: float | None = Field(0.05, gt=0)
    detail: float = Field(1.5, gt=1)
    slack: float = Field(0.0, ge=0)
    every_steps: int = Field(25, ge=1)


class QualityGuard:
    """Follows evaluations; once it has stopped, it stays so.

    Attributes:
        stopped: Why, in words; empty while all is well.
    """

    def __init__(self, config: GuardConfig) -> None:
        self.config = config
        self.stopped = ""
        self._first: list[Evaluation] = []
        self._last: list[Evaluation] = []
        self._bad_looks = 0

    @property
    def weight(self) -> float:
        """What the loss's weight is multiplied with, 1 or 0."""
        return 0.0 if self.stopped else 1.0

    def observe(self, now: Evaluation) -> float:
        """Take a look; returns the weight from now on."""
        if self.stopped:
            return self.weight
        self._first = [*self._first, now][:FEW]
        self._last = [*self._last, now][-WINDOW:]
        self._bad_looks = self._bad_looks + 1 if self._is_bad() else 0
        self.stopped = self._verdict()
        return self.weight

    def _verdict(self) -> str:
        if self._bad_looks >= self.config.patience:
            return f"the score rose for {self._bad_looks} looks at the cost of the rest"
        before, behind, error = _compared(_gaps(self._first), _gaps(self._last))
        if behind - before > max(self.config.gap, CERTAINTY * error):
            return f"the monitor is {behind:.3f} behind, {before:.3f} before"
        known, now, error = _compared(_identities(self._first), _identities(self._last))
        fall = self.config.fall
        if fall is not None and known - now > max(fall, CERTAINTY * error):
            return f"the identity is {now:.3f}, {known:.3f} before"
        return ""

    def _is_bad(self) -> bool:
        last, slack = self._last, self.config.slack
        if not _rises(_known(look.trained for look in last), slack):
            return False
        costs = ([look.monitor for look in last], [look.identity for look in last])
        return self._is_harsh() or any(_rises(-_known(cost), slack) for cost in costs)

    def _is_harsh(self) -> bool:
        """Whether the detail is out of proportion, by means of a few looks."""
        first, now = (_known(x.detail for x in some[-FEW:]) for some in (self._first, self._last))
        natural = _known(look.natural for look in self._last[-FEW:])
        if not len(first) or not len(now):
            return False
        usual = max(first.mean(), natural.mean() if len(natural) else 0.0)
        return bool(now.mean() > usual * self.config.detail)

    def state_dict(self) -> dict[str, Any]:
        """What must be resumed, as plain values."""
        return {
            "stopped": self.stopped,
            "begin": [list(look) for look in self._first],
            "recent": [list(look) for look in self._last],
            "bad_looks": self._bad_looks,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state_dict``."""
        self.stopped = state["stopped"]
        # A checkpoint of before there were trends has neither: its looks begin anew.
        self._first = [Evaluation(*look) for look in state.get("begin", ())]
        self._last = [Evaluation(*look) for look in state.get("recent", ())]
        self._bad_looks = state["bad_looks"]


def _known(values: Iterable[float | None]) -> Values:
    return np.array([value for value in values if value is not None], np.float64)


def _gaps(looks: Sequence[Evaluation]) -> Values:
    """How far B is behind A."""
    return _known(None if x.monitor is None else x.trained - x.monitor for x in looks)


def _identities(looks: Sequence[Evaluation]) -> Values:
    return _known(look.identity for look in looks)


def _rises(values: Values, slack: float) -> bool:
    """Whether the later values are the higher ones (Mann and Kendall), by more than the slack.

    The test counts pairs, so that it supposes nothing of how the noise is distributed.
    """
    count = len(values)
    half, pairs = count // 2, count * (count - 1) // 2
    if not half or values[-half:].mean() - values[:half].mean() <= slack:
        return False
    found = np.sign(values[_LATER[:pairs]] - values[_EARLIER[:pairs]]).sum()
    return bool(found - 1 > CERTAINTY * math.sqrt(pairs * (2 * count + 5) / 9))


def _compared(first: Values, last: Values) -> tuple[float, float, float]:
    """Means of the first and the last values, and the standard error of their difference.

    The noise is told by steps from one to the next, which a drift hardly changes (von Neumann).
    """
    count = min(FEW, len(first), len(last) // 2)
    if not count:
        return 0.0, 0.0, 0.0
    error = math.sqrt(np.square(np.diff(last)).mean() / count)
    return float(first[:count].mean()), float(last[-count:].mean()), error


class Watch:
    """Means over steps as the guard's looks, of figures that a stage puts out.

    Known are those of ``FIGURES``.
    """

    def __init__(self, config: GuardConfig) -> None:
        self.guard = QualityGuard(config)
        self._steps: list[dict[str, float]] = []

    def observe(self, terms: Mapping[str, Tensor]) -> float:
        """Follow a step, by its means over all workers; returns the weight from now on."""
        self._steps.append({name: terms[name].item() for name in FIGURES if name in terms})
        if len(self._steps) >= self.guard.config.every_steps:
            score, *others = map(self._mean, FIGURES)
            self._steps = []
            if score is not None:
                self.guard.observe(Evaluation(score, *others))
        return self.guard.weight

    def _mean(self, name: str) -> float | None:
        """Over the steps that told it: a judge may have had nothing to look at."""
        told = _known(step.get(name) for step in self._steps)
        return float(told.mean()) if len(told) else None

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
