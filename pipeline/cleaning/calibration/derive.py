"""The statistics behind the thresholds: shares with intervals, and who would pass for whom.

Strangers are pairs of images, and pairs that share an image are not independent: 128 images make
16,256 pairs, but no more than 128 people. So intervals about pairs come from drawing images, not
pairs.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from vsp_model.randomness import generator_for

Embeddings = NDArray[np.float64]
Values = NDArray[np.float64]
Mask = NDArray[np.bool_]

RESAMPLES = 200
_Z = NormalDist().inv_cdf(0.975)


def wilson(hits: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share, by Wilson's score; (0, 1) of nothing."""
    if not count:
        return 0.0, 1.0
    share, z2 = hits / count, _Z**2
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = _Z * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2)) / (1 + z2 / count)
    # At none and at all of them rounding would leave the bound beside 0 or 1.
    low = 0.0 if hits == 0 else max(0.0, middle - half)
    return low, 1.0 if hits == count else min(1.0, middle + half)


def strangers(persons: Sequence[str | None], same: Mask) -> Mask:
    """Which pairs (i, j) show two people, (N, N).

    Args:
        persons: Who it is, one an image, None where nobody says so.
        same: (N, N), pairs that look like one person on the undamaged faces.
    """
    names = np.array([name or f"\0{place}" for place, name in enumerate(persons)])
    return np.asarray((names[:, None] != names[None, :]) & ~same, np.bool_)


def stranger_threshold(
    likeness: Embeddings, apart: Mask, *, far: float, confidence: float
) -> float:
    """The smallest likeness that at most the share `far` of strangers reaches, surely.

    In each of 200 resamples of the images the larger of two bounds is taken: the quantile of the
    pairs, and, for where the images are too few for one, a normal tail through their mean and
    spread. The threshold is the `confidence` quantile of these.

    Args:
        likeness: (N, N) cosines; row j is the face handed in, column i the one it should be.
        apart: (N, N), the pairs that count.
        far: Share of strangers that may pass, such as 0.001.
        confidence: Of the bound, such as 0.95.

    Returns:
        A cosine; above 1 where there is no pair.
    """
    count = len(likeness)
    rows, columns = np.nonzero(apart)
    order = np.argsort(-likeness[rows, columns], kind="stable")
    rows, columns = rows[order], columns[order]
    values = likeness[rows, columns]
    stream = generator_for(0, "strangers", "thresholds")
    drawn = stream.multinomial(count, np.full(count, 1 / count), RESAMPLES) if count else ()
    weights = (each[rows] * each[columns] for each in drawn)
    bounds = [_bound(values, weight, far) for weight in weights if weight.any()]
    # A threshold is reached by what equals it, so it lies just above the bound.
    return math.nextafter(float(np.quantile(bounds, confidence)) if bounds else 1.0, 2)


def _bound(values: Values, weight: NDArray[np.int64], far: float) -> float:
    """What the share `far` of one resample's pairs lies above.

    Args:
        values: Likenesses of the pairs, falling.
        weight: How often each pair is in the resample.
        far: The share.
    """
    reached = np.cumsum(weight)
    total = reached[-1]
    # The pairs before this place are at most `far` of all; it is the first to stay out.
    place = int(np.searchsorted(reached, far * total, side="right"))
    mean = float(values @ weight / total)
    spread = math.sqrt(float((values - mean) ** 2 @ weight / total))
    tail = mean + NormalDist().inv_cdf(1 - far) * spread
    return max(tail, float(values[min(place, len(values) - 1)]))


def longest_run(flags: Sequence[bool]) -> range:
    """Places of the longest run of True, of several equally long ones the last.

    Profit grows with damage until a face is ruined; a mild level that profits while a more severe
    one does not contradicts that, and is left alone.
    """
    best, start = range(0), 0
    for place, flag in enumerate(flags):
        if not flag:
            start = place + 1
        elif place + 1 - start >= len(best):
            best = range(start, place + 1)
    return best
