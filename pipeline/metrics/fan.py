"""Landmarks as VSPBFR's Table V has them: FAN's 68 points on the face that S3FD finds.

A. Bulat, G. Tzimiropoulos: "How far are we from solving the 2D & 3D Face Alignment problem?" (ICCV
2017), by the package face-alignment. What is found on the truth stands for the true places.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from face_alignment import FaceAlignment, LandmarksType
from face_alignment.detection.sfd.net_s3fd import s3fd
from face_alignment.models import FAN
from numpy.typing import NDArray

from pipeline.faces.detect import Detection
from pipeline.images import Pixels
from pipeline.metrics.judge import Face, Score
from pipeline.metrics.landmarks import landmark_scores, metrics_of
from pipeline.metrics.outside import library, load_into, read_tensors
from vsp_model.files import sha256_of

_MIN_SIDE_PX = 32  # S3FD halves the picture five times
_FAN = "face-alignment's 2D FAN-4 (2DFAN4-11f355bf06.pth.tar)"
_SFD = "face-alignment's S3FD (s3fd-619a316812.pth)"


class _Aligner(FaceAlignment):  # type: ignore[misc]  # the package is untyped
    """face-alignment with its networks from files; nothing is downloaded or compiled."""

    def __init__(self, fan_path: Path, sfd_path: Path) -> None:
        self._fan_path = fan_path
        load_into(s3fd(), read_tensors(sfd_path, _SFD), sfd_path, _SFD)  # refuses in one line
        super().__init__(
            LandmarksType.TWO_D, device="cpu", flip_input=True, compile=False,
            face_detector="sfd", face_detector_kwargs={"path_to_detector": sfd_path},
        )  # fmt: skip

    def _load_native(self, name: str, size: int, device: str, dtype: torch.dtype) -> Any:
        """What the package would download."""
        net = FAN(size)
        load_into(net, read_tensors(self._fan_path, _FAN), self._fan_path, _FAN)
        return net.to(device, dtype=dtype)


class FanJudge:
    """Detection rate and landmark error by FAN; see `judge.Judge`. Threads may share it."""

    metrics = metrics_of("fan")

    def __init__(self, fan_path: Path, sfd_path: Path) -> None:
        """Read the weights of the landmarks and of the detector.

        Raises:
            UserError: If a file holds no such network.
        """
        self._aligner = _Aligner(fan_path, sfd_path)
        self.files = {path.name: sha256_of(path) for path in (fan_path, sfd_path)}
        self.library = library("face-alignment")

    def score(self, face: Face) -> Mapping[str, Score]:
        """See `judge.Judge`."""
        assert face.truth is not None, "no truth"
        if min(face.truth.shape[:2]) < _MIN_SIDE_PX:
            return dict.fromkeys(self.metrics, Score.no("too_small"))
        return landmark_scores("fan", self.find(face.restored), self.find(face.truth))

    def find(self, image: Pixels) -> Detection | None:
        """The face nearest to the middle, with 68 points; None if there is none.

        Args:
            image: uint8 (H, W, 3) RGB.
        """
        rows = self._aligner.face_detector.detect_from_image(image)
        box = _nearest(np.asarray(rows, np.float64).reshape(-1, 5), image)
        if box is None:
            return None
        (points,) = self._aligner.get_landmarks_from_image(image, detected_faces=[box])
        x0, y0, x1, y1, score = box.tolist()
        return Detection((x0, y0, x1, y1), np.asarray(points, np.float64), score)


def _nearest(boxes: NDArray[np.float64], image: Pixels) -> NDArray[np.float64] | None:
    """Of (N, 5) boxes the one nearest to the image's middle.

    A box about nothing in the picture, or far larger than it, is no face, and the package would
    fail over it.
    """
    size = np.array(image.shape[1::-1])
    centres, sides = (boxes[:, :2] + boxes[:, 2:4]) / 2, boxes[:, 2:4] - boxes[:, :2]
    likely = ((centres > 0) & (centres < size) & (sides >= 1) & (sides < 2 * size)).all(axis=1)
    distances = np.linalg.norm(centres - size / 2, axis=1)
    distances[~likely] = np.inf
    return boxes[distances.argmin()] if likely.any() else None
