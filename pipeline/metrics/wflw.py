"""LMD: how far the face's features move from the truth's, in pixels, by 98 points (VQFR).

The network is facexlib's: AWing FAN, trained on WFLW (X. Wang et al., ICCV 2019). The whole picture
is looked at, as published: no face is detected or cropped, so there is always an answer.
"""

from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import torch
from facexlib.alignment.awing_arch import FAN
from numpy.typing import NDArray
from torch import Tensor

from pipeline.images import Pixels
from pipeline.metrics.judge import Face, Points, Score
from pipeline.metrics.outside import library, load_into, read_tensors
from vsp_model.files import sha256_of

NUM_POINTS = 98
SIZE = 256
_GRID = 64  # side of a heatmap
_WHAT = "facexlib's AWing FAN (alignment_WFLW_4HG.pth)"


class WflwJudge:
    """Mean distance of 98 points from the truth's; see `judge.Judge`. Threads may share it."""

    metrics = ("lmd",)

    def __init__(self, path: Path) -> None:
        """Read the weights.

        facexlib's own loader reads them to the device they were saved from and lets pickles run.

        Raises:
            UserError: If the file holds no such network.
        """
        self._net = FAN(num_modules=4, num_landmarks=NUM_POINTS, device="cpu")
        load_into(self._net, read_tensors(path, _WHAT), path, _WHAT)
        self.files = {path.name: sha256_of(path)}
        self.library = library("facexlib")

    def score(self, face: Face) -> Mapping[str, Score]:
        """See `judge.Judge`."""
        assert face.truth is not None, "no truth"
        apart = self.points(face.restored) - self.points(face.truth)
        return {"lmd": Score.of(np.linalg.norm(apart, axis=1).mean())}

    @torch.inference_mode()
    def points(self, image: Pixels) -> Points:
        """(98, 2) as (x, y) in pixels of uint8 (H, W, 3) RGB, the first pixel spanning 0 to 1."""
        height, width = image.shape[:2]
        small = cv2.resize(image, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
        batch = torch.from_numpy(small.transpose(2, 0, 1)[None].astype(np.float32)) / 255
        heatmaps: Tensor = self._net(batch)[0][-1][0, :NUM_POINTS]  # the last one is the outline
        scale: Points = np.array((width / _GRID, height / _GRID))
        return peaks(heatmaps.numpy()) * scale


def peaks(heatmaps: NDArray[np.float32]) -> Points:
    """The place of each map's largest value, moved a quarter towards its larger neighbour.

    facexlib's own function asks numpy for a name that is gone, and at the map's edge fails or takes
    one point's neighbour for all; here a neighbour outside the map counts as its edge.

    Args:
        heatmaps: (N, H, W).

    Returns:
        (N, 2) as (x, y), the first cell spanning 0 to 1.
    """
    num_points, _, width = heatmaps.shape
    best = heatmaps.reshape(num_points, -1).argmax(axis=1)
    y, x = np.divmod(best, width)
    around = np.pad(heatmaps, ((0, 0), (1, 1), (1, 1)), mode="edge")
    which = np.arange(num_points)
    right, left = around[which, y + 1, x + 2], around[which, y + 1, x]
    below, above = around[which, y + 2, x + 1], around[which, y, x + 1]
    towards = np.stack([np.sign(right - left), np.sign(below - above)], axis=1)
    return np.asarray(np.stack([x, y], axis=1) + 0.5 + 0.25 * towards, np.float64)
