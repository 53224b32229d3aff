"""The identity network: torchvision's ResNet-101 with 256 outputs (published ``Arcface.pth``)."""

from __future__ import annotations

from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.resnet import Bottleneck, ResNet  # type: ignore[import-untyped]  # ships none

from vsp_model.config import Config


class IdentityConfig(Config):
    """The defaults are the published network."""

    blocks: tuple[int, int, int, int] = (3, 4, 23, 3)
    """Bottlenecks a stage; these are ResNet-101."""
    embedding_dim: int = 256
    size: int = 112
    """Side of the image that the network looks at, in pixels."""


class IdentityNet(ResNet):  # type: ignore[misc]  # torchvision is untyped
    """Face -> identity embedding; the judge of the identity loss.

    Frozen and always in evaluation mode; gradients flow into the image. A subclass, so that the
    tensors carry the published names and ``load_state_dict`` reads the published file.
    """

    def __init__(self, config: IdentityConfig) -> None:
        super().__init__(Bottleneck, list(config.blocks), num_classes=config.embedding_dim)
        self.config = config
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode, whatever the model around it does."""
        return super().train(False)

    def forward(self, image: Tensor) -> Tensor:
        """Embed whole images; no face is cropped, as published.

        Args:
            image: (B, 3, H, W) RGB in [-1, 1], any size.

        Returns:
            (B, embedding_dim), of length 1.
        """
        with torch.autocast(image.device.type, enabled=False):  # the loss sees 1 - cosine
            wide = image.to(self.fc.weight.dtype)
            size = (self.config.size, self.config.size)
            x = F.interpolate(wide, size, mode="bilinear", align_corners=False, antialias=False)
            return F.normalize(super().forward(x), dim=1)
