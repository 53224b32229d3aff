"""Where a head turns, coarsely, from five points of the face."""

import math

import numpy as np
from numpy.typing import ArrayLike

from pipeline.faces.align import TEMPLATE

_LIMIT = 75.0  # degrees; beyond it five points say nothing
# How far the nose stands out, in halves of the eyes' distance and in distances of eyes and mouth.
_NOSE_YAW = 1.0
_NOSE_PITCH = 0.6


def pose(points: ArrayLike) -> tuple[float, float, float]:
    """Yaw, pitch and roll in degrees; 0 is a face that looks into the camera.

    The head is taken for a ball with the nose before it: the nose's place between the eyes gives
    the yaw, its place between eye line and mouth line the pitch, both against the mean face of the
    template. Faces differ, so take it for good to about ten degrees.

    Args:
        points: (5, 2) as (x, y), y down: left eye, right eye, nose, left and right mouth corner,
            left as the viewer sees it.

    Returns:
        yaw: Positive where the nose points to the viewer's right.
        pitch: Positive where it points up.
        roll: Positive where the head is tilted clockwise for the viewer.
    """
    level = _levelled(points)
    if level is None:
        return 0.0, 0.0, 0.0
    (aside, down), roll = level
    mean_aside, mean_down = _MEAN
    yaw = _angle((aside - mean_aside) / _NOSE_YAW)
    pitch = _angle((mean_down - down) / _NOSE_PITCH)
    return yaw, pitch, roll


def _levelled(points: ArrayLike) -> tuple[tuple[float, float], float] | None:
    """The nose's place in the frame of eyes and mouth, and the roll; None without a frame."""
    left, right, nose, mouth_left, mouth_right = np.asarray(points, np.float64)
    eyes, mouth = (left + right) / 2, (mouth_left + mouth_right) / 2
    across, down = right - left, mouth - eyes
    roll = math.degrees(math.atan2(across[1], across[0]))
    frame = np.column_stack([across / 2, down])
    width = float(np.hypot(*across))
    if abs(np.linalg.det(frame)) < 1e-3 * max(width, 1e-6) ** 2:
        return None
    aside, below = np.linalg.solve(frame, nose - eyes)
    return (float(aside), float(below)), roll


def _angle(share: float) -> float:
    return float(np.clip(math.degrees(math.asin(np.clip(share, -1, 1))), -_LIMIT, _LIMIT))


def _mean_place() -> tuple[float, float]:
    level = _levelled(TEMPLATE)
    assert level is not None
    return level[0]


_MEAN = _mean_place()
