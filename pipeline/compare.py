"""Before and after, side by side."""

from collections.abc import Sequence

import cv2
import numpy as np

from pipeline.images import Pixels

CELL_PX = 256
GAP_PX = 8


def side_by_side(rows: Sequence[Sequence[Pixels]], cell_px: int = CELL_PX) -> Pixels:
    """Draw rows of images on white, each enlarged or reduced to `cell_px`.

    Args:
        rows: Every row as many (H, W, 3) uint8 images as the first.
        cell_px: Side of one picture.

    Returns:
        (H', W', 3) uint8.
    """
    step = cell_px + GAP_PX
    height, width = len(rows) * step + GAP_PX, len(rows[0]) * step + GAP_PX
    canvas = np.full((height, width, 3), 255, np.uint8)
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            # Small pictures keep their pixels visible; nothing is smoothed into looking better.
            way = cv2.INTER_AREA if image.shape[0] > cell_px else cv2.INTER_NEAREST
            cell = cv2.resize(image, (cell_px, cell_px), interpolation=way)
            top, left = y * step + GAP_PX, x * step + GAP_PX
            canvas[top : top + cell_px, left : left + cell_px] = cell
    return canvas
