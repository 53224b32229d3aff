"""The cosines that prints are made of: their order, their usual size, their mean over faces.

A picture is brought to 32 x 32 pixels of mean 0 and standard deviation 1; coefficient (v, u) is its
cosine transform with v half waves down and u across, scaled so that the squares sum to 1. The two
constants below describe the 598 portraits of the United States Congress, which are public domain;
`benchmarks/clean_prints.py --constants` prints them anew.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

SIDE = 32
NUM_HASHED = 64
# ln(standard deviation) of a coefficient of radius r is this polynomial of ln(1 + r), fitted over
# the 400 lowest; single ones are off by 0.23 (root mean square), which whitening forgives.
SPREAD = (-1.518, -0.173, -0.253)
# Mean of the 64 lowest coefficients in hundredths of their standard deviation. Those of odd u are
# 0, as if each portrait stood there with its mirror image.
# fmt: off
MEAN = (
    7, 0, 0, -216, -122, 0, 82, 64, 52, 0, 0, 0, 187, 0, -155, 219, 0, 29, 0, 55, -53, 46, 0,
    -171, 0, 0, 0, 31, 0, -123, 0, 0, 33, 103, 0, -94, -106, -45, 41, 0, 0, -48, 232, 0, 0, 0, 0,
    -80, 57, -170, 0, 0, 0, 0, -75, 12, -54, 0, 59, 0, -16, -62, 10, 142,
)
# fmt: on

Array = NDArray[np.float64]


@cache
def order() -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """(v, u) of the hashed coefficients, the lowest first, without the mean at (0, 0)."""
    places = [(v, u) for v in range(SIDE) for u in range(SIDE) if u + v]
    places.sort(key=lambda place: (place[0] ** 2 + place[1] ** 2, place[1], place[0]))
    down, across = np.array(places[:NUM_HASHED]).T
    return down, across


def spread(down: NDArray[np.intp], across: NDArray[np.intp]) -> Array:
    """Usual standard deviation of coefficients, by their places."""
    radius = np.log1p(np.hypot(down, across))
    constant, slope, bend = SPREAD
    return np.asarray(np.exp(constant + slope * radius + bend * radius**2), np.float64)


@cache
def mean() -> Array:
    """Mean of the hashed coefficients over faces, (64,)."""
    return np.array(MEAN) / 100 * spread(*order())


def cosines(places: Array, num_waves: int) -> Array:
    """Cosines at places, scaled so that those at `num_waves` pixel centres are orthonormal.

    Args:
        places: (..., P), 0 at one border and 1 at the other.
        num_waves: How many, from the constant one on.

    Returns:
        (..., P, num_waves).
    """
    waves = np.arange(num_waves)
    scale = np.sqrt(np.where(waves, 2, 1) / num_waves)
    return np.asarray(np.cos(np.pi * places[..., None] * waves) * scale, np.float64)


def centres(num_pixels: int) -> Array:
    """Places of the pixels' centres, 0 to 1."""
    return np.asarray((np.arange(num_pixels) + 0.5) / num_pixels, np.float64)


@cache
def transform(side: int = SIDE) -> Array:
    """(side, side): row k is the k-th cosine at the pixels; its inverse is its transpose."""
    return np.ascontiguousarray(cosines(centres(side), side).T)
