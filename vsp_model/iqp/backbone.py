"""Encoder and decoder of IQP: the convolutional auto-encoder of VQGAN and CodeFormer [C].

Shapes: B batch, C channels of a level, S side of the picture, r side of a level, h side of the
latent, D channels of the latent.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsp_model.iqp.config import BackboneConfig
from vsp_model.layers import ItemGroupNorm

_EPS = 1e-6
TAIL = 16
"""Channels at full resolution behind a pixel shuffle."""

Modulate = Callable[[int, Tensor], Tensor]
"""Side of a level, the decoder's feature (B, C, r, r) there -> the feature to go on with."""


def group_norm(groups: int, channels: int) -> ItemGroupNorm:
    """Normalisation of each picture by itself, with CodeFormer's epsilon."""
    return ItemGroupNorm(groups, channels, eps=_EPS)


def convolution(inputs: int, outputs: int, side: int = 3) -> nn.Conv2d:
    """A convolution that keeps the side."""
    return nn.Conv2d(inputs, outputs, side, padding=side // 2)


class ResBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x))))))."""

    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = group_norm(groups, inputs), convolution(inputs, outputs)
        self.norm2, self.conv2 = group_norm(groups, outputs), convolution(outputs, outputs)
        self.skip = None if inputs == outputs else convolution(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, I, r, r) -> (B, O, r, r)."""
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        return y + (x if self.skip is None else self.skip(x))


class SelfAttention(nn.Module):
    """x + one head of attention among all places."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = group_norm(groups, channels)
        self.inward = convolution(channels, 3 * channels, 1)
        self.outward = convolution(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, r, r) -> (B, C, r, r)."""
        _, _, _, side = x.shape
        places = self.inward(self.norm(x)).flatten(2).mT.unsqueeze(1)  # (B, 1, r r, 3 C)
        query, key, value = places.contiguous().chunk(3, dim=-1)
        seen = F.scaled_dot_product_attention(query, key, value).squeeze(1)
        seen = seen.mT.unflatten(2, (side, side)).contiguous(memory_format=torch.channels_last)
        return x + self.outward(seen)


class Downsample(nn.Module):
    """Half the side; padded on the right and below alone [C]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, r, r) -> (B, C, r / 2, r / 2)."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Twice the side: every pixel repeated, then a convolution [C]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = convolution(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, r, r) -> (B, C, 2 r, 2 r)."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """The ResBlocks of one side, each with attention behind it where that is configured."""

    def __init__(self, inputs: int, outputs: int, config: BackboneConfig, *, attends: bool) -> None:
        super().__init__()
        widths = [inputs] + [outputs] * (config.num_blocks - 1)
        self.blocks = nn.ModuleList(ResBlock(w, outputs, config.groups) for w in widths)
        self.attentions = nn.ModuleList(
            SelfAttention(outputs, config.groups) for _ in widths if attends
        )

    def forward(self, x: Tensor, after_first: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """(B, I, r, r) -> (B, O, r, r); ``after_first`` changes what the first block puts out."""
        for n, block in enumerate(self.blocks):
            x = block(x)
            if len(self.attentions):
                x = self.attentions[n](x)
            if n == 0 and after_first is not None:
                x = after_first(x)
        return x


class Middle(nn.Module):
    """ResBlock, attention, ResBlock at the coarsest side."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        width, groups = config.widths[-1], config.groups
        self.before, self.after = ResBlock(width, width, groups), ResBlock(width, width, groups)
        self.attention = SelfAttention(width, groups) if config.attention else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, h) -> (B, C, h, h)."""
        x = self.before(x)
        return self.after(x if self.attention is None else self.attention(x))


def has_tail(config: BackboneConfig) -> bool:
    """Whether the decoder ends with a pixel shuffle and features at the picture's own side."""
    return config.unshuffle > 1


def side_of(config: BackboneConfig, level: int) -> int:
    """Side r of a level, the finest being 0, in pixels after the unshuffle."""
    return config.size // config.unshuffle >> level


class Encoder(nn.Module):
    """Picture -> latent."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        widths, last = config.widths, len(config.widths) - 1
        self.first = convolution(3 * config.unshuffle**2, widths[0])
        self.levels = nn.ModuleList(
            Level(before, width, config, attends=config.attention and n == last)
            for n, (before, width) in enumerate(zip((widths[0], *widths), widths, strict=False))
        )
        self.downs = nn.ModuleList(Downsample(width) for width in widths[:-1])
        self.middle = Middle(config)
        self.norm = group_norm(config.groups, widths[-1])
        self.last = convolution(widths[-1], config.latent)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, S, S) in [-1, 1] -> (B, D, h, h)."""
        return self.features(image)[0]

    def features(
        self, image: Tensor, sides: Collection[int] = ()
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """The latent, and the feature of each of ``sides`` at its level's end.

        There is none before an unshuffle: what is kept of the picture's own side is the picture.
        """
        x = self.first(F.pixel_unshuffle(image, self.config.unshuffle))
        kept = {}
        if has_tail(self.config) and self.config.size in sides:
            kept[self.config.size] = image
        for n, level in enumerate(self.levels):
            x = level(x)
            if (side := side_of(self.config, n)) in sides:
                kept[side] = x
            if n < len(self.downs):
                x = self.downs[n](x)
        return self.last(self.norm(self.middle(x))), kept


class Decoder(nn.Module):
    """Latent -> picture.

    Behind a pixel shuffle there is a convolution at full resolution [I]: without it every n-th
    pixel is made by weights of its own, which shows as a pattern.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        coarse_first = config.widths[::-1]
        self.first = convolution(config.latent, coarse_first[0])
        self.middle = Middle(config)
        pairs = zip((coarse_first[0], *coarse_first), coarse_first, strict=False)
        self.levels = nn.ModuleList(
            Level(before, width, config, attends=config.attention and n == 0)
            for n, (before, width) in enumerate(pairs)
        )
        self.ups = nn.ModuleList(Upsample(width) for width in coarse_first[:-1])
        self.norm = group_norm(config.groups, coarse_first[-1])
        spread = TAIL * config.unshuffle**2
        self.spread = convolution(coarse_first[-1], spread, 1) if has_tail(config) else None
        self.last = convolution(TAIL if has_tail(config) else coarse_first[-1], 3)

    def forward(self, feature: Tensor, modulate: Modulate | None = None) -> Tensor:
        """(B, D, h, h) -> (B, 3, S, S), about [-1, 1], not clamped.

        Args:
            feature: what the codes say.
            modulate: applied after the first ResBlock of every level, where CodeFormer does [M],
                and behind the pixel shuffle, if there is one [I].
        """
        x = self.middle(self.first(feature))
        for n, level in enumerate(self.levels):
            side = side_of(self.config, len(self.levels) - 1 - n)
            x = level(x, None if modulate is None else partial(modulate, side))
            if n < len(self.ups):
                x = self.ups[n](x)
        x = self.norm(x)
        if self.spread is not None:
            x = F.silu(F.pixel_shuffle(self.spread(x), self.config.unshuffle))
            x = x if modulate is None else modulate(self.config.size, x)
        return self.last(x)
