"""The layers every network of VSPBFR is built from (spec: StyleGAN2, equalised learning rate).

Shapes: B batch, D style width, I input channels, O output channels, (H, W) pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsp_model.ops import (
    GAIN,
    SLOPE,
    Resample,
    bias_act,
    dilated_conv2d,
    fir_kernel,
    linear,
    modulated_conv2d,
    pixel_norm,
    upfirdn2d,
)


class ItemLinear(nn.Linear):
    """A linear layer whose result for an item doesn't depend on its place in the batch."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O), in the precision of ``x``."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return linear(x, self.weight.to(x.dtype), bias)


class ItemLayerNorm(nn.LayerNorm):
    """Layer norm in the precision of its input."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


class ItemGroupNorm(nn.GroupNorm):
    """Group norm whose result for an item doesn't depend on its place in the batch.

    In ``channels_last`` the CPU's kernel shares all rows of a batch out to its threads and adds up
    what each has found, so that an item's sums break where a thread's rows happen to end. Without
    gradients every item is normalised by itself.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) -> the same."""
        alone = x.shape[0] == 1 or x.device.type != "cpu" or torch.compiler.is_compiling()
        if torch.is_grad_enabled() or alone:
            return super().forward(x)
        return torch.cat([super(ItemGroupNorm, self).forward(item) for item in x.split(1)])


class EqualLinear(nn.Module):
    """Linear layer with equalised learning rate: y = x (W m / sqrt(I))^T + b m.

    Args:
        in_features: I.
        out_features: O.
        bias_init: initial bias.
        lr_multiplier: m; stored weights are N(0, 1) / m.
        activate: apply sqrt(2) * leaky_relu to the biased result.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias_init: float = 0.0,
        lr_multiplier: float = 1.0,
        activate: bool = False,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / lr_multiplier)
        self.bias = nn.Parameter(torch.full((out_features,), float(bias_init)))
        gain = GAIN if activate else 1.0  # positive, so it may stand before the activation
        self.input_gain = gain * lr_multiplier / in_features**0.5
        self.bias_gain = gain * lr_multiplier
        self.activate = activate

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O)."""
        # Scaling the input equals scaling the weight, and the input is the smaller of the two.
        y = linear(x * self.input_gain, self.weight, self.bias * self.bias_gain)
        return F.leaky_relu_(y, SLOPE) if self.activate else y


class MappingNetwork(nn.Module):
    """z -> s: pixel norm, then equalised linears with activation (keys ``layers.{i}``)."""

    def __init__(self, style_dim: int, num_layers: int, lr_multiplier: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            EqualLinear(style_dim, style_dim, lr_multiplier=lr_multiplier, activate=True)
            for _ in range(num_layers)
        )

    def forward(self, z: Tensor) -> Tensor:
        """(B, D) -> (B, D), in float32 whatever the autocast: eight layers of rounding add up."""
        with torch.autocast(z.device.type, enabled=False):
            s = pixel_norm(z)
            for layer in self.layers:
                s = layer(s)
            return s


class NoiseInjection(nn.Module):
    """y = x + strength * noise; one map for all channels, one learned scalar."""

    def __init__(self) -> None:
        super().__init__()
        self.strength = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, noise: Tensor | None) -> Tensor:
        """x (B, C, H, W) and noise (B, 1, H, W), or None for zero noise."""
        return x if noise is None else x + (self.strength * noise).to(x.dtype)


class StyledConv(nn.Module):
    """3x3 modulated convolution -> noise injection -> biased activation."""

    fir: Tensor | None

    def __init__(
        self, in_channels: int, out_channels: int, style_dim: int, resample: Resample = "same"
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 3, 3))
        self.modulation = EqualLinear(style_dim, in_channels, bias_init=1.0)
        self.noise = NoiseInjection()
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.resample = resample
        gain = 4.0 if resample == "up" else 1.0
        fir = None if resample == "same" else fir_kernel(gain)
        self.register_buffer("fir", fir, persistent=False)

    def forward(self, x: Tensor, style: Tensor, noise: Tensor | None = None) -> Tensor:
        """x (B, I, H, W), style (B, D) -> (B, O, H', W'), H' = 2H, H or H/2."""
        y = modulated_conv2d(
            x, self.weight, self.modulation(style), resample=self.resample, fir=self.fir
        )
        return bias_act(self.noise(y, noise), self.bias)


class ToRGB(nn.Module):
    """1x1 modulated convolution without demodulation, + bias, + the doubled previous image."""

    fir: Tensor

    def __init__(self, in_channels: int, style_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, in_channels, 1, 1))
        self.modulation = EqualLinear(style_dim, in_channels, bias_init=1.0)
        self.bias = nn.Parameter(torch.zeros(3))
        self.register_buffer("fir", fir_kernel(4.0), persistent=False)

    def forward(self, x: Tensor, style: Tensor, previous: Tensor | None = None) -> Tensor:
        """x (B, I, H, W), previous (B, 3, H/2, W/2) -> (B, 3, H, W), summed in float32 or wider."""
        y = modulated_conv2d(x, self.weight, self.modulation(style), demodulate=False)
        wide = torch.promote_types(y.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            y = y.to(wide) + self.bias.to(wide).reshape(1, 3, 1, 1)
            if previous is None:
                return y
            return y + upfirdn2d(previous, self.fir, up=(2, 2), pad=(2, 1, 2, 1))


class ConvLayer(nn.Module):
    """[FIR, stride 2 when reducing] -> equalised convolution -> biased activation.

    Args:
        in_channels: I.
        out_channels: O.
        kernel_side: 1 or 3.
        reduce: halve the side.
        activate: add the bias and activate; without it the layer has no bias either.
    """

    fir: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_side: int,
        *,
        reduce: bool = False,
        activate: bool = True,
    ) -> None:
        super().__init__()
        shape = (out_channels, in_channels, kernel_side, kernel_side)
        self.weight = nn.Parameter(torch.randn(shape))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if activate else None
        self.gain = (in_channels * kernel_side**2) ** -0.5
        self.padding = kernel_side // 2
        self.register_buffer("fir", fir_kernel() if reduce else None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, I, H, W) -> (B, O, H, W), or half the side when reducing."""
        weight = self.weight * self.gain
        if self.fir is None:
            y = F.conv2d(x, weight, padding=self.padding)
        else:
            pad = self.padding + 1
            y = F.conv2d(upfirdn2d(x, self.fir, pad=(pad,) * 4), weight, stride=2)
        return y if self.bias is None else bias_act(y, self.bias)


class ResBlock(nn.Module):
    """Residual block of the discriminator: (main + skip) / sqrt(2), half the side."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = ConvLayer(in_channels, in_channels, 3)
        self.conv2 = ConvLayer(in_channels, out_channels, 3, reduce=True)
        self.skip = ConvLayer(in_channels, out_channels, 1, reduce=True, activate=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, I, H, W) -> (B, O, H/2, W/2)."""
        return (self.conv2(self.conv1(x)) + self.skip(x)) * (1 / GAIN)


class AggregatedConv(nn.Module):
    """Plain convolutions of several dilation rates, merged by a 1x1 layer; activated twice.

    The published network has it at both ends of the restorer's encoder. ``weight`` stacks the
    branches along the output axis in the order of ``dilations``.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_side: int, dilations: Sequence[int]
    ) -> None:
        super().__init__()
        shape = (out_channels, in_channels, kernel_side, kernel_side)
        self.weight = nn.Parameter(torch.randn(shape))
        self.fusion = ConvLayer(out_channels, out_channels, 1)
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.gain = (in_channels * kernel_side**2) ** -0.5
        self.dilations = tuple(dilations)

    def forward(self, x: Tensor) -> Tensor:
        """(B, I, H, W) -> (B, O, H, W)."""
        branches = dilated_conv2d(x, self.weight * self.gain, self.dilations)
        return bias_act(self.fusion(branches), self.bias)
