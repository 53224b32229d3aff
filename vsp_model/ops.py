"""Pure functions under every layer: FIR resampling, modulated convolution, biased activation.

Nothing is compiled and no device is named. Every function can be differentiated twice (R1 needs
that), and runs under autocast and ``torch.compile`` without graph breaks.

Shapes: B batch, I input channels, O output channels, (H, W) pixels, (h, w) kernel side.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Resample = Literal["same", "up", "down"]

SLOPE = 0.2
GAIN = math.sqrt(2.0)
_FIR_TAPS = (1.0, 3.0, 3.0, 1.0)


def fir_kernel(gain: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
    """The binomial low-pass kernel of StyleGAN2, (4, 4), summing to ``gain``."""
    taps = torch.tensor(_FIR_TAPS, dtype=dtype)
    kernel = torch.outer(taps, taps)
    return kernel * (gain / kernel.sum())


def upfirdn2d(
    x: Tensor,
    kernel: Tensor,
    *,
    up: tuple[int, int] = (1, 1),
    down: tuple[int, int] = (1, 1),
    pad: tuple[int, int, int, int] = (0, 0, 0, 0),
) -> Tensor:
    """Insert zeros, pad, filter and keep every n-th sample.

    A true convolution: the kernel is flipped before it is correlated (visible for asymmetric
    kernels only). Output side = (side * up + pad_before + pad_after - kernel_side) // down + 1.

    Args:
        x: (B, C, H, W).
        kernel: (h, w), shared by all channels.
        up: zeros inserted after each sample, plus one, along (x, y).
        down: keep every n-th sample, starting at the first, along (x, y).
        pad: (left, right, top, bottom) in samples after the insertion; negative values crop.
    """
    channels = x.shape[1]
    if up != (1, 1):
        x = _insert_zeros(x, *up)
    left, right, top, bottom = pad
    inside = (top, left)
    if left != right or top != bottom or min(pad) < 0:  # else the convolution pads without a copy
        x, inside = F.pad(x, pad), (0, 0)
    weight = kernel.flip(0, 1).to(x.dtype).expand(channels, 1, *kernel.shape)
    return F.conv2d(x, weight, stride=(down[1], down[0]), padding=inside, groups=channels)


def _insert_zeros(x: Tensor, up_x: int, up_y: int) -> Tensor:
    b, c, h, w = x.shape
    x = F.pad(x.reshape(b, c, h, 1, w, 1), (0, up_x - 1, 0, 0, 0, up_y - 1))
    return x.reshape(b, c, h * up_y, w * up_x)


def bias_act(x: Tensor, bias: Tensor) -> Tensor:
    """sqrt(2) * leaky_relu(x + bias, 0.2), the bias along axis 1.

    Args:
        x: (B, C) or (B, C, H, W).
        bias: (C,).
    """
    bias = (bias * GAIN).to(x.dtype).reshape(1, -1, *([1] * (x.ndim - 2)))
    # The gain goes in before the activation (it is positive), so that the only in-place operation
    # is the last one and both backward passes find what they saved.
    return F.leaky_relu_(torch.add(bias, x, alpha=GAIN), SLOPE)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b, where an item's result doesn't depend on its place in the batch.

    One product over all rows computes a row by its place (edges of a tile are summed in another
    order), so items that change places would change their last bits. Without gradients every item
    is a product of its own; in training, where nobody asks for that, it is one product.

    Args:
        x: (B, I) or (B, T, I).
        weight: (O, I).
        bias: (O,).
    """
    if torch.is_grad_enabled() or x.shape[0] == 1:
        return F.linear(x, weight, bias)
    items = x.reshape(x.shape[0], -1, x.shape[-1])
    y = torch.bmm(items, weight.t().expand(len(items), -1, -1)).reshape(*x.shape[:-1], -1)
    return y if bias is None else y + bias.to(y.dtype)


def pixel_norm(x: Tensor) -> Tensor:
    """Divide by the root mean square over axis 1 (features of (B, D), tokens of (B, T, D))."""
    return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + 1e-8)


def demodulation(weight: Tensor, modulation: Tensor) -> Tensor:
    """Per sample and output channel, 1 / norm of the modulated weight (StyleGAN2, Eq. 3).

    Computed in float32 or wider: the sum runs over up to 4,608 squares.

    Args:
        weight: (O, I, h, w), already scaled by 1 / sqrt(I h w).
        modulation: (B, I).

    Returns:
        (B, O).
    """
    wide = torch.promote_types(weight.dtype, torch.float32)
    with torch.autocast(weight.device.type, enabled=False):
        energy = weight.to(wide).square().sum(dim=(2, 3))  # (O, I)
        return torch.rsqrt(linear(modulation.to(wide).square(), energy) + 1e-8)


def modulated_conv2d(
    x: Tensor,
    weight: Tensor,
    modulation: Tensor,
    *,
    demodulate: bool = True,
    resample: Resample = "same",
    fir: Tensor | None = None,
    dilations: tuple[int, ...] = (1,),
) -> Tensor:
    """Convolution whose weight each sample scales by its own style (StyleGAN2, Eq. 1 to 3).

    Scaling the weight per sample equals scaling the input by the modulation and the output by the
    demodulation. One image folds both into the weight, which costs nothing per pixel; several
    images scale the activations around one shared convolution, since per-sample weights would need
    B copies and grouped kernels (``benchmarks/network.py`` measures both).

    Args:
        x: (B, I, H, W).
        weight: (O, I, h, w), unscaled; 1 / sqrt(I h w) is applied here (equalised learning rate).
        modulation: (B, I).
        demodulate: divide each output channel by the norm of its modulated weight.
        resample: "up" doubles the side (transposed convolution, then FIR with gain 4), "down"
            halves it (FIR with gain 1, then stride 2).
        fir: the kernel of "up" (gain 4) or "down" (gain 1), (4, 4).
        dilations: the output channels are split evenly among these rates, each with zero padding
            that keeps the side ("same" only).
    """
    weight = weight * (weight[0].numel() ** -0.5)
    scale_out = demodulation(weight, modulation) if demodulate else None
    if x.shape[0] == 1:
        factor = modulation[0] if scale_out is None else modulation[0] * scale_out[0].unsqueeze(1)
        weight = weight * factor.to(weight.dtype).reshape(-1, weight.shape[1], 1, 1)
        return _resampled_conv2d(x, weight, resample, fir, dilations)
    x = x * modulation.to(x.dtype)[:, :, None, None]
    y = _resampled_conv2d(x, weight, resample, fir, dilations)
    return y if scale_out is None else y * scale_out.to(y.dtype)[:, :, None, None]


def _resampled_conv2d(
    x: Tensor,
    weight: Tensor,
    resample: Resample,
    fir: Tensor | None,
    dilations: tuple[int, ...],
) -> Tensor:
    if resample == "same":
        return dilated_conv2d(x, weight, dilations)
    if fir is None:
        raise ValueError(f"resample={resample!r} needs its FIR kernel, got fir=None")
    if resample == "up":
        y = F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)
        return upfirdn2d(y, fir, pad=(1, 1, 1, 1))
    return F.conv2d(upfirdn2d(x, fir, pad=(2, 2, 2, 2)), weight, stride=2)


def dilated_conv2d(x: Tensor, weight: Tensor, dilations: tuple[int, ...] = (1,)) -> Tensor:
    """Convolutions of several dilation rates side by side, each keeping the side of the image.

    Args:
        x: (B, I, H, W).
        weight: (O, I, k, k), k odd; block j of O / len(dilations) output channels uses rate j.
        dilations: the rates.
    """
    side = weight.shape[-1]
    if side == 1 or len(dilations) == 1:
        rate = dilations[0]
        return F.conv2d(x, weight, padding=rate * (side // 2), dilation=rate)
    branches = zip(weight.chunk(len(dilations)), dilations, strict=True)
    return torch.cat(
        [F.conv2d(x, w, padding=r * (side // 2), dilation=r) for w, r in branches], dim=1
    )
