"""Whether two methods differ on the same images: Wilcoxon's test, corrected for many pairs."""

import numpy as np

from pipeline.metrics.pixels import Values


def wilcoxon(differences: Values) -> Values:
    """Two-sided p of the signed-rank test, (P,): 1 where no image differs.

    Args:
        differences: (P, N), image by image; NaN for an image that one of the two has no value for.
    """
    from scipy import stats

    found = np.ones(len(differences))
    whole = ~np.isnan(differences).any(axis=1)
    tested = (np.nan_to_num(differences) != 0).any(axis=1)
    if (together := whole & tested).any():
        found[together] = stats.wilcoxon(differences[together], axis=1).pvalue
    for place in np.flatnonzero(tested & ~whole):
        row = differences[place]
        found[place] = stats.wilcoxon(row[~np.isnan(row)]).pvalue
    return found


def holm(p_values: Values) -> Values:
    """Corrected p of a family of tests, (P,) (Holm 1979): the chance of any false claim."""
    count = len(p_values)
    order = np.argsort(p_values, kind="stable")
    raised = np.maximum.accumulate(p_values[order] * (count - np.arange(count)))
    corrected = np.empty(count)
    corrected[order] = np.minimum(raised, 1)
    return corrected
