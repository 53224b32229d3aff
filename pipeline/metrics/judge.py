"""What a judge is: it looks at one face at a time and gives each of its metrics a score.

One face at a time: on a CPU a batch gains nothing, and so no neighbour can change a value.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.images import Pixels

Status = Literal[
    "ok", "missing_pair", "decode_error", "shape_mismatch", "no_face", "non_finite", "too_small",
    "oom", "failed",
]  # fmt: skip
STATUSES: tuple[Status, ...] = Status.__args__  # type: ignore[attr-defined]
# Not the image's fault: another run tries again.
RETRIED: tuple[Status, ...] = ("oom", "failed")
Role = Literal["restored", "gt"]

Points = NDArray[np.float64]
Feature = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Score:
    """One metric of one face.

    Attributes:
        value: NaN unless the status is "ok"; infinity is a value (PSNR of equal pictures).
        status: Why there is no value.
        error: One line about it, "" where the status says all.
    """

    value: float
    status: Status = "ok"
    error: str = ""

    @classmethod
    def of(cls, value: float) -> "Score":
        """A value, or "non_finite" for NaN."""
        return cls(float(value)) if not math.isnan(value) else cls(math.nan, "non_finite")

    @classmethod
    def no(cls, status: Status, error: str = "") -> "Score":
        """No value."""
        return cls(math.nan, status, error)


@dataclass(slots=True, eq=False)
class Face:
    """A restored face and its truth, decoded once for all judges.

    Attributes:
        key: The image's id; with a seed it fixes what is random in a metric.
        restored: uint8 (H, W, 3) RGB.
        truth: The same size, or None: then only metrics of kind "alone" are asked for.
        points: (5, 2), the truth's five points in its pixels, the first pixel spanning 0 to 1; None
            where no face was found on the truth, or there is none.
        shared: What one judge leaves for another, by a name that they agree on.
    """

    key: str
    restored: Pixels
    truth: Pixels | None = None
    points: Points | None = None
    shared: dict[str, Any] = field(default_factory=dict)

    def image(self, role: Role) -> Pixels:
        """The restored face or its truth."""
        if role == "restored":
            return self.restored
        assert self.truth is not None, "no truth"
        return self.truth


class Judge(Protocol):
    """Scores of one face. Bad input is a status, never an exception.

    A judge is called from several threads at once; what a call computes must not hang on others.
    """

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names in `table.BY_NAME` of what it computes."""

    @property
    def files(self) -> Mapping[str, str]:
        """Its weight files, name -> sha256."""

    @property
    def library(self) -> str:
        """Package and version that computes, as "lpips 0.1.4"; "vsp-restore" for our own."""

    def score(self, face: Face) -> Mapping[str, Score]:
        """A score for each of its metrics."""


class Extractor(Protocol):
    """Features of one face, for metrics that compare sets."""

    @property
    def id(self) -> str:
        """Network, layer and preprocessing, as "inception2015-12-05/pool3/bilinear299"."""

    @property
    def dim(self) -> int:
        """Length of a feature."""

    @property
    def files(self) -> Mapping[str, str]:
        """Its weight files, name -> sha256."""

    @property
    def library(self) -> str:
        """Package and version that computes."""

    def feature(self, face: Face, role: Role) -> Feature | Score:
        """(D,) float32 of the restored face or its truth; or why there is none."""
