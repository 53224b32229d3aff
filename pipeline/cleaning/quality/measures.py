"""Classic measurements of a picture: sharpness, noise, compression, light, real resolution.

No network is in them: they verify what was restored, and say in words what is wrong with a face.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.cleaning.quality.jpeg_tables import jpeg_quality
from pipeline.cleaning.quality.spectrum import native_share
from pipeline.images import Pixels

Floats = NDArray[np.float32]

_BLOCK = 8
_LEAST_SHARPNESS, _LEAST_SIDE_PX = 0.05, 8.0  # below, a face is no worse
_QUIET_SHARE = 0.2  # of the flatter half of the blocks
_NOISE_SOFT = 1.5  # sigma
_NOISE_GAIN = 0.68  # of white noise of sigma 1: what it takes away there, on average
_DARK, _BRIGHT = 2, 253
_GRAY_SPREAD, _COLOURED_SHARE = 6, 0.01  # channels further apart, in so few pixels
# Variance of unit white noise in the fine and in the middle band of the sharpness.
_NOISE_FINE, _NOISE_MIDDLE = 0.77, 0.011


@dataclass(frozen=True, slots=True)
class Measures:
    """What can be measured of one picture.

    Attributes:
        sharpness: Contrast of details finer than a pixel or two against that of details four times
            as coarse, noise taken out; about 0.5 to 1 for a sharp face of any size, 0 for none.
        noise_sigma: Of its noise in flat parts, in grey levels of 255. Noise that was enlarged or
            smoothed is not counted.
        jpeg_quality: 1 to 100 from the file's table; None if the file is no JPEG.
        blockiness: Steps at the borders of 8 x 8 squares against those inside, 0 none; of the
            pixels, so also of a JPEG that was saved again. A resampled one shows none.
        exposure: Mean luma, 0 to 1.
        clipped_share: Share of pixels that are black or white.
        contrast: Between the 5th and 95th percentile of luma, 0 to 1.
        is_gray: Whether it has no colours.
        native_side_px: Side at which the picture could be stored without losing detail.
    """

    sharpness: float
    noise_sigma: float
    jpeg_quality: int | None
    blockiness: float
    exposure: float
    clipped_share: float
    contrast: float
    is_gray: bool
    native_side_px: float


def measure(pixels: Pixels, data: bytes, format: str) -> Measures:
    """Measure one picture.

    Args:
        pixels: uint8 (H, W, 3) RGB, at least 16 pixels.
        data: The file's bytes, for a JPEG's tables.
        format: "jpeg" or another.
    """
    gray = np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), np.uint8)
    luma = gray.astype(np.float32)
    noise = _noise_sigma(luma)
    shares = np.bincount(gray.ravel(), minlength=256) / gray.size
    low, high = np.searchsorted(np.cumsum(shares), (0.05, 0.95))
    return Measures(
        sharpness=_sharpness(luma, noise),
        noise_sigma=noise,
        jpeg_quality=jpeg_quality(data) if format == "jpeg" else None,
        blockiness=_blockiness(luma),
        exposure=float(shares @ np.arange(256)) / 255,
        clipped_share=float(shares[:_DARK].sum() + shares[_BRIGHT + 1 :].sum()),
        contrast=float(high - low) / 255,
        is_gray=_is_gray(pixels),
        native_side_px=native_share(luma, noise) * min(luma.shape),
    )


def classic_quality(measures: Measures) -> float:
    """One number of what the pixels show: exp(-faults), 1 best.

    Faults add up: too little sharpness and too much of it (an edge that rings is no detail), noise,
    blockiness, detail for less than 128 pixels, and light far from usual. Their weights are those
    of a least-squares fit (none below 0) of the severity of eight kinds of damage, times 1.5. The
    file's JPEG quality is left out, so that pictures in memory compare with files.

    Returns:
        0 to 1; about 0.95 for a clean face, 0.3 at severity 1 of `damage.damage`.
    """
    sharpness = max(_LEAST_SHARPNESS, measures.sharpness)
    faults = (
        0.2 * max(0.0, math.log(0.8 / sharpness))
        + 1.3 * max(0.0, math.log(sharpness / 1.0))
        + 0.45 * math.log1p(max(0.0, measures.noise_sigma - 0.7) / 2)
        + 0.45 * math.log1p(max(0.0, measures.blockiness - 0.15))
        + 0.4 * max(0.0, math.log2(128 / max(_LEAST_SIDE_PX, measures.native_side_px)))
        + max(0.0, 0.2 - measures.contrast)
        + max(0.0, measures.clipped_share - 0.05)
        + 2 * max(0.0, abs(measures.exposure - 0.5) - 0.35)
    )
    return math.exp(-faults)


def _blocks(values: Floats) -> Floats:
    """(H, W) -> (blocks, 64), what is left over at the border left out."""
    rows, columns = (side // _BLOCK for side in values.shape)
    cut = values[: rows * _BLOCK, : columns * _BLOCK].reshape(rows, _BLOCK, columns, _BLOCK)
    return cut.swapaxes(1, 2).reshape(rows * columns, _BLOCK * _BLOCK)


def _noise_sigma(luma: Floats) -> float:
    """What smoothing takes away in the quietest of the flat blocks, so that skin is no noise.

    What is flat is told by the smoothed picture, so that noise does not choose its own places.
    """
    smooth = _soft(luma, _NOISE_SOFT)
    taken, smooth = _blocks(np.abs(luma - smooth)).mean(axis=1), _blocks(smooth)
    mean = smooth.mean(axis=1)
    usable = (mean > 8) & (mean < 247)  # noise at the ends of the scale is cut off
    if not usable.any():
        return 0.0
    taken, spread = taken[usable], np.ptp(smooth[usable], axis=1)
    flat = taken[spread <= np.median(spread)]
    return float(np.quantile(flat, _QUIET_SHARE) / _NOISE_GAIN)


def _soft(luma: Floats, sigma: float) -> Floats:
    return np.asarray(cv2.GaussianBlur(luma, (0, 0), sigma), np.float32)


def _sharpness(luma: Floats, noise: float) -> float:
    once = _soft(luma, 1.0)
    half = cv2.resize(once, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA).astype(np.float32)
    near, far = _soft(half, 0.8), _soft(half, 2.0)  # of the full size: about 2 and 4
    fine = float(np.var(luma - once)) - _NOISE_FINE * noise**2
    middle = float(np.var(near - far)) - _NOISE_MIDDLE * noise**2
    if middle < 1:  # a plain surface
        return 0.0
    return math.sqrt(max(0.0, fine) / middle)


def _blockiness(luma: Floats) -> float:
    """How much larger steps are at the grid of 8 than elsewhere: mean of rows and columns."""
    return (_grid_steps(luma) + _grid_steps(luma.T)) / 2


def _grid_steps(luma: Floats) -> float:
    if luma.shape[1] < 3 * _BLOCK:
        return 0.0
    step = np.abs(np.diff(luma, axis=1))
    # A step beyond what its neighbours lead to expect: an edge of the picture has soft flanks.
    beyond = np.maximum(0, step[:, 1:-1] - (step[:, :-2] + step[:, 2:]) / 2).mean(axis=0)
    place = np.arange(1, 1 + len(beyond)) % _BLOCK
    inside, border = float(beyond[place != _BLOCK - 1].mean()), beyond[place == _BLOCK - 1]
    return max(0.0, (float(border.mean()) - inside) / (inside + 0.5))


def _is_gray(pixels: Pixels) -> bool:
    red, green, blue = cv2.split(pixels)
    spread = cv2.subtract(cv2.max(cv2.max(red, green), blue), cv2.min(cv2.min(red, green), blue))
    coloured = np.count_nonzero(spread > _GRAY_SPREAD)
    return bool(coloured < _COLOURED_SHARE * spread.size)
