"""PSNR and SSIM, by the convention of the face restoration field (BasicSR's)."""

import math
from collections.abc import Mapping
from types import MappingProxyType

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.images import Pixels
from pipeline.metrics.judge import Face, Score

SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
OWN_LIBRARY = "vsp-restore"
NO_FILES: Mapping[str, str] = MappingProxyType({})
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
_MARGIN = SSIM_WINDOW // 2
_STRIP_ROWS = 128  # what SSIM works on at a time stays in the cache: half the time at 512 px

Values = NDArray[np.float64]


class PixelJudge:
    """Both metrics; see `judge.Judge`."""

    metrics = ("psnr", "ssim")
    files = NO_FILES
    library = OWN_LIBRARY

    def score(self, face: Face) -> Mapping[str, Score]:
        """See `judge.Judge`."""
        pair = face.image("restored"), face.image("gt")
        too_small = min(face.restored.shape[:2]) < SSIM_WINDOW
        return {
            "psnr": Score.of(psnr(*pair)),
            "ssim": Score.no("too_small") if too_small else Score.of(ssim(*pair)),
        }


def psnr(image: Pixels, truth: Pixels) -> float:
    """Peak signal-to-noise ratio in dB of one image, over all RGB values, nothing cropped.

    Args:
        image: uint8 (H, W, 3) RGB.
        truth: The same shape.

    Returns:
        Infinity for equal images; a mean over images has to cap it.

    Raises:
        ValueError: If the shapes differ.
    """
    _check(image, truth)
    squares = round(cv2.norm(image, truth, cv2.NORM_L2SQR))  # OpenCV rounds in the last bit
    return 10 * math.log10(255**2 / (squares / image.size)) if squares else math.inf


def ssim(image: Pixels, truth: Pixels) -> float:
    """Structural similarity of one image, the mean over RGB.

    Window: Gaussian of 11 with sigma 1.5, only where it lies inside the image; K = 0.01, 0.03.

    Args:
        image: uint8 (H, W, 3) RGB, at least 11 pixels each way.
        truth: The same shape.

    Raises:
        ValueError: If the shapes differ or the image is smaller than the window.
    """
    _check(image, truth)
    height, width, num_colors = image.shape
    if min(height, width) < SSIM_WINDOW:
        raise ValueError(f"{width} x {height}: SSIM needs {SSIM_WINDOW} pixels")
    last = height - 2 * _MARGIN
    strips = [slice(top, top + _STRIP_ROWS + 2 * _MARGIN) for top in range(0, last, _STRIP_ROWS)]
    total = math.fsum(_similarities(image[rows], truth[rows]) for rows in strips)
    return float(total / (last * (width - 2 * _MARGIN) * num_colors))


def _similarities(image: Pixels, truth: Pixels) -> float:
    """Sum over the places of the window, and over RGB."""
    x, y = image.astype(np.float64), truth.astype(np.float64)
    mean_x, mean_y, product = _smooth(x), _smooth(y), _smooth(x * y)
    x *= x
    y *= y
    x += y
    power = _smooth(x)
    means = mean_x * mean_y
    product -= means  # the covariance
    squares = mean_x * mean_x
    squares += mean_y * mean_y
    power -= squares  # the sum of both variances
    means *= 2
    means += _C1
    product *= 2
    product += _C2
    squares += _C1
    power += _C2
    means *= product
    squares *= power
    means /= squares
    return float(means.sum())


def _smooth(x: Values) -> Values:
    smooth = cv2.GaussianBlur(x, (SSIM_WINDOW, SSIM_WINDOW), SSIM_SIGMA)
    return np.asarray(smooth[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN], np.float64)


def _check(image: Pixels, truth: Pixels) -> None:
    if image.shape != truth.shape:
        raise ValueError(f"image {image.shape}, but truth {truth.shape}")
