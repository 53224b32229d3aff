"""Mean rank over columns, as the paper defines it, and how sure it is."""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from typing import Literal

import numpy as np

from pipeline.metrics.pixels import Values
from pipeline.metrics.table import Better

_TAILS = (2.5, 97.5)


def badness(values: Values, better: Sequence[Better]) -> Values:
    """The same columns with small as good.

    Args:
        values: (..., methods, columns).
        better: A word a column.
    """
    turned = values.copy()
    for place, word in enumerate(better):
        if word == "higher":
            turned[..., place] *= -1
        elif word == "zero":
            turned[..., place] = np.abs(turned[..., place])
    return turned


def mean_rank(bad: Values, ties: Literal["min", "average"] = "min") -> Values:
    """Mean over columns of a method's place in each, (methods,).

    Args:
        bad: (methods, columns) of `badness`.
        ties: "min" gives equal methods the best of their places (competition ranking), which
            reproduces the VSPBFR paper's Tables I and II; "average" the mean of their places.
    """
    from scipy.stats import rankdata

    return np.asarray(rankdata(bad, method=ties, axis=0).mean(axis=1), np.float64)


def half_up(value: float, digits: int = 2) -> str:
    """As the paper prints ranks: 5.625 is 5.63, where Python's format says 5.62."""
    return str(Decimal(repr(float(value))).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP))


@dataclass(frozen=True, slots=True, eq=False)
class RankSample:
    """Mean ranks over resamples of the images.

    Attributes:
        low: (methods,), the 2.5th percentile.
        high: The 97.5th.
        places: (methods, methods), share of resamples in which method i has place j + 1.
    """

    low: Values
    high: Values
    places: Values


def rank_sample(bad: Values) -> RankSample:
    """How mean ranks scatter.

    Args:
        bad: (resamples, methods, columns) of `badness`.
    """
    num_methods = bad.shape[1]
    ranks = np.zeros(bad.shape[:2])
    for column in np.moveaxis(bad, -1, 0):
        ranks += _competition(column)
    ranks /= bad.shape[2]
    low, high = np.percentile(ranks, _TAILS, axis=0)
    # Sums of whole numbers over one count: equal means are equal bits.
    place = _competition(ranks)
    shares = [(place == number + 1).mean(axis=0) for number in range(num_methods)]
    return RankSample(low, high, np.stack(shares, axis=1))


def _competition(values: Values) -> Values:
    """Places along the last axis: one more than how many are better."""
    better = values[..., None, :] < values[..., :, None]
    return np.asarray(1 + better.sum(axis=-1), np.float64)
