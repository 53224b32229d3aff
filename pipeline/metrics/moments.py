"""What Frechet's distance needs of a set: count, mean and scatter, which merge exactly.

A set too large for the memory is read in blocks, or was seen by many workers: the moments of the
parts give those of the whole, to the last bits if the order of merging is the same.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.metrics.pixels import Values
from vsp_model.files import whole_or_absent

BLOCK = 1024
"""Features whose moments are taken at once; part of the order of merging."""

Features = NDArray[np.float32] | Values


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Of a set of features; those of disjoint sets can be merged exactly.

    Attributes:
        count: Features in the set.
        mean: (D,).
        scatter: (D, D), the sum of (x - mean)(x - mean)^T.
        ids: Which images they are of, sorted; () where nobody noted it.
        extractor: What made the features, and the sha256 of its weights; "" likewise.
    """

    count: int
    mean: Values
    scatter: Values
    ids: tuple[str, ...] = ()
    extractor: str = ""

    @classmethod
    def of(cls, features: Features, ids: Iterable[str] = (), extractor: str = "") -> Self:
        """Of (N, D) features; none at all are a set too."""
        exact = np.asarray(features, np.float64)
        mean = exact.mean(axis=0) if len(exact) else np.zeros(exact.shape[1])
        centred = exact - mean
        return cls(len(exact), mean, centred.T @ centred, tuple(sorted(ids)), extractor)

    def merge(self, other: Self) -> Self:
        """Of the union. Fix the order of many merges: sums in another order differ in last bits.

        Raises:
            UserError: If the sets overlap, or are of different extractors or weights.
        """
        self._check(other)
        ids = tuple(sorted(self.ids + other.ids))
        count = self.count + other.count
        share = other.count / count if count else 0.0
        step = other.mean - self.mean
        between = np.outer(step, step * (self.count * share))
        scatter = self.scatter + other.scatter + between
        return type(self)(count, self.mean + step * share, scatter, ids, self.extractor)

    def _check(self, other: Self) -> None:
        if self.extractor != other.extractor or len(self.mean) != len(other.mean):
            raise UserError(
                f"features of {self.extractor or 'unknown'} ({len(self.mean)}) and "
                f"{other.extractor or 'unknown'} ({len(other.mean)}) cannot be merged"
            )
        if both := sorted(set(self.ids) & set(other.ids)):
            raise UserError(f"{len(both)} images stand in both sets to be merged, as {both[0]}")

    @property
    def covariance(self) -> Values:
        """(D, D), unbiased.

        Raises:
            ValueError: For a single feature.
        """
        if self.count < 2:
            raise ValueError(f"covariance of {self.count} features")
        return self.scatter / (self.count - 1)

    def save(self, path: Path) -> None:
        """Write as .npz; of the scatter only the upper triangle, row by row."""
        with whole_or_absent(path) as file:
            np.savez(
                file, n=np.int64(self.count), mean=self.mean,
                m2=self.scatter[np.triu_indices(len(self.mean))], ids=np.array(self.ids, str),
                extractor=np.array(self.extractor, str),
            )  # fmt: skip

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            UserError: If it is not there or no such file.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                scatter = _unpacked(file["m2"], len(file["mean"]))
                ids = tuple(file["ids"].tolist())
                return cls(int(file["n"]), file["mean"], scatter, ids, str(file["extractor"]))
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise UserError(f"{path}: no moments ({error})") from None


def _unpacked(triangle: Values, dim: int) -> Values:
    upper = np.zeros((dim, dim))
    upper[np.triu_indices(dim)] = triangle
    return upper + np.triu(upper, 1).T


def merge_all(parts: Iterable[Moments]) -> Moments:
    """Of the union of disjoint sets, as a balanced tree over their order.

    Not more than one unmerged set for each level of the tree is held.

    Raises:
        ValueError: If there is no set.
    """
    waiting: list[tuple[int, Moments]] = []
    for part in parts:
        level, merged = 0, part
        while waiting and waiting[-1][0] == level:
            merged = waiting.pop()[1].merge(merged)
            level += 1
        waiting.append((level, merged))
    if not waiting:
        raise ValueError("no moments to merge")
    whole = waiting.pop()[1]
    while waiting:
        whole = waiting.pop()[1].merge(whole)
    return whole
