"""The quality condition: a face's quality as an input of any restorer (IQPFR, Sec. III; ours).

A quality S is told to the network as a percentile u of the scores that training saw, because
scores crowd in a narrow band: one in two hundred faces of FFHQ reaches the released model's top
bin. What a network makes of it begins as zero, so that a trained model without the condition gives
the same bits with it, an IQP of two books the same codes: what its HQ+ codes weigh then follows the
quality (inferred, spec of IQP 1.8; the released code adds a table of ten equal bins).

Shapes: B batch, D width of the embedding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import BeforeValidator, Field
from torch import Tensor, nn

from vsp_model.config import Config
from vsp_model.layers import ItemLinear

NUM_KNOTS = 101


def _percentile(value: Any) -> Any:
    """A number or "unknown"; NaN, by which numbers say so, becomes the word."""
    if value == "unknown":
        return value
    try:
        if isinstance(value, bool):  # YAML reads off as false
            raise ValueError
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError("expected 0 to 1, or unknown") from None
    return "unknown" if math.isnan(number) else number


Percentile = Annotated[float | Literal["unknown"], BeforeValidator(_percentile)]


class ConditionConfig(Config):
    """How a quality is embedded.

    Attributes:
        mode: "continuous": sines and cosines of u through two layers; "quantile_bins": a table over
            u, interpolated linearly (both: spec of IQP, 1.8; the released code looks one of ten
            equal bins up [C]).
        num_bins: Rows of the table, 16 in that spec.
        num_frequencies: f_k = 2^k / 2, k = 0 ... K - 1, in cycles over the range of u; which f_k
            and how many is ours [I]: the slowest, half a cycle, tells 0 from 1.
        hidden: Width between the two layers [I].
        drop: Share of training faces whose quality is withheld, which teaches "unknown" (0.15 in
            that spec).
        default: What is asked for where nobody asks: a percentile, or "unknown".
    """

    mode: Literal["continuous", "quantile_bins"] = "continuous"
    num_bins: int = Field(16, ge=2)
    num_frequencies: int = Field(6, ge=1)
    hidden: int = Field(64, ge=1)
    drop: float = Field(0.15, ge=0, le=1)
    default: Percentile = "unknown"


class Dial(NamedTuple):
    """What a restoration is asked for, as plain numbers."""

    quality: float = math.nan
    """Percentile of the training scores, 0 to 1; NaN: unknown."""
    guidance: float = 1.0
    """out = f(unknown) + guidance (f(quality) - f(unknown)); 1: f(quality) alone."""

    @property
    def guides(self) -> bool:
        """Whether the network has to run twice."""
        return self.guidance != 1.0 and not math.isnan(self.quality)

    def tensor(self, like: Tensor) -> Tensor:
        """The quality for each of a batch, (B,) float32."""
        return torch.full((len(like),), self.quality, device=like.device, dtype=torch.float32)


def guided(predict: Callable[[Tensor], Tensor], dial: Dial, like: Tensor) -> Tensor:
    """Guidance without a classifier (Ho and Salimans), on whatever ``predict`` puts out.

    Args:
        predict: qualities (B,) -> prediction.
        dial: What is asked for.
        like: Any tensor of the batch.
    """
    wanted = predict(dial.tensor(like))
    if not dial.guides:
        return wanted
    unknown = predict(torch.full_like(dial.tensor(like), math.nan))
    return unknown + dial.guidance * (wanted - unknown)


def _look(condition: nn.Module, _: object = None) -> None:
    """Note whether the knots of a condition that were set or loaded are scores."""
    assert isinstance(condition, QualityCondition)
    condition.scored = not bool(condition.knots.isnan().any())


class QualityCondition(nn.Module):
    """Percentile of quality -> embedding (B, D), zero until it is trained.

    Args:
        width: D.
        config: How.
    """

    knots: Tensor
    scored: bool
    """Whether it can know a quality: false where every face of its training was unknown."""

    def __init__(self, width: int, config: ConditionConfig) -> None:
        super().__init__()
        self.config = config
        self.unknown = nn.Parameter(torch.zeros(width))
        if config.mode == "continuous":
            self.first = ItemLinear(2 * config.num_frequencies, config.hidden)
            self.second = ItemLinear(config.hidden, width)
            nn.init.zeros_(self.second.weight)
            nn.init.zeros_(self.second.bias)
        else:
            self.table = nn.Parameter(torch.zeros(config.num_bins, width))
        # Scores at even shares of the training set, ascending; an even spread until they are known,
        # NaN where training had none.
        self.register_buffer("knots", torch.arange(NUM_KNOTS) / (NUM_KNOTS - 1.0))
        # No property of the knots: networks without data are asked, too.
        self.scored = True
        self.register_load_state_dict_post_hook(_look)

    def forward(self, quality: Tensor) -> Tensor:
        """Args: quality (B,), percentiles; clamped to [0, 1]; NaN: unknown. Returns: (B, D)."""
        known = ~quality.isnan()
        u = quality.nan_to_num(0.5).clamp(0, 1)
        told = self._waves(u) if self.config.mode == "continuous" else self._rows(u)
        return torch.where(known[:, None], told, self.unknown.to(told.dtype))

    def _waves(self, u: Tensor) -> Tensor:
        octaves = torch.arange(self.config.num_frequencies, device=u.device)
        angle = 2 * math.pi * u[:, None] * (0.5 * 2.0**octaves)  # (B, K)
        waves = torch.cat([angle.sin(), angle.cos()], dim=1)
        return self.second(F.silu(self.first(waves)))

    def _rows(self, u: Tensor) -> Tensor:
        place = u * (self.config.num_bins - 1)
        low = place.floor().long().clamp(max=self.config.num_bins - 2)
        share = (place - low)[:, None]
        return self.table[low] * (1 - share) + self.table[low + 1] * share

    def withheld(self, quality: Tensor, chances: Tensor) -> Tensor:
        """For training: qualities (B,) with ``config.drop`` of them unknown.

        Args:
            quality: Percentiles.
            chances: (B,), even in [0, 1), from each record's own stream.
        """
        return torch.where(chances < self.config.drop, torch.nan, quality)

    @torch.no_grad()
    def set_distribution(self, knots: Sequence[float]) -> None:
        """Note the scores of the training set at even shares of it, ``NUM_KNOTS``, ascending.

        NaN says that there were none: then every score is unknown.
        """
        self.knots.copy_(torch.tensor(knots, dtype=torch.float32))
        _look(self)

    def percentile(self, scores: Tensor) -> Tensor:
        """Share of the training scores that are lower than each score (B,), and half of the equal.

        Between knots linear; NaN stays.
        """
        scores = scores.to(self.knots)
        lower, upto = (self._share(scores, right=right) for right in (False, True))
        upto = torch.where(scores >= self.knots[-1], 1.0, upto)  # also where many share the best
        return torch.where(scores.isnan(), torch.nan, (lower + upto) / 2)

    def _share(self, scores: Tensor, *, right: bool) -> Tensor:
        """Where scores (B,) lie among the knots, 0 to 1: left or right of all that are equal."""
        knots = self.knots
        above = torch.searchsorted(knots, scores, right=right).clamp(1, NUM_KNOTS - 1)
        low, high = knots[above - 1], knots[above]
        share = ((scores - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
        return (above - 1 + share) / (NUM_KNOTS - 1)
