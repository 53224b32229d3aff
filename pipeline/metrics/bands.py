"""How much detail is left: power in bands of spatial frequency, against the truth's.

A Laplacian's "sharpness" cannot tell detail from false fine lines, noise or ringing; the power in
a band can be too high as well as too low, and 0 dB is the truth's.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.images import Pixels

# In cycles per pixel; 0.25 is a quarter of the sampling rate, 0.5 the most a grid can hold.
DETAIL, FINEST = (0.20, 0.30), (0.35, 0.50)
_FLOOR = 1e-3  # of a level squared: keeps flat pictures finite


def band_power(image: Pixels, band: tuple[float, float]) -> float:
    """Mean power per frequency of the luma in a ring of frequencies, in squared levels.

    Args:
        image: uint8 (H, W, 3) RGB.
        band: From, below which; cycles per pixel, in any direction.
    """
    luma = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float64)
    window = np.outer(*(np.hanning(side + 2)[1:-1] for side in luma.shape))
    weighted = (luma - np.average(luma, weights=window)) * window
    power = np.abs(np.fft.rfft2(weighted)) ** 2 / np.sum(window**2)
    return float(power[_ring(luma.shape, band)].mean())


def band_db(image: Pixels, truth: Pixels, band: tuple[float, float] = DETAIL) -> float:
    """Power of a band against the truth's in dB: 0 as much, -6 a quarter, above 0 too much.

    Args:
        image: uint8 (H, W, 3) RGB.
        truth: The same shape.
        band: As in `band_power`.
    """
    power, true_power = band_power(image, band), band_power(truth, band)
    return float(10 * np.log10((power + _FLOOR) / (true_power + _FLOOR)))


def _ring(shape: tuple[int, ...], band: tuple[float, float]) -> NDArray[np.bool_]:
    down, across = np.fft.fftfreq(shape[0]), np.fft.rfftfreq(shape[1])
    radius = np.hypot(down[:, None], across[None, :])
    return np.asarray((radius >= band[0]) & (radius < band[1]))
