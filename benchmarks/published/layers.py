"""Operations and layers, computed as published (see the package's docstring)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import repeat
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RATES = (1, 2, 4, 8)  # dilations of the four branches of SMART and of the aggregated convolution
Resampling = Literal["none", "up", "down"]
Noise = Sequence[Tensor] | None  # one map (B, 1, H, W) per injection, in order of use


def upfirdn2d(x: Tensor, kernel: Tensor, up: int, down: int, pad: tuple[int, int]) -> Tensor:
    """Enlarge by zeros, pad, filter and reduce (B, C, H, W), as the published CPU path does."""
    b, c, h, w = x.shape
    x = F.pad(x.reshape(-1, h, 1, w, 1), [0, up - 1, 0, 0, 0, up - 1])
    x = F.pad(x.view(-1, 1, h * up, w * up), [*pad, *pad])
    x = F.conv2d(x, torch.flip(kernel, [0, 1])[None, None])[:, :, ::down, ::down]
    return x.reshape(b, c, x.shape[2], x.shape[3])


def scaled_leaky_relu(x: Tensor) -> Tensor:
    """Leaky ReLU of slope 0.2 times sqrt(2), as two operations."""
    return F.leaky_relu(x, 0.2) * math.sqrt(2.0)


def pixel_norm(x: Tensor) -> Tensor:
    """Divide by the root mean square over axis 1."""
    return x * torch.rsqrt(torch.mean(x**2, dim=1, keepdim=True) + 1e-8)


def per_sample_weight(weight: Tensor, modulation: Tensor, demodulate: bool) -> Tensor:
    """Modulate weight (1, out, in, k, k) by (B, in): one weight per sample (B, out, in, k, k)."""
    scale = 1 / math.sqrt(weight[0, 0].numel())
    weight = scale * weight * modulation.view(-1, 1, weight.shape[2], 1, 1)
    if demodulate:
        weight = weight * torch.rsqrt(weight.pow(2).sum([2, 3, 4], keepdim=True) + 1e-8)
    return weight


def grouped_conv2d(
    x: Tensor, weight: Tensor, stride: int = 1, padding: int = 0, dilation: int = 1
) -> Tensor:
    """Convolve each sample with its own weight, as one grouped convolution."""
    b, _, h, w = x.shape
    x, weight = x.reshape(1, -1, h, w), weight.flatten(0, 1)
    x = F.conv2d(x, weight, None, stride, padding, dilation, groups=b)
    return x.view(b, -1, x.shape[2], x.shape[3])


def grouped_conv_transpose2d(x: Tensor, weight: Tensor) -> Tensor:
    """Enlarge each sample with its own weight: (B, in, H, W) -> (B, out, 2H+1, 2W+1)."""
    b, _, h, w = x.shape
    x, weight = x.reshape(1, -1, h, w), weight.transpose(1, 2).flatten(0, 1)
    x = F.conv_transpose2d(x, weight, stride=2, groups=b)
    return x.view(b, -1, x.shape[2], x.shape[3])


def channels_at(resolution: int, multiplier: float, max_channels: int) -> int:
    """Channels of a feature map: full width up to 32 pixels, then falling with the resolution."""
    return max_channels if resolution <= 32 else int(max_channels * 32 * multiplier / resolution)


class Apply(nn.Module):
    """A function as a layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        """Wrap `function`."""
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """Call the function."""
        return self.function(x)


class EqualLinear(nn.Module):
    """Equalised linear layer, scaled at every call."""

    def __init__(
        self, n_in: int, n_out: int, bias: float = 0.0, lr_mul: float = 1.0, activate: bool = False
    ) -> None:
        """Set up a layer from `n_in` to `n_out` values, `bias` being the biases' first value."""
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_out, n_in) / lr_mul)
        self.bias = nn.Parameter(torch.full((n_out,), bias))
        self.scale = lr_mul / math.sqrt(n_in)
        self.lr_mul = lr_mul
        self.activate = activate

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, n_in) to (B, n_out)."""
        if self.activate:
            x = F.linear(x, self.weight * self.scale)
            return scaled_leaky_relu(x + self.bias * self.lr_mul)
        return F.linear(x, self.weight * self.scale, self.bias * self.lr_mul)


class EqualConv2d(nn.Module):
    """Equalised convolution without bias that keeps the size, scaled at every call."""

    def __init__(self, n_in: int, n_out: int, k: int, dilation: int = 1) -> None:
        """Set up a k x k convolution from `n_in` to `n_out` channels."""
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_out, n_in, k, k))
        self.scale = 1 / math.sqrt(n_in * k * k)
        self.padding = (k - 1) * dilation // 2
        self.dilation = dilation

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, n_in, H, W) to (B, n_out, H, W)."""
        return F.conv2d(x, self.weight * self.scale, None, 1, self.padding, self.dilation)


class BiasedActivation(nn.Module):
    """Bias per channel, then the scaled leaky ReLU."""

    def __init__(self, channels: int) -> None:
        """Set up one bias for each of `channels`."""
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Activate (B, C, H, W)."""
        return scaled_leaky_relu(x + self.bias.view(1, -1, 1, 1))


class NoiseInjection(nn.Module):
    """Adds a noise map of learned strength to every channel."""

    def __init__(self) -> None:
        """Set up a strength of zero."""
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, noise: Tensor | None) -> Tensor:
        """Add a map (B, 1, H, W), drawn if it is not given, to (B, C, H, W)."""
        if noise is None:
            noise = x.new_empty(x.shape[0], 1, x.shape[2], x.shape[3]).normal_()
        return x + self.weight * noise


class Fir(nn.Module):
    """The 1-3-3-1 filter; its kernel is a tensor of the checkpoint."""

    kernel: Tensor

    def __init__(self, gain: float, up: int, pad: tuple[int, int]) -> None:
        """Set up a filter that enlarges `up` times, with `pad` pixels before and after."""
        super().__init__()
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
        self.register_buffer("kernel", torch.outer(taps, taps) / 64 * gain)
        self.up = up
        self.pad = pad

    def forward(self, x: Tensor) -> Tensor:
        """Filter (B, C, H, W)."""
        return upfirdn2d(x, self.kernel, self.up, 1, self.pad)


class ModulatedConv2d(nn.Module):
    """Modulated convolution by per-sample weights."""

    def __init__(
        self,
        n_in: int,
        n_out: int,
        k: int,
        style_dim: int,
        demodulate: bool = True,
        resampling: Resampling = "none",
    ) -> None:
        """Set up a k x k convolution from `n_in` to `n_out` channels."""
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, n_out, n_in, k, k))
        if resampling == "up":
            self.blur = Fir(gain=4.0, up=1, pad=(1, 1))
        elif resampling == "down":
            self.blur = Fir(gain=1.0, up=1, pad=(2, 2))
        self.modulation = EqualLinear(style_dim, n_in, bias=1.0)
        self.demodulate = demodulate
        self.resampling = resampling

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """Map (B, n_in, H, W) to n_out channels at the same, twice or half the size."""
        weight = per_sample_weight(self.weight, self.modulation(style), self.demodulate)
        if self.resampling == "up":
            return self.blur(grouped_conv_transpose2d(x, weight))
        if self.resampling == "down":
            return grouped_conv2d(self.blur(x), weight, stride=2)
        return grouped_conv2d(x, weight, padding=weight.shape[-1] // 2)


class StyledConv(nn.Module):
    """Modulated 3x3 convolution, noise, biased activation."""

    def __init__(
        self, n_in: int, n_out: int, style_dim: int, resampling: Resampling = "none"
    ) -> None:
        """Set up a layer from `n_in` to `n_out` channels."""
        super().__init__()
        self.conv = ModulatedConv2d(n_in, n_out, 3, style_dim, resampling=resampling)
        self.noise = NoiseInjection()
        self.activate = BiasedActivation(n_out)

    def forward(self, x: Tensor, style: Tensor, noise: Tensor | None = None) -> Tensor:
        """Map (B, n_in, H, W) under styles (B, style_dim), with a noise map of the output size."""
        return self.activate(self.noise(self.conv(x, style), noise))


class ToRGB(nn.Module):
    """Modulated 1x1 convolution to three channels, added to the enlarged previous image."""

    def __init__(self, n_in: int, style_dim: int, first: bool = False) -> None:
        """Set up a layer of `n_in` channels; the `first` one has no previous image."""
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1, 3, 1, 1))
        if not first:
            self.upsample = Fir(gain=4.0, up=2, pad=(2, 1))
        self.conv = ModulatedConv2d(n_in, 3, 1, style_dim, demodulate=False)

    def forward(self, x: Tensor, style: Tensor, previous: Tensor | None = None) -> Tensor:
        """Map (B, n_in, H, W) to (B, 3, H, W)."""
        rgb = self.conv(x, style) + self.bias
        return rgb if previous is None else rgb + self.upsample(previous)


class DilatedBranch(nn.Module):
    """One branch of a SMART layer: its own weight, a modulation shared by all four."""

    def __init__(self, n_in: int, n_out: int, dilation: int) -> None:
        """Set up a 3x3 branch from `n_in` to `n_out` channels."""
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, n_out, n_in, 3, 3))
        self.dilation = dilation

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """Map (B, n_in, H, W) under a modulation (B, n_in) to (B, n_out, H, W)."""
        weight = per_sample_weight(self.weight, modulation, demodulate=True)
        return grouped_conv2d(x, weight, padding=self.dilation, dilation=self.dilation)


class PublishedSMART(nn.Module):
    """SMART layer: four dilated modulated convolutions, fused, noise injected, activated twice."""

    def __init__(self, n_in: int, n_out: int, style_dim: int) -> None:
        """Set up a layer from `n_in` to `n_out` channels (a multiple of 4)."""
        super().__init__()
        self.ModulatedConv2ds = nn.ModuleList(DilatedBranch(n_in, n_out // 4, r) for r in RATES)
        self.modulation = EqualLinear(style_dim, n_in, bias=1.0)
        self.fusion = nn.Sequential(EqualConv2d(n_out, n_out, 3), BiasedActivation(n_out))
        self.noise = NoiseInjection()
        self.activate = BiasedActivation(n_out)

    def forward(self, x: Tensor, style: Tensor, noise: Tensor | None = None) -> Tensor:
        """Map (B, n_in, H, W) under styles (B, style_dim) to (B, n_out, H, W)."""
        modulation = self.modulation(style)
        x = torch.cat([branch(x, modulation) for branch in self.ModulatedConv2ds], dim=1)
        return self.activate(self.noise(self.fusion(x), noise))


class AggregatedConv(nn.Module):
    """Four dilated plain convolutions, fused by a 1x1 one, activated twice."""

    def __init__(self, n_in: int, n_out: int, k: int) -> None:
        """Set up k x k branches from `n_in` to `n_out` channels (a multiple of 4) in all."""
        super().__init__()
        self.dilated_convs = nn.ModuleList(EqualConv2d(n_in, n_out // 4, k, r) for r in RATES)
        self.fusion = nn.Sequential(EqualConv2d(n_out, n_out, 1), BiasedActivation(n_out))
        self.activate = BiasedActivation(n_out)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, n_in, H, W) to (B, n_out, H, W)."""
        return self.activate(self.fusion(torch.cat([conv(x) for conv in self.dilated_convs], 1)))


def mapping_network(dim: int) -> nn.Sequential:
    """Pixel norm and eight activated linear layers: z (B, dim) to w (B, dim)."""
    layers = [EqualLinear(dim, dim, lr_mul=0.01, activate=True) for _ in range(8)]
    return nn.Sequential(Apply(pixel_norm), *layers)


def stored_noise(log_size: int) -> nn.Module:
    """Hold the noise maps of the checkpoint, which nothing reads."""
    holder = nn.Module()
    for i in range(2 * log_size - 3):
        side = 2 ** ((i + 5) // 2)
        holder.register_buffer(f"noise_{i}", torch.randn(1, 1, side, side))
    return holder


def noise_maps(noise: Noise) -> Iterator[Tensor | None]:
    """Yield the given maps, or None without end: draw them."""
    return repeat(None) if noise is None else iter(noise)
