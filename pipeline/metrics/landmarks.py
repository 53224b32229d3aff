"""Whether eyes, nose and mouth are where the truth has them, as a face detector sees it.

The points found on the truth stand for the true ones: this measures agreement, not accuracy.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from pipeline.faces.detect import YUNET_PATH, DetectConfig, Detection, FaceDetector
from pipeline.images import Pixels
from pipeline.metrics.judge import Face, Score
from pipeline.metrics.outside import library
from vsp_model.files import sha256_of

MISSED = 100.0  # percent: the error of a face that is found on the truth alone
MIN_SCORE = 0.3  # of a detector: in an aligned crop there is a face, the question is where
_SEARCH_PX = 128  # smaller faces are enlarged to it; enlarging more made points less repeatable


class LandmarkJudge:
    """Five points of a face detector; see `judge.Judge`."""

    def __init__(self, detector: Literal["yunet", "retinaface"], path: Path | None = None) -> None:
        """Read the detector.

        Args:
            detector: Its name.
            path: Its weights; YuNet's come with the program.

        Raises:
            UserError: If the file holds no such detector.
        """
        weights = path or YUNET_PATH
        sha256 = sha256_of(weights)
        config = DetectConfig(
            detector=detector, weights=weights, sha256=sha256, min_score=MIN_SCORE
        )
        self._name, self._detector = detector, FaceDetector(config)
        self.metrics = metrics_of(detector)
        self.files = {weights.name: sha256}
        is_yunet = detector == "yunet"
        self.library = f"opencv {cv2.__version__}" if is_yunet else library("facexlib")

    def score(self, face: Face) -> Mapping[str, Score]:
        """See `judge.Judge`."""
        found = nearest_to_middle(self._detector, face.restored)
        return landmark_scores(self._name, found, face_of_truth(face, self._name, self._detector))


def metrics_of(detector: str) -> tuple[str, str, str]:
    """Detection rate, error of faces found on both, error of all."""
    return f"dsr-{detector}", f"nme-{detector}", f"nme-{detector}-all"


def landmark_scores(
    detector: str, found: Detection | None, truth: Detection | None
) -> dict[str, Score]:
    """The three metrics of a detector for one face.

    A mean over what was found flatters a method that makes faces nobody finds: the third counts
    those as `MISSED`. A face that is not found on the truth counts nowhere.

    Args:
        detector: Its name, as in the metrics'.
        found: The restored face, with any number of points; None if it was not found.
        truth: The true face, likewise.
    """
    rate, error, error_of_all = metrics_of(detector)
    if truth is None:
        return dict.fromkeys((rate, error, error_of_all), Score.no("no_face"))
    if found is None:
        return {rate: Score(0.0), error: Score.no("no_face"), error_of_all: Score(MISSED)}
    percent = Score.of(nme(found, truth))
    return {rate: Score(100.0), error: percent, error_of_all: percent}


def nme(found: Detection, truth: Detection) -> float:
    """Mean distance of the points in percent of sqrt(width x height) of the true box."""
    x0, y0, x1, y1 = truth.box
    distance = np.linalg.norm(found.points - truth.points, axis=1).mean()
    return float(100 * distance / np.sqrt((x1 - x0) * (y1 - y0)))


def face_of_truth(face: Face, name: str, detector: FaceDetector) -> Detection | None:
    """What a detector finds on the truth; it looks once, whoever asks.

    Args:
        face: With a truth.
        name: Of the detector.
        detector: The same for everybody who uses the name.
    """
    key = f"truth by {name}"
    if key not in face.shared:
        face.shared[key] = nearest_to_middle(detector, face.image("gt"))
    found: Detection | None = face.shared[key]
    return found


def nearest_to_middle(detector: FaceDetector, image: Pixels) -> Detection | None:
    """The face of an aligned picture, the one nearest to its middle; None if there is none.

    Args:
        detector: Any.
        image: uint8 (H, W, 3) RGB.

    Returns:
        In pixels of the image.
    """
    scale = max(1.0, _SEARCH_PX / max(image.shape[:2]))
    larger = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    found = detector.find(larger.astype(np.uint8, copy=False))
    if not found:
        return None
    middle = larger.shape[1] / 2, larger.shape[0] / 2
    nearest = min(found, key=lambda each: np.hypot(*np.subtract(each.centre, middle)))
    x0, y0, x1, y1 = (value / scale for value in nearest.box)
    return Detection((x0, y0, x1, y1), nearest.points / scale, nearest.score)
