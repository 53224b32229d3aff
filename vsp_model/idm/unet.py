"""The network of one step: SR3's U-Net [S], with what makes it small beside it [I].

Shapes: B batch, S side of the picture, C channels of a level, E = ``channels`` the embedding.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsp_model.condition import QualityCondition
from vsp_model.idm.config import UNetConfig
from vsp_model.layers import ItemGroupNorm, ItemLinear

_POSITIONS = 5_000.0  # WaveGrad's factor of the noise level [I]: SR3's re-implementation has none


class LevelEmbedding(nn.Module):
    """Noise level -> sines and cosines (WaveGrad) -> two layers, C -> 4 C -> C [S]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.first = ItemLinear(channels, 4 * channels)
        self.second = ItemLinear(4 * channels, channels)

    def forward(self, signal: Tensor) -> Tensor:
        """sqrt(ab), (B,), -> (B, E)."""
        half = self.channels // 2
        octaves = torch.arange(half, device=signal.device) / half
        angle = _POSITIONS * signal.float()[:, None] * torch.exp(-math.log(1e4) * octaves)
        waves = torch.cat([angle.sin(), angle.cos()], dim=1)  # (B, E)
        waves = F.pad(waves, (0, self.channels - 2 * half)).to(signal.dtype)
        return self.second(F.silu(self.first(waves)))


class ResBlock(nn.Module):
    """Norm, SiLU, convolution, twice; the embedding is added between them [S]."""

    def __init__(self, in_channels: int, out_channels: int, config: UNetConfig) -> None:
        super().__init__()
        self.norm1 = ItemGroupNorm(config.groups, in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.embed = ItemLinear(config.channels, out_channels)
        self.norm2 = ItemGroupNorm(config.groups, out_channels)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        same = in_channels == out_channels
        self.skip = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x (B, C, h, w), embedding (B, E) -> (B, O, h, w)."""
        y = self.conv1(F.silu(self.norm1(x))) + self.embed(embedding)[:, :, None, None]
        return self.skip(x) + self.conv2(self.dropout(F.silu(self.norm2(y))))


class Attention(nn.Module):
    """Self-attention over all places, one head [S]."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = ItemGroupNorm(groups, channels)
        self.qkv = ItemLinear(channels, 3 * channels, bias=False)
        self.out = ItemLinear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> the same."""
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # (B, h w, C)
        q, k, v = self.qkv(tokens)[:, None].chunk(3, dim=-1)  # (B, 1, h w, C)
        seen = F.scaled_dot_product_attention(q, k, v)[:, 0]
        return x + self.out(seen).transpose(1, 2).reshape(x.shape)


class Resolution(nn.Module):
    """What happens at one side: blocks, each with or without attention, then a change of side.

    Args:
        widths: Channels into each block.
        out_channels: Channels out of all of them.
        side: In pixels, after the unshuffle.
        config: Of the network.
        resample: The layer at the end; None at the ends of the network.
    """

    def __init__(
        self,
        widths: list[int],
        out_channels: int,
        side: int,
        config: UNetConfig,
        resample: nn.Module | None,
    ) -> None:
        super().__init__()
        attends = side in config.attention_sides
        self.blocks = nn.ModuleList(ResBlock(width, out_channels, config) for width in widths)
        self.attentions = nn.ModuleList(
            Attention(out_channels, config.groups) if attends else nn.Identity() for _ in widths
        )
        self.resample = resample


class Upsample(nn.Module):
    """Every pixel twice each way, then a convolution [S]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, 2 h, 2 w)."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Door(nn.Module):
    """The way out: norm, SiLU, convolution, and with an unshuffle back to every pixel.

    There a small convolution at full resolution sees the network's own input beside what the coarse
    pixels say, so that no lattice of theirs is left [I].
    """

    def __init__(self, channels: int, in_channels: int, config: UNetConfig) -> None:
        super().__init__()
        self.fold = config.unshuffle
        tail = config.tail_channels if self.fold > 1 else 0
        self.norm = ItemGroupNorm(config.groups, channels)
        self.conv = nn.Conv2d(channels, (tail or 3) * self.fold**2, 3, padding=1)
        self.tail = nn.Conv2d(tail + in_channels, 3, 3, padding=1) if tail else None
        if config.zero_out:
            last = self.tail or self.conv
            nn.init.zeros_(last.weight)
            nn.init.zeros_(cast(nn.Parameter, last.bias))

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        """x (B, C, S / u, S / u), the network's input (B, 3 or 6, S, S) -> (B, 3, S, S)."""
        y = F.pixel_shuffle(self.conv(F.silu(self.norm(x))), self.fold)
        return y if self.tail is None else self.tail(torch.cat([F.silu(y), seen], dim=1))


def _way_down(config: UNetConfig) -> tuple[nn.ModuleList, list[int]]:
    """The resolutions from the finest, and the width of every feature that the way up reads."""
    levels, width = nn.ModuleList(), config.channels * config.multipliers[0]
    kept = [width]
    for depth, (multiplier, side) in enumerate(zip(config.multipliers, config.sides, strict=True)):
        before, width = width, config.channels * multiplier
        widths = [before, *[width] * (config.num_blocks - 1)]
        coarsest = depth == len(config.sides) - 1
        half = None if coarsest else nn.Conv2d(width, width, 3, stride=2, padding=1)
        levels.append(Resolution(widths, width, side, config, half))
        kept += [width] * (config.num_blocks + (not coarsest))
    return levels, kept


def _way_up(config: UNetConfig, kept: list[int]) -> nn.ModuleList:
    """The resolutions from the coarsest; each block also reads the last feature not yet read."""
    levels, width = nn.ModuleList(), config.channels * config.multipliers[-1]
    for depth in range(len(config.sides) - 1, -1, -1):
        before, width = width, config.channels * config.multipliers[depth]
        own = [before, *[width] * config.num_blocks]
        widths = [each + kept.pop() for each in own]
        twice = Upsample(width) if depth else None
        levels.append(Resolution(widths, width, config.sides[depth], config, twice))
    return levels


class UNet(nn.Module):
    """Noisy state, its noise level, the degraded picture and a quality -> prediction."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        in_channels = 6 if config.conditional else 3
        first, top = (config.channels * config.multipliers[end] for end in (0, -1))
        self.embedding = LevelEmbedding(config.channels)
        self.condition: QualityCondition | None = None
        if config.condition:
            self.condition = QualityCondition(config.channels, config.condition)
        self.stem = nn.Conv2d(in_channels * config.unshuffle**2, first, 3, padding=1)
        self.down, kept = _way_down(config)
        self.middle = nn.ModuleList(ResBlock(top, top, config) for _ in range(2))
        self.middle_attention = Attention(top, config.groups)
        self.up = _way_up(config, kept)
        self.door = Door(first, in_channels, config)

    def forward(
        self,
        state: Tensor,
        signal: Tensor,
        lq: Tensor | None = None,
        quality: Tensor | None = None,
    ) -> Tensor:
        """Predict for one noise level each.

        Args:
            state: x_t, (B, 3, S, S).
            signal: sqrt(ab) of each state, (B,).
            lq: The degraded picture, of that shape; an unconditional network does not read it.
            quality: Percentiles (B,), NaN unknown; None: unknown.

        Returns:
            (B, 3, S, S).
        """
        seen = state
        if self.config.scaled_state:
            seen = state * signal.to(state.dtype)[:, None, None, None]
        if self.config.conditional:
            assert lq is not None
            seen = torch.cat([seen, lq], dim=1)
        embedding = self.embedding(signal.to(state.dtype))
        if self.condition is not None:
            told = torch.full_like(signal, math.nan) if quality is None else quality
            embedding = embedding + self.condition(told).to(embedding.dtype)
        embedding = F.silu(embedding)  # SR3 has none here; it lets level and quality meet [I]
        x = self.stem(F.pixel_unshuffle(seen, self.config.unshuffle))
        return self.door(self._through(x, embedding), seen)

    def _through(self, x: Tensor, embedding: Tensor) -> Tensor:
        kept = [x]
        for level in cast(Iterable[Resolution], self.down):
            for block, attention in zip(level.blocks, level.attentions, strict=True):
                x = attention(block(x, embedding))
                kept.append(x)
            if level.resample is not None:
                x = level.resample(x)
                kept.append(x)
        first, second = self.middle
        x = second(self.middle_attention(first(x, embedding)), embedding)
        for level in cast(Iterable[Resolution], self.up):
            for block, attention in zip(level.blocks, level.attentions, strict=True):
                x = attention(block(torch.cat([x, kept.pop()], dim=1), embedding))
            x = x if level.resample is None else level.resample(x)
        return x
