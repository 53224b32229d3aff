"""A restored crop back into its photo, by the exact inverse of how it was cut out.

Only pixels under a face's window are written; every other one keeps its bits.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.faces.align import Matrix, crop_side, from_centres
from pipeline.images import Pixels

Color = NDArray[np.uint8] | NDArray[np.uint16]
Values = NDArray[np.float32]

# The window, in sides of the crop: 0 up to INSET from the border, then a smooth rise that is over
# at INSET + FEATHER. The template keeps a chin within 0.9 of the crop's height.
INSET, FEATHER = 1 / 32, 3 / 32
# The inner window, with eyes and mouth in it, which no neighbour's crop may cover.
CORE_INSET, CORE_FEATHER = 1 / 4, 1 / 8
# What a viewer sees as brightness (ITU-R BT.601), for photos without colour.
LUMA = np.array([[0.299, 0.587, 0.114]], np.float32)


@dataclass(frozen=True, slots=True)
class Patch:
    """A restored face and where it belongs.

    Attributes:
        restored: (S, S, 3) uint8 RGB.
        place: (2, 3) matrix from the photo to the crop's unit square; see `align.crop_place`.
        fills: The crop is the whole photo and takes its place, without a window.
    """

    restored: Pixels
    place: Matrix
    fills: bool = False


@dataclass(frozen=True, slots=True)
class _Laid:
    """A patch in the photo's own pixels: a box of them, the face in it, and where in the crop."""

    box: tuple[slice, slice]
    face: Values  # (h, w, C)
    across: Values  # (h, w) place in the crop, 0 to 1
    down: Values
    fills: bool

    def window(self, inset: float, feather: float) -> Values:
        """(h, w) weight from 0 to 1: a smooth rise from each side of the crop."""
        if self.fills:
            return np.ones_like(self.across)
        return _rise(self.across, inset, feather) * _rise(self.down, inset, feather)


def paste(photo: Color, patches: Sequence[Patch], blend: float = 1) -> Color:
    """Lay restored faces over a photo.

    Where crops overlap, a later one covers an earlier, except for the middle of a face, which
    always stays that face's own.

    Args:
        photo: (H, W, 3) RGB or (H, W, 1) gray, uint8 or uint16; it is not changed.
        patches: Faces in the order in which they are laid.
        blend: 0 keeps the photo's bits, 1 is the restored face in full.

    Returns:
        A copy with the shape and type of `photo`, equal to it bit by bit outside the windows.
    """
    result = photo.copy()
    laid = [piece for patch in patches if (piece := _lay(patch, photo)) is not None]
    for piece in laid:
        _cover(result, photo, piece, piece.window(INSET, FEATHER), blend)
    for piece in laid:
        if any(piece is not other and _meet(piece.box, other.box) for other in laid):
            _cover(result, photo, piece, piece.window(CORE_INSET, CORE_FEATHER), blend)
    return result


def _cover(result: Color, photo: Color, piece: _Laid, weight: Values, blend: float) -> None:
    """Mix a face into `result` in place, rounding once, where it has any weight."""
    under = weight[..., None]
    there = result[piece.box].astype(np.float32)
    original = photo[piece.box].astype(np.float32)
    wanted = original + np.float32(blend) * (piece.face - original)
    mixed = np.rint(there + under * (wanted - there)).clip(0, np.iinfo(photo.dtype).max)
    np.copyto(result[piece.box], mixed.astype(photo.dtype), where=under > 0)


def _lay(patch: Patch, photo: Color) -> _Laid | None:
    """Resample a face to the photo's pixels; None where it lies outside the photo."""
    height, width, channels = photo.shape
    linear = patch.place[:, :2]
    corners = np.linalg.solve(linear, [[0, 1, 0, 1], [0, 0, 1, 1]] - patch.place[:, 2:])
    left, top = np.maximum(np.floor(corners.min(1)), 0).astype(int)
    right, bottom = np.minimum(np.ceil(corners.max(1)), (width, height)).astype(int)
    if left >= right or top >= bottom:
        return None
    place = patch.place.copy()
    place[:, 2] += linear @ (left, top)
    face = _resample(patch.restored, place, (bottom - top, right - left))
    if channels == 1:
        face = cv2.transform(face, LUMA).reshape(*face.shape[:2], 1).astype(np.float32)
    face *= np.float32(np.iinfo(photo.dtype).max / 255)
    x, y = np.arange(right - left) + 0.5, np.arange(bottom - top)[:, None] + 0.5
    across, down = ((row[0] * x + row[1] * y + row[2]).astype(np.float32) for row in place)
    return _Laid((slice(top, bottom), slice(left, right)), face, across, down, patch.fills)


def _resample(restored: Pixels, place: Matrix, shape: tuple[int, int]) -> Values:
    """Draw a crop as (h, w, 3) float32, `place` taking the box's pixels to the crop's unit square.

    A crop finer than the photo is drawn on a grid k times finer and averaged down, so that it does
    not alias.
    """
    size = len(restored)
    finer = max(1, int(np.ceil(size / crop_side(place) - 0.01)))
    matrix = place * size
    matrix[:, :2] /= finer
    drawn = cv2.warpAffine(
        restored.astype(np.float32),
        from_centres(matrix),
        (shape[1] * finer, shape[0] * finer),
        flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    if finer > 1:
        drawn = cv2.resize(drawn, shape[::-1], interpolation=cv2.INTER_AREA)
    return drawn.astype(np.float32, copy=False)


def _rise(place: Values, inset: float, feather: float) -> Values:
    """Smoothstep of the distance to the nearer side."""
    t = ((np.minimum(place, 1 - place) - np.float32(inset)) / np.float32(feather)).clip(0, 1)
    rise: Values = t * t * (3 - 2 * t)
    return rise


def _meet(one: tuple[slice, slice], other: tuple[slice, slice]) -> bool:
    return all(a.start < b.stop and b.start < a.stop for a, b in zip(one, other, strict=True))
