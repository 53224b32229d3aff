"""The eyes of a cleaning run: face, identity and quality of one picture, the same in every step."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline.cleaning.quality.measures import classic_quality, measure
from pipeline.cleaning.quality.scorer import QualityScorer
from pipeline.faces.detect import DetectConfig, Detection, FaceDetector
from pipeline.images import Pixels
from pipeline.metrics.identity import FaceNet
from pipeline.metrics.judge import Face
from pipeline.replica import Frozen

Points = NDArray[np.float64]
Embedding = NDArray[np.float32]

MIN_SCORE = 0.5
"""An aligned crop shows a face where it is expected, so a ruined one may be found with less
confidence than in a photo."""
SOFTEN = 0.04
"""Noise, blocks and mosaics hide a face from the detector that people see with half-closed eyes: it
looks once more at the picture under a blur of this part of its shorter side."""
MIN_BESIDE, MIN_SCORE_BESIDE, MARGIN = 0.5, 0.7, 0.15
"""A second face counts from this part of the first one's side, with this confidence, and with its
centre this far from the crop's edges: neighbours look into many a good portrait."""


class LookConfig(Frozen):
    """Which networks look.

    Attributes:
        identity: Weights of the identity network; None without one.
        identity_sha256: What identifies them, "" without.
        min_score: Least confidence of a face, 0 to 1.
    """

    identity: Path | None = None
    identity_sha256: str = ""
    min_score: float = Field(MIN_SCORE, ge=0, le=1)

    def settings(self) -> dict[str, Any]:
        """What decides what is seen: the weights' sha256, not their path."""
        return self.model_dump(mode="json", exclude={"identity"})


class Look:
    """Sees one picture at a time; codec threads share it."""

    def __init__(self, config: LookConfig) -> None:
        """Load the networks.

        Raises:
            UserError: If a weight file is missing or holds another network.
        """
        self._detector = FaceDetector(DetectConfig(min_score=config.min_score))
        self._identity = FaceNet(config.identity) if config.identity else None
        self._scorer = QualityScorer()

    @property
    def scorer_sha256(self) -> str:
        """What identifies the quality network."""
        return self._scorer.sha256

    def faces(self, picture: Pixels) -> list[Detection]:
        """The faces that count, the largest first."""
        found = self._detector.find(picture) or self._detector.find(_softened(picture))
        if not found:
            return []
        first, *others = sorted(found, key=lambda face: -face.side_px)
        return [first, *(face for face in others if _counts(face, first, picture))]

    def identity(self, picture: Pixels, points: Points | None) -> Embedding | None:
        """(128,) float32 of length 1; None without points or without a network."""
        if self._identity is None or points is None:
            return None
        return self._identity.embedding(Face("", picture, points=points), "restored")

    def quality(self, picture: Pixels) -> float:
        """By the network that gates, 0 worst to 1 best."""
        return self._scorer.score(picture)

    def classic(self, picture: Pixels) -> float:
        """By the classic measures, which verify, 0 worst to 1 best; of the pixels alone."""
        return classic_quality(measure(picture, b"", "png"))


def _softened(picture: Pixels) -> Pixels:
    sigma = SOFTEN * min(picture.shape[:2])
    return cv2.GaussianBlur(picture, (0, 0), sigma).astype(np.uint8, copy=False)


def _counts(face: Detection, first: Detection, picture: Pixels) -> bool:
    """Whether a second face is a person of the picture, not somebody who looks in."""
    height, width = picture.shape[:2]
    across, down = face.centre[0] / width, face.centre[1] / height
    is_inside = all(MARGIN <= place <= 1 - MARGIN for place in (across, down))
    is_sure = face.score >= MIN_SCORE_BESIDE and face.side_px >= MIN_BESIDE * first.side_px
    return is_inside and is_sure


def points_of(faces: Sequence[Detection]) -> Points | None:
    """The five points of the first face; None without a face."""
    return faces[0].points if faces else None


def likeness(one: Embedding | None, other: Embedding | None) -> float | None:
    """Cosine of two embeddings of length 1; None if one is missing."""
    if one is None or other is None:
        return None
    return float(one.astype(np.float64) @ other.astype(np.float64))
