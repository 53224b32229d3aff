"""e4e style encoder: face -> W+ codes (VSPBFR, Sec. III-B; "Designing an Encoder for StyleGAN").

Shapes: B batch, T tokens (style slots), D style width, C pyramid width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self, cast

import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor, nn

from vsp_model.config import Config, is_power_of_two
from vsp_model.irse import IRSEBody
from vsp_model.layers import EqualLinear

_LEAKY_SLOPE = 0.01  # of the style blocks only; everything else in VSPBFR uses 0.2 times sqrt(2)
_COARSE, _MIDDLE = 3, 7  # first tokens of the middle and of the fine pyramid level


class StyleEncoderConfig(Config):
    """The defaults are the published e4e: IR-SE-50 on 256 pixels, 18 tokens of 512."""

    input_size: int = 256
    num_tokens: int = 18
    style_dim: int = 512
    pyramid_channels: int = 512
    stem_channels: int = 64
    stage_channels: tuple[int, int, int, int] = (64, 128, 256, 512)
    stage_units: tuple[int, int, int, int] = (3, 4, 14, 3)
    reduction: int = 16

    @model_validator(mode="after")
    def _reducible(self) -> Self:
        if self.input_size < 32 or not is_power_of_two(self.input_size):
            raise ValueError(f"input_size {self.input_size}: expected a power of two from 32 up")
        if self.stage_channels[3] != self.pyramid_channels:
            raise ValueError(
                f"stage_channels: the last stage has {self.stage_channels[3]} channels, "
                f"expected pyramid_channels ({self.pyramid_channels})"
            )
        return self

    @property
    def token_sides(self) -> tuple[int, ...]:
        """Side of the pyramid map that each token is read from (16, 32 or 64 as published)."""
        side = self.input_size // 16
        return tuple(
            side if token < _COARSE else 2 * side if token < _MIDDLE else 4 * side
            for token in range(self.num_tokens)
        )


class StyleBlock(nn.Module):
    """Strided convolutions down to one pixel, then an equalised linear: a map -> one token."""

    def __init__(self, channels: int, style_dim: int, side: int) -> None:
        super().__init__()
        num_convs = side.bit_length() - 1
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, 2, 1) for _ in range(num_convs))
        self.linear = EqualLinear(channels, style_dim)

    def forward(self, first: Tensor) -> Tensor:
        """(B, C, side/2, side/2), the first convolution's output, -> (B, D)."""
        x = F.leaky_relu(first, _LEAKY_SLOPE)
        for conv in self.convs[1:]:
            x = F.leaky_relu_(conv(x), _LEAKY_SLOPE)
        return self.linear(x.flatten(1))


def first_convs(blocks: Sequence[StyleBlock], x: Tensor) -> tuple[Tensor, ...]:
    """First convolution of every block; they share their input, so they run as one.

    x (B, C, side, side) -> one (B, C, side/2, side/2) a block.
    """
    convs = [block.convs[0] for block in blocks]
    weight = torch.cat([conv.get_parameter("weight") for conv in convs])
    bias = torch.cat([conv.get_parameter("bias") for conv in convs])
    return F.conv2d(x, weight, bias, stride=2, padding=1).chunk(len(blocks), dim=1)


class StyleEncoder(nn.Module):
    """Face of any size -> W+ codes around the average code.

    Token 0 is a whole code, every other token a difference to it ("delta").
    """

    latent_avg: Tensor

    def __init__(self, config: StyleEncoderConfig) -> None:
        super().__init__()
        self.config = config
        width, stages = config.pyramid_channels, config.stage_channels
        self.body = IRSEBody(config.stem_channels, stages, config.stage_units, config.reduction)
        self.lateral_middle = nn.Conv2d(stages[2], width, 1)
        self.lateral_fine = nn.Conv2d(stages[1], width, 1)
        sides = config.token_sides
        self.styles = nn.ModuleList(StyleBlock(width, config.style_dim, s) for s in sides)
        self.register_buffer("latent_avg", torch.zeros(config.num_tokens, config.style_dim))

    def resize(self, image: Tensor) -> Tensor:
        """To the input size: bilinear, half-pixel centres, no antialiasing (as published)."""
        size = self.config.input_size
        if image.shape[-1] == size:
            return image
        return F.interpolate(image, (size, size), mode="bilinear", align_corners=False)

    def pyramid(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The coarse, middle and fine maps, (B, C, side, side) with side, 2 side, 4 side."""
        _, fine, middle, coarse = self.body(image)
        p2 = _enlarge(coarse, middle) + self.lateral_middle(middle)
        p1 = _enlarge(p2, fine) + self.lateral_fine(fine)
        return coarse, p2, p1

    def encode(self, image: Tensor) -> Tensor:
        """(B, 3, input_size, input_size) in [-1, 1] -> codes before the average, (B, T, D)."""
        groups = (slice(0, _COARSE), slice(_COARSE, _MIDDLE), slice(_MIDDLE, None))
        tokens: list[Tensor] = []
        for level, group in zip(self.pyramid(image), groups, strict=True):
            blocks = cast("list[StyleBlock]", list(self.styles[group]))
            if blocks:
                firsts = first_convs(blocks, level)
                tokens += [block(first) for block, first in zip(blocks, firsts, strict=True)]
        base = tokens[0]
        return torch.stack([base, *(base + delta for delta in tokens[1:])], dim=1)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, S, S) in [-1, 1] -> W+ codes, (B, T, D), float32 under autocast too."""
        return self.encode(self.resize(image)) + self.latent_avg


def _enlarge(x: Tensor, like: Tensor) -> Tensor:
    """Bilinear with aligned corners, unlike the input's resize (as published)."""
    return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=True)
