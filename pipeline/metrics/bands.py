"""How much detail is left: power in bands of spatial frequency, against the truth's.

A Laplacian's "sharpness" cannot tell detail from false fine lines, noise or ringing; the power in
a band can be too high as well as too low, and 0 dB is the truth's.
"""

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.images import Pixels
from pipeline.metrics.judge import Face, Score
from pipeline.metrics.pixels import NO_FILES, OWN_LIBRARY, Values

Band = tuple[float, float]

# In cycles per pixel; 0.25 is a quarter of the sampling rate, 0.5 the most a grid can hold.
DETAIL, FINEST = (0.20, 0.30), (0.35, 0.50)
BANDS = (DETAIL, FINEST)
MIN_SIDE_PX = 8  # from here on each band holds several frequencies
_FLOOR = 1e-3  # of a level squared: keeps flat pictures finite


class BandJudge:
    """Both bands; see `judge.Judge`."""

    metrics = ("detail", "finest")
    files = NO_FILES
    library = OWN_LIBRARY

    def score(self, face: Face) -> Mapping[str, Score]:
        """See `judge.Judge`."""
        if min(face.restored.shape[:2]) < MIN_SIDE_PX:
            return dict.fromkeys(self.metrics, Score.no("too_small"))
        decibels = band_db(face.restored, face.image("gt"))
        return {name: Score.of(db) for name, db in zip(self.metrics, decibels, strict=True)}


def band_power(image: Pixels, bands: Sequence[Band] = BANDS) -> Values:
    """Mean power per frequency of the luma in rings of frequencies, in squared levels.

    Args:
        image: uint8 (H, W, 3) RGB.
        bands: From, below which; cycles per pixel, in any direction.
    """
    luma = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float64)
    window = np.outer(*(np.hanning(side + 2)[1:-1] for side in luma.shape))
    weighted = (luma - np.average(luma, weights=window)) * window
    power = np.abs(np.fft.rfft2(weighted)) ** 2 / np.sum(window**2)
    return np.array([power[_ring(luma.shape, band)].mean() for band in bands])


def band_db(image: Pixels, truth: Pixels, bands: Sequence[Band] = BANDS) -> Values:
    """Power of bands against the truth's in dB: 0 as much, -6 a quarter, above 0 too much.

    Args:
        image: uint8 (H, W, 3) RGB.
        truth: The same shape.
        bands: As in `band_power`.
    """
    power, true_power = band_power(image, bands), band_power(truth, bands)
    return np.asarray(10 * np.log10((power + _FLOOR) / (true_power + _FLOOR)), np.float64)


def _ring(shape: tuple[int, ...], band: Band) -> NDArray[np.bool_]:
    down, across = np.fft.fftfreq(shape[0]), np.fft.rfftfreq(shape[1])
    radius = np.hypot(down[:, None], across[None, :])
    return np.asarray((radius >= band[0]) & (radius < band[1]))
