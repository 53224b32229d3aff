"""LPIPS 0.1 of a face against its truth: the `lpips` package's network on a trunk given by path."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from pipeline.errors import UserError
from pipeline.metrics.judge import Face, Score
from pipeline.metrics.networks import read_weights, to_tensor
from pipeline.metrics.outside import library
from vsp_model.files import sha256_of
from vsp_model.losses import LPIPS, LPIPSConfig

Net = Literal["squeeze", "alex", "vgg"]
# Below it a trunk pools down to nothing.
MIN_SIDE_PX: Mapping[Net, int] = {"squeeze": 17, "alex": 31, "vgg": 16}
_EPS = 1e-10  # the package's
_CHUNK = 2**16  # features compared at a time, so that they stay in the cache


class PerceptualJudge:
    """LPIPS on one trunk; see `judge.Judge`.

    The package's layers in the package's order. What is spared, half the time at 512 px: memory
    laid out by pixel, and differences taken a few pixels at a time.
    """

    def __init__(self, path: Path, net: Net = "squeeze") -> None:
        """Read the trunk; the linear layers come with the package.

        Raises:
            UserError: If the file holds no such trunk.
        """
        model = LPIPS(LPIPSConfig(net=net))
        try:
            model.load(read_weights(path, f"trunk of LPIPS ({net})"))
        except ValueError as error:
            raise UserError(f"{path}: {error}") from None
        package = model.package.to(memory_format=torch.channels_last)
        self._scaled = package.scaling_layer
        self._slices = [getattr(package.net, f"slice{n + 1}") for n in range(package.L)]
        self._weights = [layer.model[-1].weight.flatten().double() for layer in package.lins]
        self._min_side_px = MIN_SIDE_PX[net]
        self.metrics = (f"lpips-{net}",)
        self.files = {path.name: sha256_of(path)}
        self.library = library("lpips")

    def score(self, face: Face) -> Mapping[str, Score]:
        """See `judge.Judge`."""
        (name,) = self.metrics
        if min(face.restored.shape[:2]) < self._min_side_px:
            return {name: Score.no("too_small")}
        distance = self.distance(to_tensor(face.restored), to_tensor(face.image("gt")))
        return {name: Score.of(distance)}

    @torch.inference_mode()
    def distance(self, image: Tensor, truth: Tensor) -> float:
        """Of two pictures, (1, 3, H, W) RGB in [-1, 1], channels_last; 0 for equal ones."""
        x, y, distance = self._scaled(image), self._scaled(truth), 0.0
        for layer, weights in zip(self._slices, self._weights, strict=True):
            x, y = layer(x), layer(y)
            distance += _difference(x, y, weights)
        return distance


def _difference(x: Tensor, y: Tensor, weights: Tensor) -> float:
    """Weighted squared difference of features of length 1, the mean over places.

    Args:
        x: (1, C, H, W), channels_last.
        y: Likewise.
        weights: (C,), float64.
    """
    num_channels = x.shape[1]
    rows_x, rows_y = (each.permute(0, 2, 3, 1).reshape(-1, num_channels) for each in (x, y))
    num_rows = max(1, _CHUNK // num_channels)
    squares = torch.zeros_like(weights)
    for start in range(0, len(rows_x), num_rows):
        part_x, part_y = (rows[start : start + num_rows] for rows in (rows_x, rows_y))
        difference = part_x / _length(part_x)
        difference -= part_y / _length(part_y)
        squares += difference.square_().sum(dim=0)
    return float(squares @ weights) / len(rows_x)


def _length(rows: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return length + _EPS
