"""Distances between two sets of features: Frechet's of Gaussians, and the unbiased kernel one.

Frechet's distance of finite sets is too large, and more so the fewer and the more varied they are:
compare methods on the same ids only, never data sets. The kernel distance is unbiased.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import numpy as np

from pipeline.metrics.pixels import Values

Distance = Callable[[Values, Values], float]


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """What Frechet's distance needs of a set; those of disjoint sets can be merged exactly.

    Attributes:
        count: Features in the set.
        mean: (D,).
        scatter: (D, D), the sum of (x - mean)(x - mean)^T.
    """

    count: int
    mean: Values
    scatter: Values

    @classmethod
    def of(cls, features: Values) -> Self:
        """Of (N, D) features."""
        mean = features.mean(axis=0, dtype=np.float64)
        centred = features - mean
        return cls(len(features), mean, centred.T @ centred)

    def merge(self, other: Self) -> Self:
        """Of the union. Fix the order of many merges: sums in another order differ in last bits."""
        count = self.count + other.count
        step = other.mean - self.mean
        mean = self.mean + step * (other.count / count)
        between = np.outer(step, step) * (self.count * other.count / count)
        return type(self)(count, mean, self.scatter + other.scatter + between)

    @property
    def covariance(self) -> Values:
        """(D, D), unbiased.

        Raises:
            ValueError: For a single feature.
        """
        if self.count < 2:
            raise ValueError(f"covariance of {self.count} features")
        return self.scatter / (self.count - 1)


def frechet(one: Moments, other: Moments) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) of two Gaussians given by their moments.

    By eigenvalues of the symmetric S1^(1/2) S2 S1^(1/2): real, and tiny negative ones are cut off.
    """
    first, second = one.covariance, other.covariance
    values, vectors = np.linalg.eigh(first)
    root = vectors * np.sqrt(np.clip(values, 0, None))
    inner = np.linalg.eigvalsh(root.T @ second @ root)
    overlap = np.sqrt(np.clip(inner, 0, None)).sum()
    step = one.mean - other.mean
    return float(step @ step + np.trace(first) + np.trace(second) - 2 * overlap)


def frechet_of(features: Values, truths: Values) -> float:
    """Frechet's distance between two sets of features, (N, D) and (M, D).

    With fewer features than dimensions the trace of the root is the sum of singular values of an
    N x M matrix: exact where covariances are singular, and far cheaper.
    """
    if max(len(features), len(truths)) > features.shape[1]:
        return frechet(Moments.of(features), Moments.of(truths))
    first, second = features - features.mean(axis=0), truths - truths.mean(axis=0)
    norm = (len(first) - 1) * (len(second) - 1)
    overlap = np.linalg.svd(first @ second.T / np.sqrt(norm), compute_uv=False).sum()
    spread = np.square(first).sum() / (len(first) - 1) + np.square(second).sum() / (len(second) - 1)
    step = features.mean(axis=0) - truths.mean(axis=0)
    return float(step @ step + spread - 2 * overlap)


def kernel_distance(features: Values, truths: Values) -> float:
    """Unbiased squared maximum mean discrepancy under (x.y / D + 1)^3, over the whole sets.

    About 0 for equal distributions, also below it. Pairs of a restored face and its own truth are
    left out when the sets are as long: they are not independent.

    Args:
        features: (N, D).
        truths: (M, D); with M = N, row i is the truth of row i.
    """
    within = _off_diagonal_mean(features, features) + _off_diagonal_mean(truths, truths)
    if len(features) == len(truths):
        return float(within - 2 * _off_diagonal_mean(features, truths))
    return float(within - 2 * _kernel(features, truths).mean())


def _off_diagonal_mean(one: Values, other: Values) -> float:
    kernel = _kernel(one, other)
    count = len(one)
    return float((kernel.sum() - np.trace(kernel)) / (count * (count - 1)))


def _kernel(one: Values, other: Values) -> Values:
    return np.asarray((one @ other.T / one.shape[1] + 1) ** 3, np.float64)
