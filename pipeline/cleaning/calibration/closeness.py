"""How far a face is from its truth: what the calibration calls closer.

LPIPS on SqueezeNet where its trunk is at hand. Else structural similarity at several sizes, which
needs no weights: it punishes detail that is not where the truth has it harder than blur, so it errs
towards "not closer", and a set is then cleaned less, not worse.
"""

from pathlib import Path

import cv2
import numpy as np

from pipeline.images import Pixels
from pipeline.metrics.networks import to_tensor
from pipeline.metrics.pixels import SSIM_WINDOW, ssim

SCALES = (1, 2, 4)


class Closeness:
    """A distance of two faces; threads may share it. Torch's threads are the caller's.

    Attributes:
        name: What it computes.
        sha256: Of the trunk's file, "" without one.
    """

    def __init__(self, lpips_path: Path | None) -> None:
        """Read the trunk, if there is one.

        Args:
            lpips_path: File of SqueezeNet's weights; None for the distance without weights.

        Raises:
            UserError: If the file holds no such trunk.
        """
        self.name, self.sha256 = "1 - SSIM at three sizes", ""
        self._lpips = None
        if lpips_path is not None:
            # The package of LPIPS takes a second to import.
            from pipeline.metrics.perceptual import PerceptualJudge

            self._lpips = PerceptualJudge(lpips_path, "squeeze")
            self.name, self.sha256 = "LPIPS (squeeze)", self._lpips.files[lpips_path.name]

    def distance(self, face: Pixels, truth: Pixels) -> float:
        """Distance of two faces, 0 for equal ones, smaller is closer.

        Args:
            face: uint8 (H, W, 3) RGB, at least 17 pixels each way.
            truth: The same shape.

        Raises:
            ValueError: If the shapes differ.
        """
        if face.shape != truth.shape:
            raise ValueError(f"face {face.shape}, but truth {truth.shape}")
        if self._lpips is not None:
            return self._lpips.distance(to_tensor(face), to_tensor(truth))
        return unlikeness(face, truth)


def unlikeness(face: Pixels, truth: Pixels) -> float:
    """1 - SSIM, the mean over full, half and quarter size, as far as its window fits in.

    Args:
        face: uint8 (H, W, 3) RGB, at least 11 pixels each way.
        truth: The same shape.
    """
    values = []
    for scale in SCALES:
        height, width = (side // scale for side in face.shape[:2])
        if scale > 1 and min(height, width) < SSIM_WINDOW:
            break
        pair = (_reduced(image, width, height) for image in (face, truth))
        values.append(1 - ssim(*pair))
    return float(np.mean(values))


def _reduced(image: Pixels, width: int, height: int) -> Pixels:
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
