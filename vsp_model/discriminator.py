"""The residual discriminator (StyleGAN2, Fig. 7c; VSPBFR trains its restorer against it)."""

from __future__ import annotations

from typing import Self

import torch
from pydantic import model_validator
from torch import Tensor, nn

from vsp_model.config import MIN_SIZE, Config, check_channels, published_channels
from vsp_model.layers import ConvLayer, EqualLinear, ResBlock


class DiscriminatorConfig(Config):
    """The defaults are the published 512 network."""

    size: int = 512
    channels: tuple[int, ...] = published_channels(512)
    """At 4, 8, ..., size."""
    group_size: int = 4
    """Of the minibatch standard deviation."""

    @model_validator(mode="after")
    def _one_width_per_level(self) -> Self:
        check_channels(self.channels, self.size)
        return self


def minibatch_stddev(x: Tensor, group_size: int) -> Tensor:
    """Append one channel: the mean standard deviation within groups of the batch.

    Groups are strided, as published: of n = B / G groups, sample b belongs to group b mod n.

    Args:
        x: (B, C, H, W); B at most ``group_size`` or a multiple of it.
        group_size: samples a group.

    Returns:
        (B, C + 1, H, W).

    Raises:
        ValueError: for a batch that can't be grouped.
    """
    b, c, h, w = x.shape
    group = min(b, group_size)
    if b % group:
        raise ValueError(
            f"discriminator: batch of {b}; expected at most {group_size} or a multiple of it"
        )
    grouped = x.reshape(group, b // group, c, h, w)
    deviation = (grouped.var(dim=0, unbiased=False) + 1e-8).sqrt().mean(dim=(1, 2, 3))  # (B / G,)
    return torch.cat([x, deviation.repeat(group).reshape(b, 1, 1, 1).expand(b, 1, h, w)], dim=1)


class Discriminator(nn.Module):
    """Face -> one logit; can be differentiated twice."""

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.channels
        self.stem = ConvLayer(3, channels[-1], 1)
        pairs = zip(channels[:0:-1], channels[-2::-1], strict=True)
        self.blocks = nn.ModuleList(ResBlock(c, lower) for c, lower in pairs)
        self.final_conv = ConvLayer(channels[0] + 1, channels[0], 3)
        self.hidden = EqualLinear(channels[0] * MIN_SIZE**2, channels[0], activate=True)
        self.logit = EqualLinear(channels[0], 1)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, size, size) in [-1, 1] -> logits (B, 1).

        Raises:
            ValueError: if the batch is neither at most ``group_size`` nor a multiple of it.
        """
        x = self.stem(image)
        for block in self.blocks:
            x = block(x)
        x = self.final_conv(minibatch_stddev(x, self.config.group_size))
        return self.logit(self.hidden(x.flatten(1)))
