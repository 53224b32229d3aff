"""LPIPS of faces against their truths."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from pipeline import images
from pipeline.errors import UserError
from pipeline.images import Pixels
from pipeline.metrics.pixels import Values
from vsp_model.losses import LPIPS, LPIPSConfig

Net = Literal["squeeze", "alex", "vgg"]
BATCH = 16


class Perceptual:
    """LPIPS 0.1 on a trunk given by path; the linear layers come with the `lpips` package."""

    def __init__(self, path: Path, net: Net = "squeeze") -> None:
        """Read the trunk.

        Raises:
            UserError: If the file holds no such trunk.
        """
        try:
            self._lpips = LPIPS(LPIPSConfig(net=net)).load_path(path)
        except ValueError as error:
            raise UserError(f"{path}: {error}") from None
        self._lpips.to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def __call__(self, faces: Sequence[Pixels], truths: Sequence[Pixels]) -> Values:
        """Distance of each face from its truth, (N,); 0 for the same picture.

        Args:
            faces: uint8 (S, S, 3) RGB, all of one size.
            truths: As many, of the same size; they are not resized.
        """
        found = []
        for start in range(0, len(faces), BATCH):
            chosen = slice(start, start + BATCH)
            distance = self._lpips(to_batch(faces[chosen]), to_batch(truths[chosen]))
            found.append(distance.double().numpy())
        return np.concatenate(found)


def to_batch(faces: Sequence[Pixels]) -> torch.Tensor:
    """Faces of one size as float32 (N, 3, S, S) in [-1, 1]."""
    batch = images.new_batch(len(faces), faces[0].shape[0])
    for slot, face in enumerate(faces):
        images.to_model(face, batch, slot)
    return batch
