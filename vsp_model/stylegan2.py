"""The StyleGAN2 generator as facial feature bank (VSPBFR, Sec. III-C; StyleGAN2, Fig. 2c).

Synthesis can stop at any resolution and leave out its RGB branch: restoration reads features only.

Shapes: B batch, T style slots, D style width, C_k channels at resolution 4 * 2^k.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from vsp_model.config import (
    MIN_SIZE,
    Config,
    check_channels,
    num_levels,
    num_style_slots,
    published_channels,
)
from vsp_model.layers import MappingNetwork, StyledConv, ToRGB


class StyleGAN2Config(Config):
    """Generator of ``size`` pixels; the defaults are the published 1024 one."""

    size: int = 1024
    style_dim: int = 512
    channels: tuple[int, ...] = published_channels(1024)
    """At 4, 8, ..., size."""
    mapping_layers: int = Field(8, ge=1, le=64)
    mapping_lr_multiplier: float = 0.01

    @model_validator(mode="after")
    def _one_width_per_level(self) -> Self:
        check_channels(self.channels, self.size)
        return self

    @property
    def num_slots(self) -> int:
        """Styles that the whole generator reads (18 at 1024)."""
        return num_style_slots(self.size)


class Synthesis(NamedTuple):
    """What one pass yields."""

    features: list[Tensor]
    """Feature 0 is the 4x4 map; feature k the up layer's output at 4 * 2^k, (B, C_k, r, r)."""
    image: Tensor | None
    """(B, 3, size, size), about [-1, 1]; None unless asked for."""


class SynthesisBlock(nn.Module):
    """One resolution: up layer (its output is the tap), second layer, ToRGB."""

    def __init__(self, in_channels: int, out_channels: int, style_dim: int) -> None:
        super().__init__()
        self.up = StyledConv(in_channels, out_channels, style_dim, resample="up")
        self.conv = StyledConv(out_channels, out_channels, style_dim)
        self.to_rgb = ToRGB(out_channels, style_dim)


class StyleGAN2(nn.Module):
    """W+ codes -> feature maps and, on request, the image."""

    def __init__(self, config: StyleGAN2Config) -> None:
        super().__init__()
        self.config = config
        width, channels = config.style_dim, config.channels
        self.mapping = MappingNetwork(width, config.mapping_layers, config.mapping_lr_multiplier)
        self.constant = nn.Parameter(torch.randn(1, channels[0], MIN_SIZE, MIN_SIZE))
        self.conv = StyledConv(channels[0], channels[0], width)
        self.to_rgb = ToRGB(channels[0], width)
        self.blocks = nn.ModuleList(
            SynthesisBlock(channels[k], channels[k + 1], width) for k in range(len(channels) - 1)
        )
        for index, side in enumerate(self.noise_sides()):
            # Stored maps of the published files: carried along, never read (fresh noise is drawn).
            self.register_buffer(f"noise_{index}", torch.randn(1, 1, side, side))

    def noise_sides(self, stop: int | None = None, *, image: bool = True) -> list[int]:
        """Sides of the noise maps in call order, for synthesis up to ``stop`` pixels.

        Without the image the last resolution's second layer is not computed.
        """
        levels = num_levels(stop or self.config.size)
        sides = [MIN_SIZE, *(MIN_SIZE << k for k in range(1, levels) for _ in range(2))]
        return sides if image else sides[:-1]

    def forward(
        self,
        w_plus: Tensor,
        noise: Sequence[Tensor | None] | None = None,
        *,
        stop: int | None = None,
        image: bool = False,
    ) -> Synthesis:
        """Synthesise up to ``stop`` pixels (default: the generator's size).

        Args:
            w_plus: (B, T, D); slots past the last layer are not read.
            noise: one map (B, 1, r, r) per styled layer in call order (``noise_sides``), entries
                or the whole None for zero noise.
            stop: resolution of the last feature.
            image: also compute the RGB branch, up to ``stop``.
        """
        levels = num_levels(stop or self.config.size)
        maps = list(noise) if noise is not None else [None] * (2 * levels - 1)
        w = w_plus.unbind(1)
        x = self.conv(self.constant.expand(len(w_plus), -1, -1, -1), w[0], maps[0])
        features = [x]
        rgb = self.to_rgb(x, w[1]) if image else None
        for k in range(levels - 1):
            block = self.blocks[k]
            x = block.up(x, w[2 * k + 1], maps[2 * k + 1])
            features.append(x)
            if not image and k == levels - 2:
                break  # the restorer reads the up layer's output: nothing after it is needed
            x = block.conv(x, w[2 * k + 2], maps[2 * k + 2])
            if image:
                rgb = block.to_rgb(x, w[2 * k + 3], rgb)
        return Synthesis(features, rgb)
