"""What tells a picture again after JPEG, resizing, cropping, a change of gamma or a mirror.

The print of an image is 720 bytes and holds no name and no colour:

    0    18 hashes of 64 bits: of the picture, and of 17 crops of it, so that the hash of a crop of
         the picture is near to one of them
    144  24 x 24 signed bytes: the picture with its spectrum flattened; its 12 x 12 lowest waves
         are the copy embedding, all of them the last look

All follow from the luma at 32 x 32 pixels, after a power that brings its mean to one half (so that
a change of gamma cancels) and scaling to mean 0 and deviation 1 (so that gain and offset do).
"""

import itertools
from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.cleaning.copies.waves import (
    SIDE,
    Array,
    centres,
    cosines,
    mean,
    order,
    spread,
    transform,
)
from pipeline.images import Pixels

# Crops of which the hash is kept too, as the parts cut off left, right, top and bottom: everything
# cut by up to 5 % lies within 1.5 % of one of them on each side.
_CUTS = (0.01, 0.04)
CROPS = ((0.0,) * 4, (0.025,) * 4, *itertools.product(_CUTS, repeat=4))
NUM_HASHES = len(CROPS)
THUMB = 24
_THUMB_AT = 8 * NUM_HASHES
PRINT_BYTES = _THUMB_AT + THUMB**2

# Steps of a signed byte: pixels of thumbnails reach 5 standard deviations.
_THUMB_STEP = 25
# Of a standard deviation of the luma (0 to 1) below this nothing is left to compare: blank.
MIN_CONTRAST = 0.02
# What the hashed square of coefficients holds of a picture's deviation, on average.
_LOW_SHARE = 0.89
_DARKEST = 1 / 255
_POWERS = (0.2, 5.0)


def make_prints(pixels: Pixels) -> bytes:
    """The print of an image.

    The face's points are not used: see docs/duplicates.md for what they were worth.

    Args:
        pixels: (H, W, 3) uint8 RGB, an aligned face crop of any size and nearly any aspect.

    Returns:
        `PRINT_BYTES` bytes; all zeros for a blank picture, which is a near copy of nothing.
    """
    plain = plain_picture(pixels)
    if plain is None:
        return bytes(PRINT_BYTES)
    waves = transform()
    found: bytes = pack((waves @ plain @ waves.T / SIDE)[None])[0].tobytes()
    return found


def plain_picture(pixels: Pixels) -> Array | None:
    """(32, 32) luma of mean 0 and deviation 1, freed of gamma; None for a blank picture."""
    gray = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(gray.astype(np.float32), (SIDE, SIDE), interpolation=cv2.INTER_AREA) / 255
    if small.std() < MIN_CONTRAST:
        return None
    logs = np.log(np.clip(small.astype(np.float64), _DARKEST, 1))
    plain = np.exp(logs * _power(logs))
    return np.asarray((plain - plain.mean()) / plain.std(), np.float64)


def _power(logs: Array) -> float:
    """The power that brings the mean to one half, by bisection."""
    low, high = _POWERS
    for _ in range(20):
        middle = float(np.sqrt(low * high))
        low, high = (middle, high) if np.exp(logs * middle).mean() > 0.5 else (low, middle)
    return low


def pack(coefficients: Array) -> NDArray[np.uint8]:
    """Pack prints out of spectra.

    Args:
        coefficients: (N, 32, 32) as `prints_waves` describes them.

    Returns:
        (N, PRINT_BYTES).
    """
    thumbs = np.clip(np.rint(_flat_thumbs(coefficients) * _THUMB_STEP), -127, 127)
    hashes = _hashes(coefficients).view(np.uint8)
    flat = thumbs.astype(np.int8).view(np.uint8).reshape(len(coefficients), -1)
    return np.concatenate([hashes, flat], axis=1)


def _hashes(coefficients: Array) -> NDArray[np.uint64]:
    """(N, 18) hashes: is a coefficient above its mean? The lowest is the highest bit."""
    cuts = _crop_waves()
    down, across = order()
    rows = {ends: cut @ coefficients for ends, cut in cuts.items()}  # (N, 11, 32)
    found = np.empty((len(coefficients), NUM_HASHES), np.uint64)
    for number, (left, right, top, bottom) in enumerate(CROPS):
        crop = rows[top, bottom] @ cuts[left, right].T  # (N, 11, 11), as if of the whole
        crop[:, 0, 0] = 0
        size = np.sqrt(np.einsum("nij,nij->n", crop, crop)) / _LOW_SHARE
        bits = crop[:, down, across] > mean() * size[:, None]
        found[:, number] = np.packbits(bits, axis=1).view(">u8")[:, 0]
    return found


@cache
def _crop_waves() -> dict[tuple[float, float], Array]:
    """(11, 32): from a row's coefficients to the lowest of its part, by what is cut off it."""
    low = transform()[: max(int(places.max()) for places in order()) + 1]
    cuts = {(crop[side], crop[side + 1]) for crop in CROPS for side in (0, 2)}
    return {
        (first, last): low @ cosines(first + centres(SIDE) * (1 - first - last), SIDE)
        for first, last in sorted(cuts)
    }


def _flat_thumbs(coefficients: Array) -> Array:
    """(N, 24, 24) pictures whose every frequency has the same size on average."""
    places = np.indices((THUMB, THUMB))
    flat = coefficients[:, :THUMB, :THUMB] / spread(places[0], places[1])
    flat[:, 0, 0] = 0
    waves = transform(THUMB)
    return np.asarray(waves.T @ flat @ waves, np.float64)


# -------------------------------------------------------------------------------- reading them


def hashes_of(prints: NDArray[np.uint8], num_hashes: int = NUM_HASHES) -> NDArray[np.uint64]:
    """(N, num_hashes) hashes; the first is the picture's own."""
    return np.ascontiguousarray(prints[:, : 8 * num_hashes]).view(np.uint64)


def thumbs_of(prints: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(N, 24, 24) thumbnails, in steps of a signed byte."""
    rows = np.ascontiguousarray(prints[:, _THUMB_AT:]).view(np.int8)
    return rows.astype(np.float32).reshape(-1, THUMB, THUMB)


def mirror_mask() -> np.uint64:
    """The bits that change in the mirror; XOR with it is the hash of the mirror image.

    The crops are mirrored with the picture, so a print's 18 become its mirror image's 18.
    """
    odd = order()[1] % 2 == 1
    mask: np.uint64 = np.packbits(odd).view(">u8")[0]
    return np.uint64(mask)


def phash_hex(prints: bytes) -> str:
    """The picture's own hash as 16 hex digits."""
    return f"{int(np.frombuffer(prints, np.uint64, 1)[0]):016x}"
