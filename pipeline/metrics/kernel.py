"""The unbiased kernel distance between two sets of features, and its standard error."""

from collections.abc import Iterator

import numpy as np

from pipeline.metrics.moments import BLOCK, Features
from pipeline.metrics.pixels import Values


def paired_kernel_distance(features: Features, truths: Features) -> tuple[float, float]:
    """Unbiased squared maximum mean discrepancy under (x.y / D + 1)^3, and its standard error.

    About 0 for equal distributions, also below it. Over the whole sets of pairs, (N, D) each; a
    restored face and its own truth are not compared: they are not independent.

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
