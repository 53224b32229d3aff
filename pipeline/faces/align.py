"""Five points of a face -> the FFHQ template -> a square, aligned crop, and the way back."""

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.images import Pixels, resize

# Left eye, right eye, nose, left and right mouth corner as (x, y) in a crop of 512 pixels; the
# mean shape of FFHQ crops, as the restoration field uses it (values from facexlib and GFPGAN).
TEMPLATE_SIZE = 512
TEMPLATE = np.array(
    [
        [192.98138, 239.94708],
        [318.90277, 240.19360],
        [256.63416, 314.01935],
        [201.26117, 371.41043],
        [313.08905, 371.15118],
    ]
)

Matrix = NDArray[np.float64]


def similarity(points: ArrayLike, target: ArrayLike) -> Matrix:
    """Least-squares scale, turn and shift (no mirror) that takes `points` to `target`.

    Args:
        points: (N, 2) as (x, y), at least two different ones.
        target: (N, 2).

    Returns:
        (2, 3) matrix M with target = M[:, :2] @ point + M[:, 2].
    """
    source, goal = np.asarray(points, np.float64), np.asarray(target, np.float64)
    num_points = len(source)
    # A similarity is x' = a x - b y + c, y' = b x + a y + d: linear in (a, b, c, d).
    rows = np.zeros((2 * num_points, 4))
    rows[:num_points] = np.column_stack(
        [source[:, 0], -source[:, 1], np.ones(num_points), np.zeros(num_points)]
    )
    rows[num_points:] = np.column_stack(
        [source[:, 1], source[:, 0], np.zeros(num_points), np.ones(num_points)]
    )
    (a, b, c, d), *_ = np.linalg.lstsq(rows, goal.T.ravel(), rcond=None)
    return np.array([[a, -b, c], [b, a, d]])


def crop_place(points: ArrayLike) -> Matrix:
    """Where the aligned crop of a face lies in its photo.

    Args:
        points: Five points as in `TEMPLATE`, in pixels of the photo, where the first pixel spans
            0 to 1.

    Returns:
        (2, 3) matrix that takes a place in the photo to the crop's unit square.
    """
    return similarity(points, TEMPLATE / TEMPLATE_SIZE)


def crop_side(place: Matrix) -> float:
    """Side of the crop in pixels of the photo; infinite where the points fell into one."""
    scale = float(np.hypot(place[0, 0], place[1, 0]))
    return 1 / scale if scale else float("inf")


def from_centres(matrix: Matrix) -> Matrix:
    """The same mapping for indices of pixels: OpenCV counts from the first pixel's centre."""
    shifted = matrix.copy()
    shifted[:, 2] += matrix[:, :2] @ (0.5, 0.5) - 0.5
    return shifted


def align(image: Pixels, points: ArrayLike, size: int) -> Pixels:
    """Cut the aligned face out of (H, W, 3) at (size, size, 3); see `cut` and `crop_place`."""
    return cut(image, crop_place(points), size)


def cut(image: Pixels, place: Matrix, size: int) -> Pixels:
    """Cut the crop at `place` out of (H, W, 3) at (size, size, 3), mirrored beyond the border.

    The face is sampled at the finer of its own and the asked resolution and then averaged down, so
    that a large face does not alias.

    Args:
        image: uint8 RGB.
        place: What `crop_place` says.
        size: Side of the crop in pixels.
    """
    finer = size * max(1, int(np.ceil(crop_side(place) / size)))
    crop = cv2.warpAffine(
        image,
        from_centres(place * finer),
        (finer, finer),
        flags=cv2.INTER_CUBIC,
        borderMode=cv2.BORDER_REFLECT_101,
    )
    return resize(crop.astype(np.uint8, copy=False), size)
