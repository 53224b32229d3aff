"""Features of pictures for distances between sets: SqueezeNet 1.1 of ImageNet, pooled."""

from pathlib import Path

import torch
from torchvision.models import squeezenet1_1  # type: ignore[import-untyped]

from pipeline.metrics.judge import Face, Feature, Role, Score
from pipeline.metrics.networks import fill, to_tensor
from pipeline.metrics.outside import library
from vsp_model.files import sha256_of

MIN_SIDE_PX = 17  # below it the trunk pools down to nothing
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class SqueezeExtractor:
    """The last features of the trunk, averaged over the picture, which is not resized.

    See `judge.Extractor`.
    """

    id = "squeezenet1.1-imagenet/features/mean"
    dim = 512

    def __init__(self, path: Path) -> None:
        """Read torchvision's squeezenet1_1.

        Raises:
            UserError: If the file holds no such network.
        """
        net = squeezenet1_1(weights=None)
        fill(net, path, "SqueezeNet 1.1")
        self._trunk = net.features.to(memory_format=torch.channels_last)
        self.files = {path.name: sha256_of(path)}
        self.library = library("torchvision")

    @torch.inference_mode()
    def feature(self, face: Face, role: Role) -> Feature | Score:
        """See `judge.Extractor`."""
        picture = face.image(role)
        if min(picture.shape[:2]) < MIN_SIDE_PX:
            return Score.no("too_small")
        mean, std = (torch.tensor(values)[:, None, None] for values in (_MEAN, _STD))
        colors = ((to_tensor(picture) + 1) / 2 - mean) / std
        pooled: Feature = self._trunk(colors).mean(dim=(2, 3))[0].numpy()
        return pooled
