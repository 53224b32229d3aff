"""PSNR and SSIM, by the convention of the face restoration field (BasicSR's)."""

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.images import Pixels

SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2

Values = NDArray[np.float64]


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
    error = np.mean(np.square(image.astype(np.float64) - truth))
    return math.inf if error == 0 else float(10 * np.log10(255**2 / error))


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
    if min(image.shape[:2]) < SSIM_WINDOW:
        raise ValueError(f"{image.shape[1]} x {image.shape[0]}: SSIM needs {SSIM_WINDOW} pixels")
    x, y = image.astype(np.float64), truth.astype(np.float64)
    mean_x, mean_y = _smooth(x), _smooth(y)
    xy = mean_x * mean_y
    squares = mean_x * mean_x + mean_y * mean_y
    covariance = _smooth(x * y) - xy
    variances = _smooth(x * x + y * y) - squares
    similarity = (2 * xy + _C1) * (2 * covariance + _C2)
    return float(np.mean(similarity / ((squares + _C1) * (variances + _C2))))


def _smooth(x: Values) -> Values:
    margin = SSIM_WINDOW // 2
    smooth = cv2.GaussianBlur(x, (SSIM_WINDOW, SSIM_WINDOW), SSIM_SIGMA)
    return np.asarray(smooth[margin:-margin, margin:-margin], np.float64)


def _check(image: Pixels, truth: Pixels) -> None:
    if image.shape != truth.shape:
        raise ValueError(f"image {image.shape}, but truth {truth.shape}")
