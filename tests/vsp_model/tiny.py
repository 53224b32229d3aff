"""Tiny networks for the tests of vsp_model, and naive versions of its operations."""

import torch
from torch import Tensor, nn

from vsp_model import registry
from vsp_model.vspbfr import VSPBFR, VSPBFRConfig

WIDTHS = (16, 16, 16, 16, 8, 8)


def tiny_config(
    size: int = 32,
    *,
    prior_size: int | None = None,
    style_dim: int = 16,
    widths: tuple[int, ...] = WIDTHS,
    diffuser: bool = True,
    **restoration,
) -> VSPBFRConfig:
    """A restorer of ``size`` pixels; ``restoration`` holds further fields of that part."""
    prior_size = prior_size or size
    levels, prior_levels = size.bit_length() - 2, prior_size.bit_length() - 2
    tokens = 2 * max(levels, prior_levels)
    shared = {"style_dim": style_dim, "mapping_layers": 2}
    return VSPBFRConfig.model_validate(
        {
            "encoder": {
                "input_size": min(256, size),
                "num_tokens": tokens,
                "style_dim": style_dim,
                "pyramid_channels": 16,
                "stem_channels": 4,
                "stage_channels": [8, 8, 16, 16],
                "stage_units": [1, 1, 1, 1],
                "reduction": 4,
            },
            "diffuser": {"num_tokens": tokens, "style_dim": style_dim, "num_blocks": 2}
            if diffuser
            else None,
            "prior": {"size": prior_size, "channels": widths[:prior_levels], **shared},
            "restoration": {
                "size": size,
                "channels": widths[:levels],
                "global_dim": 16,
                **shared,
                **restoration,
            },
        }
    )


def tiny_model(size: int = 32, **config) -> VSPBFR:
    """An untrained restorer in which every part shows in the output."""
    return lively(registry.untrained(tiny_config(size, **config)))


def lively(module: nn.Module, seed: int = 7) -> nn.Module:
    """Move what starts at zero or one: noise strengths, biases, statistics of batch norms."""
    generator = torch.Generator().manual_seed(seed)
    named = [*module.named_parameters(), *module.named_buffers()]
    with torch.no_grad():
        for name, tensor in named:
            if tensor.ndim == 1 and tensor.is_floating_point():
                shift = torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype)
                tensor.add_(0.2 * shift + (0.1 if name.endswith("strength") else 0))
    return module


def some_faces(count: int, size: int, seed: int = 3) -> Tensor:
    """(count, 3, size, size) in [-1, 1], all different."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, size, size, generator=generator) * 2 - 1


def some_keys(count: int) -> list[str]:
    return [f"face-{i}" for i in range(count)]


def naive_conv(
    x: Tensor, weight: Tensor, *, stride: int = 1, pad: int = 0, rate: int = 1
) -> Tensor:
    """Correlation of one image (I, H, W) with (O, I, k, k), tap by tap."""
    side = weight.shape[-1]
    height, width = x.shape[1:]
    padded = x.new_zeros(x.shape[0], height + 2 * pad, width + 2 * pad)
    padded[:, pad : pad + height, pad : pad + width] = x
    reach = rate * (side - 1)
    rows, cols = (n + 2 * pad - reach - 1 for n in (height, width))
    y = 0
    for i in range(side):
        for j in range(side):
            top, left = i * rate, j * rate
            tap = padded[:, top : top + rows + 1 : stride, left : left + cols + 1 : stride]
            y = y + torch.einsum("oi,ihw->ohw", weight[:, :, i, j], tap)
    return y


def naive_transposed_conv(x: Tensor, weight: Tensor) -> Tensor:
    """Stride 2, no padding: each pixel of (I, H, W) adds its copy of the taps; side 2H + k - 2."""
    side, (height, width) = weight.shape[-1], x.shape[1:]
    y = x.new_zeros(len(weight), 2 * height + side - 2, 2 * width + side - 2)
    for i in range(side):
        for j in range(side):
            part = torch.einsum("oi,ihw->ohw", weight[:, :, i, j], x)
            y[:, i : i + 2 * height - 1 : 2, j : j + 2 * width - 1 : 2] += part
    return y


def naive_upfirdn2d(x: Tensor, kernel: Tensor, up=(1, 1), down=(1, 1), pad=(0, 0, 0, 0)) -> Tensor:
    """The definition with one loop a pixel: x (B, C, H, W), up and down along (x, y)."""
    height, width = x.shape[2] * up[1], x.shape[3] * up[0]
    left, right, top, bottom = pad
    rows = (height + top + bottom - kernel.shape[0]) // down[1] + 1
    cols = (width + left + right - kernel.shape[1]) // down[0] + 1
    y = x.new_zeros(*x.shape[:2], rows, cols)
    for row in range(rows):
        for col in range(cols):
            for i in range(kernel.shape[0]):
                for j in range(kernel.shape[1]):
                    # A true convolution: the kernel's last tap meets the window's first sample.
                    v = row * down[1] + kernel.shape[0] - 1 - i - top
                    u = col * down[0] + kernel.shape[1] - 1 - j - left
                    inside = 0 <= v < height and 0 <= u < width
                    if inside and v % up[1] == 0 and u % up[0] == 0:
                        y[:, :, row, col] += kernel[i, j] * x[:, :, v // up[1], u // up[0]]
    return y
