"""Whether eyes, nose and mouth are where the truth has them, as a face detector sees it.

The points found on the truth stand for the true ones: this measures agreement, not accuracy.
"""

from collections.abc import Sequence

import cv2
import numpy as np

from pipeline.faces.detect import Detection, FaceDetector
from pipeline.images import Pixels
from pipeline.metrics.pixels import Values

MISSED = 100.0  # percent: what a face that is not found counts in `capped`
_SEARCH_PX = 128  # smaller faces are enlarged to it; enlarging more made points less repeatable


def find(detector: FaceDetector, faces: Sequence[Pixels]) -> list[Detection | None]:
    """The face of each aligned picture, the one nearest to its middle; None if there is none.

    Args:
        detector: Any, the same for restored faces and truths.
        faces: uint8 (S, S, 3) RGB.

    Returns:
        In pixels of the faces.
    """
    return [_find(detector, face) for face in faces]


def _find(detector: FaceDetector, face: Pixels) -> Detection | None:
    side = face.shape[0]
    scale = max(1.0, _SEARCH_PX / side)
    larger = cv2.resize(face, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    middle = larger.shape[0] / 2
    found = detector.find(larger.astype(np.uint8, copy=False))
    if not found:
        return None
    nearest = min(found, key=lambda each: np.hypot(*np.subtract(each.centre, middle)))
    x0, y0, x1, y1 = (value / scale for value in nearest.box)
    return Detection((x0, y0, x1, y1), nearest.points / scale, nearest.score)


def nme(found: Sequence[Detection | None], truths: Sequence[Detection | None]) -> Values:
    """Normalised mean error of each face in percent, (N,).

    The mean distance of the points over sqrt(width x height) of the truth's box; NaN where either
    face is not found: report how many are left, and see `capped`.
    """
    return np.array([_nme(one, other) for one, other in zip(found, truths, strict=True)])


def _nme(found: Detection | None, truth: Detection | None) -> float:
    if found is None or truth is None:
        return float("nan")
    x0, y0, x1, y1 = truth.box
    distance = np.linalg.norm(found.points - truth.points, axis=1).mean()
    return float(100 * distance / np.sqrt((x1 - x0) * (y1 - y0)))


def capped(errors: Values, truths: Sequence[Detection | None]) -> Values:
    """The errors with `MISSED` for faces found on the truth alone.

    A mean over what was found flatters a method that makes faces nobody finds.
    """
    seen = np.array([truth is not None for truth in truths])
    return np.where(seen & np.isnan(errors), MISSED, errors)
