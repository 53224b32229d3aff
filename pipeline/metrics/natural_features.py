"""The 36 features of NIQE, block by block: shapes and widths of contrast-normalised luma.

Mittal, Soundararajan, Bovik: "Making a Completely Blind Image Quality Analyzer" (2013). Facts of
the official MATLAB code: local contrast normalisation by a Gaussian of 7 with sigma 7/6, 18
features a block at two scales, the second by MATLAB's antialiased bicubic reduction. Luma is
rounded; the restoration field takes the studio-swing Y (BasicSR).

In flat parts the normalised luma is zero but for rounding, whose sign published code counts: there
the value hangs on the order of sums (scikit-image's astronaut: 3.07 to 3.10). Here it is zero.
"""

import math
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.images import Pixels
from pipeline.metrics.pixels import Values

LumaRange = Literal["studio", "full"]
"""16 to 235 (BasicSR), or 0 to 255 (the default of pyiqa)."""

NUM_FEATURES = 36
_ROUNDING = 1e-9
_LUMA: dict[LumaRange, tuple[Values, int]] = {
    "studio": (np.array([65.481, 128.553, 24.966]) / 255, 16),
    "full": (np.array([0.299, 0.587, 0.114]), 0),
}
_SHIFTS = ((0, 1), (1, 0), (1, 1), (1, -1))
_WINDOW = np.asarray(cv2.getGaussianKernel(7, 7 / 6, cv2.CV_64F), np.float64)
_MATLAB_HALF = np.array([-0.0234375, -0.0703125, 0.2265625, 0.8671875]) / 2
_SHAPES = np.arange(0.2, 10.001, 0.001)
_LOG_GAMMA = np.array([[math.lgamma(k / shape) for k in (1, 2, 3)] for shape in _SHAPES])
_RATIOS = np.exp(2 * _LOG_GAMMA[:, 1] - _LOG_GAMMA[:, 0] - _LOG_GAMMA[:, 2])


def luma_of(image: Pixels, block_px: int, scale: LumaRange = "studio") -> Values:
    """Rounded luma of the whole blocks from the top left, of uint8 (H, W, 3) RGB."""
    height, width = (side // block_px * block_px for side in image.shape[:2])
    weights, black = _LUMA[scale]
    return np.asarray(np.rint(image[:height, :width] @ weights + black), np.float64)


def features_of(luma: Values, block_px: int) -> tuple[Values, Values]:
    """What NIQE looks at.

    Args:
        luma: Of `luma_of`, whole blocks.
        block_px: Side of a block, even.

    Returns:
        Features (blocks, 36), NaN where a block has no structure; sharpness (blocks,).
    """
    normal, deviation = _normalised(luma)
    fine = _block_features(_blocks(normal, block_px))
    coarse = _block_features(_blocks(_normalised(halved(luma))[0], block_px // 2))
    return np.concatenate([fine, coarse], axis=1), _blocks(deviation, block_px).mean(axis=(1, 2))


def _normalised(luma: Values) -> tuple[Values, Values]:
    mean = _filtered(luma, _WINDOW, cv2.BORDER_REPLICATE)
    square = _filtered(luma * luma, _WINDOW, cv2.BORDER_REPLICATE)
    deviation = np.sqrt(np.abs(square - mean * mean))
    normal = (luma - mean) / (deviation + 1)
    return np.where(np.abs(normal) < _ROUNDING, 0, normal), deviation


def halved(luma: Values) -> Values:
    """MATLAB's imresize(x, 0.5): at even sides always the same eight taps."""
    taps = np.concatenate([_MATLAB_HALF, _MATLAB_HALF[::-1]])
    padded = np.pad(luma, 4, mode="symmetric")
    # OpenCV anchors eight taps at the fifth: output i sums inputs i - 4 to i + 3.
    smooth = _filtered(padded, taps, cv2.BORDER_REPLICATE)
    return np.ascontiguousarray(smooth[5:-3:2, 5:-3:2])


def _filtered(x: Values, taps: Values, border: int) -> Values:
    return np.asarray(cv2.sepFilter2D(x, cv2.CV_64F, taps, taps, borderType=border), np.float64)


def _blocks(x: Values, side: int) -> Values:
    rows, columns = (length // side for length in x.shape)
    cut = x.reshape(rows, side, columns, side).swapaxes(1, 2)
    return np.ascontiguousarray(cut.reshape(rows * columns, side, side))


def _block_features(blocks: Values) -> Values:
    """(blocks, side, side) -> (blocks, 18)."""
    shape, left, right = _asymmetric_fit(blocks)
    features = [shape, (left + right) / 2]
    for shift in _SHIFTS:
        shape, left, right = _asymmetric_fit(blocks * np.roll(blocks, shift, axis=(1, 2)))
        number = _nearest(shape)
        mean = (right - left) * np.exp(_LOG_GAMMA[number, 1] - _LOG_GAMMA[number, 0])
        features += [shape, mean, left, right]
    return np.stack(features, axis=1)


def _asymmetric_fit(blocks: Values) -> tuple[Values, Values, Values]:
    """Shape and the two widths of an asymmetric generalised Gaussian, by moments, (blocks,) each.

    NaN widths where a block has no values of one sign.
    """
    squares = blocks * blocks
    sides = []
    with np.errstate(divide="ignore", invalid="ignore"):
        for side in (blocks < 0, blocks > 0):
            sides.append(np.sqrt((squares * side).sum((1, 2)) / side.sum((1, 2))))
        left, right = sides
        ratio = left / right
        peaked = np.abs(blocks).mean((1, 2)) ** 2 / squares.mean((1, 2))
        wanted = peaked * (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1) ** 2
    number = _best_shapes(wanted)
    scale = np.exp((_LOG_GAMMA[number, 0] - _LOG_GAMMA[number, 2]) / 2)
    return _SHAPES[number], left * scale, right * scale


def _best_shapes(wanted: Values) -> NDArray[np.intp]:
    """Index of the shape whose ratio is nearest; the ratios rise with the shape."""
    above = np.clip(np.searchsorted(_RATIOS, wanted), 1, len(_RATIOS) - 1)
    nearer_below = wanted - _RATIOS[above - 1] <= _RATIOS[above] - wanted
    return np.asarray(above - nearer_below, np.intp)


def _nearest(shape: Values) -> NDArray[np.intp]:
    return np.asarray(np.rint((shape - _SHAPES[0]) / 0.001), np.intp)
