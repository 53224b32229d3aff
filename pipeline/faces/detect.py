"""Find the faces of a photo and their five points: YuNet, or facexlib's RetinaFace by path.

Both networks count as `align` does, in pixels whose first spans 0 to 1: on mirrored and on reduced
faces their points agree with that to a fifth of a pixel, where counting from the first pixel's
centre would show as half a pixel.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from pipeline.errors import UserError
from pipeline.faces.networks import MAX_OVERLAP, Network, RetinaFace, YuNet
from pipeline.images import Pixels
from pipeline.replica import Frozen

YUNET_PATH = Path(__file__).with_name("yunet_n_dynamic.onnx")
YUNET_SHA256 = "104ee26c71d5c270ce79a6b3dced91c91013260d29a6bf18f9296c5b8c4c2b12"

# A photo is searched twice: at up to `DetectConfig.side_px` for small faces, and at COARSE_SIDE_PX,
# because YuNet was trained on faces of 10 to 300 pixels and sees in a larger one only its parts.
COARSE_SIDE_PX = 320
TRAINED_PX = 240
# Less than this part of a face's area with its middle inside that face is an eye or a chin.
FRAGMENT_AREA = 0.5


class DetectConfig(Frozen):
    """How faces are found and which of them are restored.

    Attributes:
        detector: The network; "retinaface" needs `weights`.
        weights: File of the detector's weights; None for the YuNet that comes with the package.
        sha256: What identifies the weights; another file under the path is refused.
        min_score: Least confidence, 0 to 1.
        min_face_px: Least longer side of a face's box, in pixels of the photo.
        max_faces: How many of the chosen faces are restored, the largest first; None for all.
        which: "all", "largest", the one nearest to the photo's "center", or indices of faces, which
            count from 0, left to right.
        side_px: Longer side to which a larger photo is reduced for the search.
    """

    detector: Literal["yunet", "retinaface"] = "yunet"
    weights: Path | None = None
    sha256: str = Field(YUNET_SHA256, pattern="^[0-9a-f]{64}$")
    min_score: float = Field(0.7, ge=0, le=1)
    min_face_px: float = Field(20, ge=0)
    max_faces: int | None = Field(None, ge=1)
    which: Literal["all", "largest", "center"] | tuple[int, ...] = "all"
    side_px: int = Field(1280, ge=COARSE_SIDE_PX)

    @model_validator(mode="after")
    def _weights_are_named(self) -> "DetectConfig":
        if self.detector == "retinaface" and (self.weights is None or self.sha256 == YUNET_SHA256):
            raise ValueError("retinaface needs the path and the sha256 of its weights")
        return self

    def settings(self) -> dict[str, Any]:
        """What decides which faces are restored: the weights' sha256, not their path."""
        return self.model_dump(mode="json", exclude={"weights"})


@dataclass(frozen=True, slots=True, eq=False)
class Detection:
    """A face in a photo, in pixels of the upright photo, where the first pixel spans 0 to 1.

    Attributes:
        box: x0, y0, x1, y1; it may reach beyond the photo.
        points: (5, 2) float64 as in `align.TEMPLATE`; "left" is the viewer's.
        score: The network's confidence, 0 to 1.
    """

    box: tuple[float, float, float, float]
    points: NDArray[np.float64]
    score: float

    @property
    def side_px(self) -> float:
        """The box's longer side."""
        return max(self.box[2] - self.box[0], self.box[3] - self.box[1])

    @property
    def centre(self) -> tuple[float, float]:
        """The box's middle."""
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2


class FaceDetector:
    """Finds faces. Threads may share it."""

    def __init__(self, config: DetectConfig) -> None:
        """Read and check the weights.

        Raises:
            UserError: If the file is missing, is not the one that `config` names, or holds no such
                network.
        """
        self._config = config
        path = config.weights or YUNET_PATH
        make = YuNet if config.detector == "yunet" else RetinaFace
        self._network: Network = make(_read_weights(path, config.sha256), path, config.min_score)

    def find(self, photo: Pixels) -> list[Detection]:
        """All faces of (H, W, 3) uint8 RGB, from left to right by the middle of their boxes.

        They depend on the photo, the detector, `min_score` and `side_px`; not on the choice.
        """
        height, width = photo.shape[:2]
        scale = min(1, self._config.side_px / max(height, width))
        frame = _reduced(photo, scale)
        found = self._scan(frame, width, height)
        coarse = COARSE_SIDE_PX / max(frame.shape[:2])
        if coarse < 1:
            # Large faces first: what lies inside one and is much smaller is a part of it.
            large_px = TRAINED_PX / scale
            large = [
                face
                for face in self._scan(_reduced(frame, coarse), width, height)
                if face.side_px > large_px
            ]
            found = large + sorted(found, key=lambda face: face.side_px > large_px)
        return sorted(_without_repeats(found), key=lambda face: face.centre)

    def _scan(self, frame: Pixels, width: int, height: int) -> list[Detection]:
        """Search a frame that shows the whole photo; results in pixels of the photo."""
        # Places scale by the sizes as they were rounded.
        back = np.tile([width / frame.shape[1], height / frame.shape[0]], 7)
        bgr = cv2.cvtColor(frame, cv2.COLOR_RGB2BGR).astype(np.uint8, copy=False)
        return [
            _detection(row[:14] * back, float(row[14]))
            for row in self._network(bgr)
            if np.isfinite(row).all()
        ]


def _reduced(photo: Pixels, scale: float) -> Pixels:
    """(H, W, 3) at a scale of 1 or less, at least one pixel each way."""
    if scale == 1:
        return photo
    height, width = photo.shape[:2]
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(photo, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)


def choose(faces: list[Detection], config: DetectConfig, width: int, height: int) -> list[str]:
    """Which faces are to be restored.

    Args:
        faces: As `FaceDetector.find` orders them.
        config: Sizes and choice.
        width: Of the photo, in pixels.
        height: Likewise.

    Returns:
        For each face "" if it is chosen, else the decision that leaves it as it is.
    """
    large = [n for n, face in enumerate(faces) if face.side_px >= config.min_face_px]
    by_size = sorted(large, key=lambda n: -faces[n].side_px)
    if config.which == "all":
        chosen = by_size
    elif config.which == "largest":
        chosen = by_size[:1]
    elif config.which == "center":
        middle = (width / 2, height / 2)
        chosen = sorted(large, key=lambda n: np.hypot(*np.subtract(faces[n].centre, middle)))[:1]
    else:
        chosen = [n for n in by_size if n in config.which]
    kept = set(chosen[: config.max_faces])
    return [
        "" if n in kept else "left: not chosen" if n in set(large) else "left: below min size"
        for n in range(len(faces))
    ]


def _detection(places: NDArray[np.float64], score: float) -> Detection:
    x0, y0, x1, y1 = places[:4].tolist()
    return Detection((x0, y0, x1, y1), places[4:].reshape(5, 2), score)


def _without_repeats(found: list[Detection]) -> list[Detection]:
    """Keep the first detection of each face."""
    kept: list[Detection] = []
    for face in found:
        if not any(_same_face(face, other) for other in kept):
            kept.append(face)
    return kept


def _same_face(face: Detection, other: Detection) -> bool:
    (x, y), (x0, y0, x1, y1) = face.centre, other.box
    if x0 < x < x1 and y0 < y < y1 and _area(face.box) < FRAGMENT_AREA * _area(other.box):
        return True
    ax0, ay0, ax1, ay1 = face.box
    common = _area((max(x0, ax0), max(y0, ay0), min(x1, ax1), min(y1, ay1)))
    return common > MAX_OVERLAP * (_area(face.box) + _area(other.box) - common)


def _area(box: tuple[float, float, float, float]) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def _read_weights(path: Path, sha256: str) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give the detector's weights") from None
    digest = hashlib.sha256(data).hexdigest()
    if digest != sha256:
        raise UserError(f"{path}: sha256 {digest}, expected {sha256}: another or a damaged file")
    return data
