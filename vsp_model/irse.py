"""IR-SE: the improved residual network with squeeze-and-excitation under the style encoder.

Facts: ArcFace's IR-SE-50 as the published e4e encoder uses it. Shapes: B batch, I/O channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class SqueezeExcitation(nn.Module):
    """Channel gate: global mean, two 1x1 convolutions without bias, sigmoid."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // reduction, 1, bias=False)
        self.fc2 = nn.Conv2d(channels // reduction, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        gate = self.fc2(F.relu(self.fc1(x.mean(dim=(2, 3), keepdim=True))))
        return x * gate.sigmoid()


class BottleneckIRSE(nn.Module):
    """Batch norm -> 3x3 -> PReLU -> 3x3 (stride) -> batch norm -> gate; no activation after."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, reduction: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.BatchNorm2d(in_channels),
            nn.Conv2d(in_channels, out_channels, 3, 1, 1, bias=False),
            nn.PReLU(out_channels),
            nn.Conv2d(out_channels, out_channels, 3, stride, 1, bias=False),
            nn.BatchNorm2d(out_channels),
            SqueezeExcitation(out_channels, reduction),
        )
        self.shortcut: nn.Module
        if in_channels == out_channels:
            self.shortcut = nn.MaxPool2d(1, stride)
        else:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        """(B, I, H, W) -> (B, O, H / stride, W / stride)."""
        return self.residual(x) + self.shortcut(x)


class IRSEBody(nn.Module):
    """Stem and stages of units; the first unit of each stage halves the side.

    Args:
        stem_channels: channels after the stem.
        stage_channels: channels of each stage.
        stage_units: units in each stage (3, 4, 14, 3 for IR-SE-50).
        reduction: of the squeeze-and-excitation gates.
    """

    def __init__(
        self,
        stem_channels: int,
        stage_channels: Sequence[int],
        stage_units: Sequence[int],
        reduction: int,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, stem_channels, 3, 1, 1, bias=False),
            nn.BatchNorm2d(stem_channels),
            nn.PReLU(stem_channels),
        )
        self.stages = nn.ModuleList()
        width = stem_channels
        for channels, units in zip(stage_channels, stage_units, strict=True):
            blocks = [BottleneckIRSE(width, channels, 2, reduction)]
            blocks += [BottleneckIRSE(channels, channels, 1, reduction) for _ in range(units - 1)]
            self.stages.append(nn.Sequential(*blocks))
            width = channels

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, 3, S, S) -> the stages' outputs, stage i at side S / 2^(i+1)."""
        x = self.stem(x)
        outputs = []
        for stage in self.stages:
            x = stage(x)
            outputs.append(x)
        return outputs
