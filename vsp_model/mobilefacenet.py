"""MobileFaceNet, a small identity network (Chen et al. 2018), in the form of public checkpoints.

Facts: the layout of foamliu/MobileFaceNet, whose tensors carry the same names, so that
``load_state_dict`` reads its file: batch norm, ReLU6 inverted residuals, an embedding of 128.
"""

from __future__ import annotations

from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIZE = 112
EMBEDDING_DIM = 128
# expansion, channels, repeats, stride of the first
_BLOCKS = ((2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1))
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


def _conv_bn(
    in_channels: int, out_channels: int, side: int = 3, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    conv = nn.Conv2d(in_channels, out_channels, side, stride, side // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(out_channels)]


class _InvertedResidual(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = in_channels * expansion
        self.conv = nn.Sequential(
            nn.Sequential(*_conv_bn(in_channels, width, 1), nn.ReLU6(inplace=True)),
            nn.Sequential(*_conv_bn(width, width, 3, stride, width), nn.ReLU6(inplace=True)),
            *_conv_bn(width, out_channels, 1),
        )
        self.has_shortcut = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return x + y if self.has_shortcut else y


class _Separable(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise, self.bn1 = _conv_bn(channels, channels, groups=channels)
        self.pointwise, self.bn2 = _conv_bn(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.depthwise(x)))
        return F.relu(self.bn2(self.pointwise(x)))


class _Global(nn.Module):
    """A depthwise convolution over the whole map in the place of average pooling."""

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, side, groups=channels, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.depthwise(x))


class MobileFaceNet(nn.Module):
    """Aligned face -> identity embedding; frozen, always in evaluation mode.

    Gradients flow into the image.
    """

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(*_conv_bn(3, 64, stride=2), nn.ReLU6(inplace=True))
        self.dw_conv = _Separable(64)
        blocks, width = [], 64
        for expansion, channels, repeats, stride in _BLOCKS:
            for index in range(repeats):
                first = stride if index == 0 else 1
                blocks.append(_InvertedResidual(width, channels, first, expansion))
                width = channels
        self.features = nn.Sequential(*blocks)
        self.conv2 = nn.Sequential(*_conv_bn(width, 512, 1), nn.ReLU6(inplace=True))
        self.gdconv = _Global(512, SIZE // 16)
        self.conv3 = nn.Conv2d(512, EMBEDDING_DIM, 1)
        self.bn = nn.BatchNorm2d(EMBEDDING_DIM)
        for name, values in (("mean", _MEAN), ("std", _STD)):
            statistic = torch.tensor(values).reshape(1, 3, 1, 1)
            self.register_buffer(name, statistic, persistent=False)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode, whatever the model around it does."""
        return super().train(False)

    def forward(self, image: Tensor) -> Tensor:
        """Embed faces aligned to ArcFace's template.

        Args:
            image: (B, 3, 112, 112) RGB in [-1, 1].

        Returns:
            (B, 128), of length 1.
        """
        with torch.autocast(image.device.type, enabled=False):  # the loss sees 1 - cosine
            x = ((image.float() + 1) / 2 - self.mean) / self.std
            x = self.conv2(self.features(self.dw_conv(self.conv1(x))))
            return F.normalize(self.bn(self.conv3(self.gdconv(x))).flatten(1), dim=1)
