"""Metrics of sets: what each computes of one method's features and of their truths'."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.metrics.discriminative import FOLDS, MIN_PAIRS, Discriminative, held_out
from pipeline.metrics.discriminative import resubstitution as reference_form
from pipeline.metrics.frechet import (
    Frechet,
    Gaussian,
    frechet,
    frechet_between,
    frechet_error,
    frechet_low_rank,
    load_reference,
)
from pipeline.metrics.intervals import draws, mean_interval
from pipeline.metrics.kernel import paired_kernel_distance
from pipeline.metrics.table import Metric
from pipeline.scoring.aggregate_features import FeatureIndex
from pipeline.scoring.aggregate_view import Places
from vsp_model.files import sha256_of

MAX_GATHERED = 10_000
"""Images whose features are held at once: 80 MB of Inception's. Only FID does without."""
_MIN_IMAGES = 3

Features = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a metric of sets came to.

    Attributes:
        value: None where it is refused.
        error: Standard error.
        low: 95 % interval, of a mean over images.
        high: Its upper end.
        note: What must be said about it.
    """

    value: float | None
    error: float | None = None
    low: float | None = None
    high: float | None = None
    note: str = ""


class Reference(Protocol):
    """The clean set that FID of a data set compares with."""

    @property
    def name(self) -> str:
        """For the reader."""

    @property
    def digest(self) -> str:
        """Identifies it."""

    @property
    def gaussian(self) -> Gaussian:
        """With its moments."""

    @property
    def features(self) -> Features | None:
        """Its features, where there are no more of them than dimensions."""


class ReferenceImages:
    """The clean set as features of its images; read when asked for, as there may be many."""

    def __init__(self, index: FeatureIndex, pairs: Places, digest: str) -> None:
        """Take numbers of pairs, and what identifies them."""
        self._index, self._pairs, self.digest = index, pairs, digest
        self.name = f"{len(pairs):,} clean images"

    @cached_property
    def gaussian(self) -> Gaussian:
        """With the moments of all images."""
        return Gaussian.of(self._index.moments(self._pairs))

    @cached_property
    def features(self) -> Features | None:
        """Of all images, if they are few."""
        return self._index.read(self._pairs) if len(self._pairs) <= self._index.dim else None


class ReferenceFile:
    """The clean set as a file of statistics."""

    features = None

    def __init__(self, path: Path, index: FeatureIndex) -> None:
        """Read the file.

        Raises:
            UserError: If it is no such file, or of other features than `index` has.
        """
        self.gaussian = load_reference(path)
        self.name, self.digest = path.name, sha256_of(path)
        dim, extractor = len(self.gaussian.mean), self.gaussian.extractor
        if dim != index.dim or extractor not in ("", index.extractor):
            raise UserError(
                f"{path}: statistics of {extractor or 'unknown features'} ({dim}), to compare with "
                f"{index.extractor} ({index.dim})"
            )


class Sets:
    """One method's features and their truths', (n, D) each; read when asked for."""

    def __init__(
        self, index: FeatureIndex, restored: Places, truths: Places, *, seed: int, resamples: int
    ) -> None:
        """Take numbers of pairs; entry i of `truths` is the truth of entry i."""
        self.index, self._restored, self._truths = index, restored, truths
        self.seed, self.resamples = seed, resamples

    def __len__(self) -> int:
        return len(self._restored)

    @cached_property
    def is_low_rank(self) -> bool:
        """Whether there are no more features than dimensions."""
        return len(self) <= self.index.dim

    @cached_property
    def restored(self) -> Features:
        """Of the restored images."""
        return self.index.read(self._restored)

    @cached_property
    def truths(self) -> Features:
        """Of the true ones."""
        return self.index.read(self._truths)

    @cached_property
    def gaussian(self) -> Gaussian:
        """With the moments of the restored images, whose features need not fit into the memory."""
        return Gaussian.of(self.index.moments(self._restored))

    @property
    def true_gaussian(self) -> Gaussian:
        """The same of the truths; methods share it, for its factor takes longest."""
        return _true_gaussian(self.index, self._truths.tobytes())

    @cached_property
    def reference_form(self) -> Discriminative:
        """U-IDS and P-IDS judged on what the classifier was fitted on."""
        return reference_form(self.restored, self.truths)

    @cached_property
    def held_out_form(self) -> Discriminative:
        """U-IDS and P-IDS on held-out pairs."""
        return held_out(self.restored, self.truths, seed=self.seed)


@lru_cache(maxsize=1)  # 67 MB of Inception's
def _true_gaussian(index: FeatureIndex, pairs: bytes) -> Gaussian:
    return Gaussian.of(index.moments(np.frombuffer(pairs, np.int64)))


def outcome_of(metric: Metric, sets: Sets, reference: Reference | None) -> Outcome:
    """Compute a metric of sets, or say why not."""
    kind = metric.protocol.partition(":")[0]
    if len(sets) < _MIN_IMAGES:
        return Outcome(None, note=f"{len(sets)} images with features; needs {_MIN_IMAGES}")
    if kind in ("fid", "frechet"):
        return _frechet(sets, reference)
    if len(sets) > MAX_GATHERED:
        return Outcome(None, note=f"not computed of more than {MAX_GATHERED:,} images")
    return _GATHERED[kind](metric, sets)


def _frechet(sets: Sets, reference: Reference | None) -> Outcome:
    if reference is None:
        return _paired_frechet(sets)
    found = _reference_frechet(sets, reference)
    error = _error(sets, reference.gaussian)
    notes = f"against {reference.name}", found.note
    return Outcome(found.value, error, note="; ".join(filter(None, notes)))


def _reference_frechet(sets: Sets, reference: Reference) -> Frechet:
    if sets.is_low_rank and reference.features is not None:
        return frechet_between(sets.restored, reference.features)
    if sets.is_low_rank:
        return frechet_low_rank(sets.restored, reference.gaussian)
    if reference.features is not None:
        return frechet_low_rank(reference.features, sets.gaussian)
    return frechet(reference.gaussian, sets.gaussian)


def _paired_frechet(sets: Sets) -> Outcome:
    if sets.is_low_rank:
        found = frechet_between(sets.restored, sets.truths)
    else:
        found = frechet(sets.true_gaussian, sets.gaussian)
    return Outcome(found.value, _error(sets, None), note=found.note)


def _error(sets: Sets, reference: Gaussian | None) -> float | None:
    if len(sets) > MAX_GATHERED:
        return None
    return frechet_error(sets.restored, reference or sets.truths, seed=sets.seed)


def _kernel(metric: Metric, sets: Sets) -> Outcome:
    value, error = paired_kernel_distance(sets.restored, sets.truths)
    return Outcome(value, error)


def _discriminative(metric: Metric, sets: Sets) -> Outcome:
    is_reference = metric.protocol.endswith(":resubstitution")
    needed = MIN_PAIRS if is_reference else FOLDS
    if len(sets) < needed:
        return Outcome(None, note=f"refused for {len(sets):,} pairs: says nothing below {needed:,}")
    found = sets.reference_form if is_reference else sets.held_out_form
    return Outcome(found.unpaired if metric.protocol.startswith("uids") else found.paired)


def _found_again(metric: Metric, sets: Sets) -> Outcome:
    from pipeline.metrics.identity import found_again

    hits = found_again(sets.restored.astype(np.float64), sets.truths.astype(np.float64))
    drawn = draws(len(sets), seed=sets.seed, resamples=sets.resamples)
    interval = mean_interval(hits, drawn)
    return Outcome(
        interval.mean, low=interval.low, high=interval.high,
        note=f"among {len(sets):,} truths",
    )  # fmt: skip


_GATHERED: Mapping[str, Callable[[Metric, Sets], Outcome]] = {
    "kid": _kernel,
    "mmd-cubic": _kernel,
    "uids": _discriminative,
    "pids": _discriminative,
    "rank-1": _found_again,
}
