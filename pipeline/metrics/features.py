"""Features of pictures for distances between sets: SqueezeNet 1.1 of ImageNet, pooled."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torchvision.models import squeezenet1_1  # type: ignore[import-untyped]

from pipeline.errors import UserError
from pipeline.images import Pixels
from pipeline.metrics.perceptual import BATCH, to_batch
from pipeline.metrics.pixels import Values

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class SqueezeFeatures:
    """The last features of the trunk, averaged over the picture; pictures are not resized."""

    def __init__(self, path: Path) -> None:
        """Read torchvision's squeezenet1_1.

        Raises:
            UserError: If the file holds no such network.
        """
        net = squeezenet1_1(weights=None)
        try:
            net.load_state_dict({name: t.float() for name, t in _tensors(path).items()})
        except Exception as error:  # safetensors and torch fail in ways of their own
            reason = str(error).splitlines()[0]
            raise UserError(f"{path}: no SqueezeNet 1.1 ({reason})") from None
        self._trunk = net.features.eval().to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def __call__(self, faces: Sequence[Pixels]) -> Values:
        """(N, 512) of uint8 (S, S, 3) RGB pictures of one size."""
        mean, std = (torch.tensor(values)[:, None, None] for values in (_MEAN, _STD))
        found = []
        for start in range(0, len(faces), BATCH):
            batch = (to_batch(faces[start : start + BATCH]) + 1) / 2
            pooled = self._trunk((batch - mean) / std).mean(dim=(2, 3))
            found.append(pooled.double().numpy())
        return np.concatenate(found)


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == ".safetensors":
        return load_file(path)
    tensors: dict[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return tensors
