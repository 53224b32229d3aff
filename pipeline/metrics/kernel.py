"""The unbiased kernel distance between two sets of features, and its standard error."""

from collections.abc import Iterator

import numpy as np

from pipeline.metrics.moments import BLOCK, Features
from pipeline.metrics.pixels import Values


def kernel_distance(features: Features, truths: Features) -> float:
    """Unbiased squared maximum mean discrepancy under (x.y / D + 1)^3, over the whole sets.

    About 0 for equal distributions, also below it. Pairs of a restored face and its own truth are
    left out when the sets are as long: they are not independent.

    Args:
        features: (N, D).
        truths: (M, D); with M = N, row i is the truth of row i.
    """
    if len(features) == len(truths):
        return paired_kernel_distance(features, truths)[0]
    within = _off_diagonal_mean(features) + _off_diagonal_mean(truths)
    between = np.concatenate([block.mean(axis=1) for _, block in _blocks(features, truths)])
    return float(within - 2 * between.mean())


def paired_kernel_distance(features: Features, truths: Features) -> tuple[float, float]:
    """The same of pairs, (N, D) each, with its standard error.

    The error is the jackknife's over pairs: it needs no resample, which would repeat images and
    so compare some with themselves.
    """
    count = len(features)
    between, between_turned = _off_diagonal_sums(features, truths)
    within = _off_diagonal_sums(features, features)[0] + _off_diagonal_sums(truths, truths)[0]
    sums = within - between - between_turned
    total = sums.sum()
    value = float(total / (count * (count - 1)))
    if count < 3:
        return value, float("nan")
    without = (total - 2 * sums) / ((count - 1) * (count - 2))
    return value, float(np.std(without) * np.sqrt(count - 1))


def _off_diagonal_mean(features: Features) -> float:
    count = len(features)
    return float(_off_diagonal_sums(features, features)[0].sum() / (count * (count - 1)))


def _off_diagonal_sums(one: Features, other: Features) -> tuple[Values, Values]:
    """Of each row and of each column of the kernel, less what lies on the diagonal: (N,) each."""
    rows, columns = np.zeros(len(one)), np.zeros(len(one))
    for start, block in _blocks(one, other):
        places = np.arange(len(block))
        block[places, start + places] = 0
        rows[start : start + len(block)] = block.sum(axis=1)
        columns += block.sum(axis=0)
    return rows, columns


def _blocks(one: Features, other: Features) -> Iterator[tuple[int, Values]]:
    """The kernel, some rows at a time: (first row, (B, M))."""
    exact = np.asarray(other, np.float64).T
    for start in range(0, len(one), BLOCK):
        rows = np.asarray(one[start : start + BLOCK], np.float64)
        yield start, (rows @ exact / one.shape[1] + 1) ** 3
