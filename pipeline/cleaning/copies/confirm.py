"""Whether two pictures that look alike are one: the one is laid over the other, then compared.

A crop of up to some percent on each side, resized back or not, moves every pixel. So four numbers
(the parts cut off left, right, top and bottom) are sought that take one thumbnail to the other, by
Gauss-Newton on the difference: first in coarse thumbnails, whose waves are long enough to lead the
way and which cost little, then in full. Thumbnails are sums of cosines, so they are known between
their pixels too.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.cleaning.copies.prints import THUMB
from pipeline.cleaning.copies.waves import centres, transform

Floats = NDArray[np.float32]

_COARSE = 12
_COARSE_STEPS = 2
_STEPS = 3
# What the coarse thumbnails may lack of the likeness that is wanted: this loses none of 10,000
# damaged copies, and spares four of five look-alikes the full comparison.
_COARSE_LACK = 0.05
# Beyond this a picture is no crop of the other; the aims stop at 5 %, a mix of two may go beyond.
_MAX_CUT = 0.08
# Of the squares of a cut's effect: keeps faint thumbnails from running away.
_DAMPING = 1e-3
# A crop by a tenth shows the finest waves of its thumbnail larger than the other's thumbnail can
# hold, so they are left out of the comparison.
_COMPARED = 11 / 12
_PI = np.float32(np.pi)


@dataclass(frozen=True, slots=True, eq=False)
class _Grid:
    """Constants of thumbnails of one size.

    Attributes:
        at: (S,) the pixels' centres.
        numbers: (S,) of the cosines.
        scale: (S,) of them.
        waves: (S, S), see `prints_waves.transform`.
        smooth: (S, S), takes the finest waves out of rows.
    """

    at: Floats
    numbers: Floats
    scale: Floats
    waves: Floats
    smooth: Floats

    def cosines(self, places: Floats) -> Floats:
        """(N, S, S) the cosines at places, as `prints_waves.cosines`."""
        angles = _PI * places[:, :, None] * self.numbers
        return np.asarray(np.cos(angles) * self.scale, np.float32)

    def slopes(self, places: Floats) -> Floats:
        """Their derivatives by the place."""
        angles = _PI * places[:, :, None] * self.numbers
        return np.asarray(np.sin(angles) * (-_PI * self.numbers * self.scale), np.float32)

    def places(self, first: Floats, last: Floats) -> Floats:
        """(N, S) places of the pixels in a picture cut by (N,) at both its borders."""
        return np.asarray(first[:, None] + self.at * (1 - first - last)[:, None], np.float32)


def _grid(side: int) -> _Grid:
    numbers = np.arange(side, dtype=np.float32)
    scale = np.sqrt(np.where(numbers, 2, 1) / side).astype(np.float32)
    waves = transform(side).astype(np.float32)
    low = waves[: round(side * _COMPARED)]
    return _Grid(centres(side).astype(np.float32), numbers, scale, waves, low.T @ low)


_FULL, _LOW = _grid(THUMB), _grid(_COARSE)


def likeness(ours: Floats, theirs: Floats, wanted: float = 0) -> Floats:
    """How alike pictures are, once laid over each other.

    Args:
        ours: (N, 24, 24) thumbnails.
        theirs: Likewise, to be compared one by one.
        wanted: Where the coarse thumbnails are found to be far below this, theirs is told.

    Returns:
        (N,) correlation of what both show, 1 for the same picture.
    """
    spectra, goals = (_spectra(thumbs) for thumbs in (ours, theirs))
    start = np.zeros((len(ours), 4), np.float32)
    found, cuts = _laid(_LOW, spectra, goals, start, _COARSE_STEPS)
    near = np.flatnonzero(found >= wanted - _COARSE_LACK)
    found[near] = _laid(_FULL, spectra[near], goals[near], cuts[near], _STEPS)[0]
    return found


def _spectra(thumbs: Floats) -> Floats:
    return _product(_product(_FULL.waves, thumbs), _FULL.waves.T)


def _laid(
    grid: _Grid, spectra: Floats, goals: Floats, cuts: Floats, num_steps: int
) -> tuple[Floats, Floats]:
    """Correlation after so many steps, and the cuts (N, 4) they led to."""
    side = len(grid.at)
    spectra = np.ascontiguousarray(spectra[:, :side, :side])
    goal = _product(
        _product(grid.waves.T, np.ascontiguousarray(goals[:, :side, :side])), grid.waves
    )
    for _ in range(num_steps):
        moved, slopes = _moved_and_slopes(grid, spectra, cuts)
        cuts = np.clip(cuts + _step(moved, slopes, goal), -_MAX_CUT, _MAX_CUT)
    columns = grid.places(cuts[:, 0], cuts[:, 1])
    rows = grid.places(cuts[:, 2], cuts[:, 3])
    down = _product(grid.smooth, grid.cosines(rows))
    across = _product(grid.smooth, grid.cosines(columns)).transpose(0, 2, 1)
    moved = _product(_product(down, spectra), across)
    goal = _product(_product(grid.smooth, goal), grid.smooth)
    return _correlation(moved, goal, _both_inside(rows, columns)), cuts


def _product(one: Floats, other: Floats) -> Floats:
    return np.asarray(one @ other, np.float32)


def _both_inside(rows: Floats, columns: Floats) -> NDArray[np.bool_]:
    """(N, S, S): which pixels of the cut picture lie in the whole one."""
    down, across = ((places > 0) & (places < 1) for places in (rows, columns))
    return down[:, :, None] & across[:, None, :]


def _moved_and_slopes(grid: _Grid, spectra: Floats, cuts: Floats) -> tuple[Floats, Floats]:
    """The cut pictures (N, S, S), and how each pixel changes with each cut (N, 4, S * S)."""
    columns = grid.places(cuts[:, 0], cuts[:, 1])
    rows = grid.places(cuts[:, 2], cuts[:, 3])
    across = grid.cosines(columns).transpose(0, 2, 1)
    half = _product(grid.cosines(rows), spectra)
    by_x = _product(half, grid.slopes(columns).transpose(0, 2, 1))
    by_y = _product(_product(grid.slopes(rows), spectra), across)
    first, last = 1 - grid.at, -grid.at
    slopes = np.stack(
        [by_x * first, by_x * last, by_y * first[:, None], by_y * last[:, None]], axis=1
    )
    slopes *= _both_inside(rows, columns)[:, None]
    return _product(half, across), slopes.reshape(len(spectra), 4, len(grid.at) ** 2)


def _step(moved: Floats, slopes: Floats, goal: Floats) -> Floats:
    """What to add to the cuts, (N, 4): least squares of the difference."""
    num = len(moved)
    rest = (goal - moved).reshape(num, moved.shape[1] * moved.shape[2], 1)
    normal = slopes @ slopes.transpose(0, 2, 1)
    size = np.einsum("nkk->n", normal)[:, None, None] * np.float32(_DAMPING) + np.float32(1e-6)
    normal += size * np.eye(4, dtype=np.float32)
    return np.asarray(np.linalg.solve(normal, slopes @ rest)[:, :, 0], np.float32)


def _correlation(ours: Floats, theirs: Floats, seen: NDArray[np.bool_]) -> Floats:
    """Correlation over the pixels that both show, (N,)."""
    weight = seen.astype(np.float32)
    count = weight.sum(axis=(1, 2))

    def centred(picture: Floats) -> Floats:
        mean = (picture * weight).sum(axis=(1, 2)) / count
        return np.asarray((picture - mean[:, None, None]) * weight, np.float32)

    a, b = centred(ours), centred(theirs)
    product = np.einsum("nij,nij->n", a, b)
    lengths = np.sqrt(np.einsum("nij,nij->n", a, a) * np.einsum("nij,nij->n", b, b))
    return np.asarray(product / np.maximum(lengths, 1e-6), np.float32)
