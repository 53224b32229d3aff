"""Exponential moving average of parameters."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn

Net = TypeVar("Net", bound=nn.Module)


def averaged_copy(net: Net) -> Net:
    """A frozen copy in evaluation mode, the average's start."""
    return copy.deepcopy(net).eval().requires_grad_(False)


@torch.no_grad()
def update_average(average: nn.Module, net: nn.Module, decay: float) -> None:
    """average <- decay * average + (1 - decay) * net, parameters; buffers are copied."""
    torch._foreach_lerp_(list(average.parameters()), list(net.parameters()), 1 - decay)
    for kept, new in zip(average.buffers(), net.buffers(), strict=True):
        kept.copy_(new)


def decay_of(half_life_images: float, batch_size: int, images_seen: int, ramp: float) -> float:
    """The decay of one step.

    Args:
        half_life_images: after so many images a parameter's weight has halved.
        batch_size: images a step.
        images_seen: so far.
        ramp: the half-life is at most this share of the images seen; 0 for no ramp. Without it
            the start lingers (published VSPBFR has none, StyleGAN2-ADA 0.05).
    """
    half_life = min(half_life_images, images_seen * ramp) if ramp else half_life_images
    return 0.5 ** (batch_size / max(half_life, 1e-8))


def running_statistics(net: nn.Module) -> Iterator[Tensor]:
    """What batch norms gather: means, variances, and how often they did. Other buffers stay."""
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            yield from module.buffers(recurse=False)
