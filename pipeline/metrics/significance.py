"""Whether two methods differ on the same images: Wilcoxon's test, corrected for many pairs."""

import math

import numpy as np
from numpy.typing import NDArray

from pipeline.metrics.pixels import Values

_MAX_EXACT = 50  # images up to which scipy takes the exact distribution


def wilcoxon(differences: Values) -> Values:
    """Two-sided p of the signed-rank test, (P,), as scipy's; 1 where no image differs.

    Args:
        differences: (P, N), image by image; NaN for an image that one of the two has no value for.
    """
    found = np.ones(len(differences))
    rest = (np.nan_to_num(differences) != 0).any(axis=1)
    if differences.shape[1] > _MAX_EXACT:
        is_quick, p_values = _without_ties(differences)
        found[is_quick] = p_values[is_quick]
        rest &= ~is_quick
    found[rest] = [_p_value(row[~np.isnan(row)]) for row in differences[rest]]
    return found


def _p_value(differences: Values) -> float:
    from scipy import stats

    return float(stats.wilcoxon(differences).pvalue)


def _without_ties(differences: Values) -> tuple[NDArray[np.bool_], Values]:
    """Which rows have all images and no ties; and p by the normal approximation, good for these.

    The ranks are then places, and signs in sorted order are all that counts: five times as fast as
    scipy, which also sorts for ties.
    """
    from scipy.special import ndtr

    count = differences.shape[1]
    sizes = np.abs(differences)
    order = np.argsort(sizes, axis=1)
    ranked = np.take_along_axis(sizes, order, axis=1)
    is_quick = (ranked[:, 0] > 0) & (np.diff(ranked, axis=1) > 0).all(axis=1)  # NaN fails both
    positive = np.take_along_axis(differences > 0, order, axis=1) @ np.arange(1.0, count + 1)
    scale = math.sqrt(count * (count + 1) * (2 * count + 1) / 24)
    return is_quick, 2 * ndtr(-np.abs(positive - count * (count + 1) / 4) / scale)


def holm(p_values: Values) -> Values:
    """Corrected p of a family of tests, (P,) (Holm 1979): the chance of any false claim."""
    count = len(p_values)
    order = np.argsort(p_values, kind="stable")
    raised = np.maximum.accumulate(p_values[order] * (count - np.arange(count)))
    corrected = np.empty(count)
    corrected[order] = np.minimum(raised, 1)
    return corrected
