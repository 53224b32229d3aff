"""The restoration auto-encoder of SMART layers (VSPBFR, Sec. III-D).

A U-Net whose layers are modulated by the style prompt and whose decoder adds, at each resolution,
the encoder's feature and the facial feature bank's.

Shapes: B batch, D style width, G global code width, C_k channels at resolution 4 * 2^k.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self, cast

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
from vsp_model.layers import AggregatedConv, EqualLinear, MappingNetwork, StyledConv, ToRGB
from vsp_model.smart import SmartLayer
from vsp_model.style_condition import Shifts


class RestorationConfig(Config):
    """The defaults are the published 512 network; the switches are the rows of Table IV."""

    size: int = 512
    style_dim: int = 512
    """Of the style prompt and, alike, of z and its mapping."""
    channels: tuple[int, ...] = published_channels(512)
    """At 4, 8, ..., size."""
    global_dim: int = 1024
    mapping_layers: int = Field(8, ge=1, le=64)
    mapping_lr_multiplier: float = 0.01
    dilations: tuple[int, ...] = (1, 2, 4, 8)
    dropout: float = 0.5
    """Of the global code, in training."""
    smart: bool = True
    """Table IV (b): False puts a styled convolution in the place of every SMART layer."""
    style_prompt: bool = True
    """Table IV (c): False leaves the prompt out of the decoder's styles; z and global code stay."""
    facial_priors: bool = True
    """Table IV (d): False adds only the encoder's features, a plain U-Net skip."""
    smart_size: int | None = None
    """SMART layers up to this resolution and styled convolutions above; null: everywhere, as
    published. Four branches of a few channels each cost a CPU more than they give."""
    random_style: bool = True
    """False: the random half of a style is a learnt constant, whatever z is; not published. A short
    training can't teach the layers to bear it."""
    residual: bool = False
    """Add the degraded face to the output, so that a clean one begins clean; not published."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_channels(self.channels, self.size)
        odd = [c for c in self.channels if c % len(self.dilations)]
        if odd:
            raise ValueError(
                f"channels: {odd[0]} can't be split among {len(self.dilations)} dilation rates"
            )
        return self

    @property
    def num_slots(self) -> int:
        """Styles that the network reads (16 at 512)."""
        return num_style_slots(self.size)

    @property
    def decoder_style_dim(self) -> int:
        """Width of [prompt; s; global code]."""
        return self.style_dim * (2 if self.style_prompt else 1) + self.global_dim


def _mixing_layer(config: RestorationConfig, channels: int, style_dim: int, side: int) -> nn.Module:
    if config.smart and side <= (config.smart_size or config.size):
        return SmartLayer(channels, channels, style_dim, config.dilations)
    return StyledConv(channels, channels, style_dim)


class EncoderStage(nn.Module):
    """SMART layer (its output is the skip feature), then a styled layer that halves the side."""

    def __init__(
        self, config: RestorationConfig, in_channels: int, out_channels: int, side: int
    ) -> None:
        super().__init__()
        width = 2 * config.style_dim
        self.smart = _mixing_layer(config, in_channels, width, side)
        self.down = StyledConv(in_channels, out_channels, width, resample="down")


class DecoderStage(nn.Module):
    """Styled layer that doubles the side, SMART layer on the sum, ToRGB."""

    def __init__(
        self, config: RestorationConfig, in_channels: int, out_channels: int, side: int
    ) -> None:
        super().__init__()
        width = config.decoder_style_dim
        self.up = StyledConv(in_channels, out_channels, width, resample="up")
        self.smart = _mixing_layer(config, out_channels, width, side)
        self.to_rgb = ToRGB(out_channels, width)


class RestorationNet(nn.Module):
    """Degraded face, style prompt and prior features -> restored face."""

    def __init__(self, config: RestorationConfig) -> None:
        super().__init__()
        self.config = config
        channels, top = config.channels, config.channels[-1]
        self.mapping = MappingNetwork(
            config.style_dim, config.mapping_layers, config.mapping_lr_multiplier
        )
        self.stem = AggregatedConv(3, top, 1, config.dilations)
        levels = [  # (C_k, C_{k-1}, 4 * 2^k) of k = 1, 2, ...
            (c, lower, MIN_SIZE << k)
            for k, (c, lower) in enumerate(zip(channels[1:], channels[:-1], strict=True), start=1)
        ]
        self.encoder = nn.ModuleList(
            EncoderStage(config, c, lower, side) for c, lower, side in levels[::-1]
        )
        self.bottleneck = AggregatedConv(channels[0], channels[0], 3, config.dilations)
        flat = channels[0] * MIN_SIZE**2
        self.to_global = EqualLinear(flat, config.global_dim, activate=True)
        self.dropout = nn.Dropout(config.dropout)
        self.from_global = EqualLinear(config.global_dim, flat, activate=True)
        self.smart = _mixing_layer(config, channels[0], config.decoder_style_dim, MIN_SIZE)
        self.to_rgb = ToRGB(channels[0], config.decoder_style_dim)
        self.decoder = nn.ModuleList(
            DecoderStage(config, lower, c, side) for c, lower, side in levels
        )
        if config.residual:  # begins as the identity
            for layer in (self.to_rgb, *(stage.to_rgb for stage in self.decoder)):
                nn.init.zeros_(cast(ToRGB, layer).weight)
        for index, side in enumerate(self._stored_noise_sides()):
            # Of the published files: carried along, never read.
            self.register_buffer(f"noise_{index}", torch.randn(1, 1, side, side))

    def _stored_noise_sides(self) -> list[int]:
        levels = range(1, num_levels(self.config.size))
        return [MIN_SIZE, *(MIN_SIZE << k for k in levels for _ in range(2))]

    def noise_sides(self) -> list[int]:
        """Sides of the noise maps in call order: encoder from the top, then decoder (29 at 512)."""
        sides = [MIN_SIZE << k for k in range(num_levels(self.config.size))]
        down = [side for s in sides[:0:-1] for side in (s, s // 2)]
        return [*down, MIN_SIZE, *(s for s in sides[1:] for _ in range(2))]

    def styles(self, w_plus: Tensor, z: Tensor, inject: Tensor | None = None) -> Tensor:
        """One style a slot, [prompt; s].

        Args:
            w_plus: (B, T, D), T at least the number of slots; later tokens are not read.
            z: (B, 1, D), or (B, 2, D) for style mixing.
            inject: (B,), first slot that takes the second z; needed with two.

        Returns:
            (B, num_slots, 2 D).
        """
        slots = self.config.num_slots
        if not self.config.random_style:
            z, inject = torch.zeros_like(z[:, :1]), None
        s = torch.stack([self.mapping(each) for each in z.unbind(1)], dim=1)  # (B, 1 or 2, D)
        if inject is None:
            s = s[:, :1].expand(-1, slots, -1)
        else:
            first = torch.arange(slots, device=z.device) < inject[:, None]  # (B, num_slots)
            s = torch.where(first[:, :, None], s[:, :1], s[:, 1:])
        return torch.cat([w_plus[:, :slots], s], dim=2)

    def encode(
        self,
        image: Tensor,
        styles: Tensor,
        noise: Sequence[Tensor | None],
        keep: Tensor | None = None,
        shifts: Shifts | None = None,
    ) -> tuple[list[Tensor], Tensor]:
        """Skip features F_0 ... F_top, coarsest first, and the global code (B, G).

        Both layers of the stage at 4 * 2^k read slot 2k + 1 (15, 13, ..., 3 at 512).
        """
        if shifts is not None:
            styles = styles + shifts.style[:, None].to(styles.dtype)
        x = self.stem(image)
        skips = []
        for j, stage in enumerate(self.encoder):
            style = styles[:, self.config.num_slots - 1 - 2 * j]
            x = stage.smart(x, style, noise[2 * j])
            skips.append(x)
            x = stage.down(x, style, noise[2 * j + 1])
        x = self.bottleneck(x)
        code = self.to_global(x.flatten(1))
        code = self.dropout(code) if keep is None else code * keep
        if shifts is not None:  # after drop-out: what is asked for is never dropped
            code = code + shifts.global_code.to(code.dtype)
        skips.append(x + self.from_global(code).reshape(x.shape))
        return skips[::-1], code

    def decode(
        self,
        skips: Sequence[Tensor],
        priors: Sequence[Tensor] | None,
        styles: Tensor,
        noise: Sequence[Tensor | None],
    ) -> Tensor:
        """Skip features, prior features (feature 0 is not read) and styles -> (B, 3, size, size).

        Above the prior's own size the skip stands alone.
        """
        x = self.smart(skips[0], styles[:, 0], noise[0])
        rgb = self.to_rgb(x, styles[:, 1])
        for k, stage in enumerate(self.decoder, start=1):
            x = stage.up(x, styles[:, 2 * k - 1], noise[2 * k - 1]) + skips[k]
            if priors is not None and k < len(priors):
                x = x + priors[k]
            x = stage.smart(x, styles[:, 2 * k], noise[2 * k])
            rgb = stage.to_rgb(x, styles[:, 2 * k + 1], rgb)
        return rgb

    def forward(
        self,
        image: Tensor,
        w_plus: Tensor,
        z: Tensor,
        priors: Sequence[Tensor] | None = None,
        noise: Sequence[Tensor | None] | None = None,
        inject: Tensor | None = None,
        keep: Tensor | None = None,
        shifts: Shifts | None = None,
    ) -> Tensor:
        """Restore one batch.

        Args:
            image: (B, 3, size, size) in [-1, 1].
            w_plus: style prompt, (B, T, D).
            z: (B, 1 or 2, D).
            priors: features of the bank at 4, 8, ...; None with ``facial_priors`` off.
            noise: maps (B, 1, r, r) in the order of ``noise_sides``; None for zero noise.
            inject: see ``styles``.
            keep: drop-out of the global code, (B, G) of 0 and 1 / (1 - rate); None leaves it to
                PyTorch's generator, in training only.
            shifts: what a quality adds; not published.

        Returns:
            (B, 3, size, size), about [-1, 1], not clamped.
        """
        maps = list(noise) if noise is not None else [None] * len(self.noise_sides())
        split = 2 * len(self.encoder)
        styles = self.styles(w_plus, z, inject)
        skips, code = self.encode(image, styles, maps[:split], keep, shifts)
        code = code[:, None].expand(-1, styles.shape[1], -1)
        prompt = styles if self.config.style_prompt else styles[:, :, self.config.style_dim :]
        decoder_styles = torch.cat([prompt, code.to(prompt.dtype)], dim=2)
        priors = priors if self.config.facial_priors else None
        restored = self.decode(skips, priors, decoder_styles, maps[split:])
        return restored + image if self.config.residual else restored
