"""The resolution that pixels really carry, from where their power spectrum meets its floor."""

from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

NUM_BINS = 64
"""Rings of the spectrum from 0 to half a cycle per pixel."""
MAX_SIDE = 1024
"""Of larger pictures the middle is looked at."""
_AXIS = 1.5 / 64  # cycles per pixel: nearer to an axis lie a JPEG's grid and the picture's border
_MIDDLE = (0.02, 0.1)  # cycles per pixel: what a face has whatever was done to it
_FLOOR = 0.56  # of white noise: geometric over arithmetic mean of its power, exp(-Euler's gamma)
_FLOORS_ABOVE = 1.5  # times the floor still counts as noise
_LEAST = 0.02  # of the middle's power, once the natural fall of the spectrum is taken out
_ROUNDING = 1 / 12  # variance of the rounding to 8 bits


def native_share(luma: Floats, noise_sigma: float) -> float:
    """The share of its side at which a picture could be stored without losing detail, 0 to 1.

    Powers of natural pictures fall about as the frequency to -2; what is left when that is taken
    out is even up to the cut-off and below it nothing but noise.

    Args:
        luma: (H, W), 0 to 255.
        noise_sigma: Standard deviation of its noise, in the same unit.
    """
    power, sides = _rings(luma)
    frequency = (np.arange(NUM_BINS) + 0.5) / (2 * NUM_BINS)
    floor = (noise_sigma**2 + _ROUNDING) * _FLOOR * _window_power(*sides)
    signal = np.where(power > _FLOORS_ABOVE * floor, power - floor, 0) * frequency**2
    middle = (frequency >= _MIDDLE[0]) & (frequency <= _MIDDLE[1])
    level = float(np.median(signal[middle]))
    if level <= 0:
        return 1 / NUM_BINS
    carried = np.flatnonzero(_smoothed(signal) > _LEAST * level)
    last = int(carried[-1]) if len(carried) else 0
    # A gap of four rings ends it: above an enlarged picture's cut-off only mirror images stand.
    gaps = np.flatnonzero(np.diff(carried) > 4)
    if len(gaps):
        last = int(carried[gaps[0]])
    return (last + 1) / NUM_BINS


def _smoothed(signal: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.convolve(np.pad(signal, 1, mode="edge"), np.full(3, 1 / 3), mode="valid")


def _rings(luma: Floats) -> tuple[NDArray[np.float64], tuple[int, int]]:
    """Geometric mean of the power in every ring, and the sides looked at."""
    height, width = (min(side, MAX_SIDE) for side in luma.shape)
    top, left = (luma.shape[0] - height) // 2, (luma.shape[1] - width) // 2
    part = luma[top : top + height, left : left + width]
    transformed = np.fft.rfft2((part - part.mean()) * _window(height, width))
    power = np.log(transformed.real**2 + transformed.imag**2 + 1e-12).ravel()
    ring, counts = _places(height, width)
    sums = np.bincount(ring, weights=power, minlength=NUM_BINS + 1)[:NUM_BINS]
    return np.exp(sums / counts), (height, width)


@lru_cache(maxsize=16)
def _window(height: int, width: int) -> Floats:
    return np.asarray(cv2.createHanningWindow((width, height), cv2.CV_32F), np.float32)


@lru_cache(maxsize=16)
def _window_power(height: int, width: int) -> float:
    return float((_window(height, width).astype(np.float64) ** 2).sum())


@lru_cache(maxsize=16)
def _places(height: int, width: int) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """The ring of every place of the half spectrum (`NUM_BINS` for none), and rings' counts."""
    y, x = np.abs(np.fft.fftfreq(height))[:, None], np.fft.rfftfreq(width)[None, :]
    ring = np.minimum(np.hypot(x, y) * 2 * NUM_BINS, NUM_BINS).astype(np.intp)
    ring[(x < _AXIS) | (y < _AXIS)] = NUM_BINS
    near = np.hypot(x, y) < 3 * _AXIS  # where the axes would take all
    ring[near] = np.minimum(np.hypot(x, y) * 2 * NUM_BINS, NUM_BINS).astype(np.intp)[near]
    counts = np.bincount(ring.ravel(), minlength=NUM_BINS + 1)[:NUM_BINS]
    return ring.ravel(), np.maximum(counts, 1).astype(np.float64)
