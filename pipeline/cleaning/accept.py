"""Whether a restored face is taken instead of its original, and how sure that is.

What gates does not verify: the gate reads the quality net, the verification the classic measures.
docs/cleaning-evidence.md has the numbers behind `content_change`.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.cleaning.tables import Decision, FallbackReason, Inspected
from pipeline.images import Pixels

if TYPE_CHECKING:
    from pipeline.cleaning.calibration.thresholds import Level, Thresholds

GRID = 8
"""Cells each way: noise and fine detail average out in one, an eye or a mouth does not."""
GATE_WEIGHT = 0.5
"""Lying at the gate is less of a doubt than a doubtful identity."""
DISAGREEMENT_WEIGHT = 0.6
"""Two scorers often lie levels apart; alone that shall not hide a doubtful identity."""
FULL_DISAGREEMENT = 2.0
"""Levels of damage that two scorers must lie apart for the full share of doubt."""


@dataclass(frozen=True, slots=True)
class Verified:
    """What was seen of a restored face.

    Attributes:
        identity: Cosine with the original's identity embedding; None if one is missing.
        classic_before: Classic quality of the original, at the model's size.
        classic_after: Of the restored face.
        num_faces_after: Faces found on it.
        content_change: See `content_change`.
    """

    identity: float | None
    classic_before: float
    classic_after: float
    num_faces_after: int
    content_change: float


def content_change(before: Pixels, after: Pixels) -> float:
    """How far a picture moved in the large: background, colours, place of the head.

    Root of the mean squared difference of luma and both chromas over 8 x 8 cells, each the mean of
    its pixels. Removed noise and added detail cancel within a cell; another background, a moved
    head, a swapped mouth or a colour cast do not.

    Args:
        before: uint8 (H, W, 3) RGB.
        after: The same shape.

    Returns:
        0 for no change, 1 for black against white.

    Raises:
        ValueError: If the shapes differ.
    """
    if before.shape != after.shape:
        raise ValueError(f"before {before.shape}, but after {after.shape}")
    difference = _cells(before) - _cells(after)
    return float(np.sqrt((difference**2).sum(axis=2).mean()))


def _cells(image: Pixels) -> NDArray[np.float64]:
    """Means of luma and chromas, (8, 8, 3), luma 0 to 1."""
    scaled = image.astype(np.float32) / np.float32(255)
    small = cv2.resize(scaled, (GRID, GRID), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.cvtColor(small, cv2.COLOR_RGB2YCrCb), np.float64)


def accept(verified: Verified, level: int, thresholds: "Thresholds") -> FallbackReason:
    """Why a restored face is not taken, "" if it is.

    In this order: a face is lost or gained; identity cannot be measured; another person; other
    content; the classic measures saw no damage to begin with; or none of it went.

    Args:
        verified: What was seen of it.
        level: Level of damage that its original stands for, 1 to 5.
        thresholds: Of the calibration.
    """
    bounds = thresholds.at(level)
    if verified.num_faces_after != 1:
        return "face_lost" if verified.num_faces_after == 0 else "face_gained"
    if bounds.refusal or bounds.identity_threshold is None or verified.identity is None:
        return "identity_unmeasurable"
    # Written so that what is not a number passes nothing.
    if not verified.identity >= bounds.identity_threshold:
        return "identity"
    if bounds.max_change is None or not verified.content_change <= bounds.max_change:
        return "content_changed"
    if bounds.max_classic is None or not verified.classic_before <= bounds.max_classic:
        return "not_damaged"
    gain = verified.classic_after - verified.classic_before
    if bounds.min_gain is None or not gain >= bounds.min_gain:
        return "quality_not_better"
    return ""


# -------------------------------------------------------------------------------------- doubt


def doubt(
    seen: Inspected,
    decided: Decision,
    verified: Verified | None,
    thresholds: "Thresholds | None",
) -> float:
    """How much a reviewer should look at an image first; it decides nothing.

    Three doubts from 0 to 1, joined as if independent, 1 - (1 - a)(1 - b)(1 - c):
    a: the identity's nearness to its threshold, in units of the distance from there to the median
    of restored faces; b, at most 0.6: quality net and classic measures disagree, in levels of
    damage; c, at most half: the quality's nearness to the gate, in units of the distance from there
    to the mildest restored level.

    Args:
        seen: What was seen of the image.
        decided: What was decided about it.
        verified: What was seen of the restored face; None where there is none.
        thresholds: Of the calibration; None without one: then nothing can be said, 0.
    """
    if thresholds is None or seen.status != "inspected":
        return 0.0
    doubts = [
        DISAGREEMENT_WEIGHT * _disagreement(seen, thresholds),
        GATE_WEIGHT * _at_gate(seen, thresholds),
    ]
    if verified is not None and decided.level is not None:
        doubts.append(_identity_doubt(verified, thresholds.at(decided.level)))
    return float(1 - np.prod([1 - each for each in doubts]))


def _identity_doubt(verified: Verified, bounds: "Level") -> float:
    if verified.identity is None or bounds.identity_threshold is None or bounds.genuine is None:
        return 1.0
    return _nearness(verified.identity, bounds.identity_threshold, bounds.genuine)


def _disagreement(seen: Inspected, thresholds: "Thresholds") -> float:
    """How many levels of damage the two scorers lie apart."""
    scales = [[level.quality, level.classic] for level in thresholds.levels]
    if seen.quality is None or seen.classic is None or any(None in pair for pair in scales):
        return 0.0
    medians = np.array(scales, np.float64)[::-1]  # rising
    severities = np.arange(len(medians), 0, -1.0)
    by_net, by_measures = (
        float(np.interp(value, medians[:, place], severities))
        for place, value in enumerate((seen.quality, seen.classic))
    )
    return min(1.0, abs(by_net - by_measures) / FULL_DISAGREEMENT)


def _at_gate(seen: Inspected, thresholds: "Thresholds") -> float:
    restored = [level.quality for level in thresholds.levels if not level.refusal]
    if thresholds.keep_quality is None or seen.quality is None or restored[0] is None:
        return 0.0
    return _nearness(seen.quality, thresholds.keep_quality, restored[0])


def _nearness(value: float, threshold: float, typical: float) -> float:
    """1 at the threshold, falling to 0 as far from it as the typical value."""
    width = abs(typical - threshold)
    return max(0.0, 1 - abs(value - threshold) / width) if width else float(value == threshold)
