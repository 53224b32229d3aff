"""The SMART layer: style-modulated aggregation of several dilation rates (VSPBFR, Sec. III-D)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vsp_model.layers import ConvLayer, EqualLinear, NoiseInjection
from vsp_model.ops import bias_act, modulated_conv2d


class SmartLayer(nn.Module):
    """Modulated 3x3 convolutions at several dilation rates -> 3x3 fusion -> noise -> activation.

    All branches share one modulation of the input. ``weight`` stacks the branches along the output
    axis in the order of ``dilations``. As published, the fusion ends in an activation of its own
    and a second biased activation follows the noise; the paper names one convolution only.

    Args:
        in_channels: I.
        out_channels: O, a multiple of the number of rates.
        style_dim: width of the style vector.
        dilations: one rate a branch.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        style_dim: int,
        dilations: Sequence[int] = (1, 2, 4, 8),
    ) -> None:
        super().__init__()
        if out_channels % len(dilations):
            raise ValueError(
                f"SMART layer: {out_channels} output channels can't be split among "
                f"{len(dilations)} dilation rates; use a multiple"
            )
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 3, 3))
        self.modulation = EqualLinear(style_dim, in_channels, bias_init=1.0)
        self.fusion = ConvLayer(out_channels, out_channels, 3)
        self.noise = NoiseInjection()
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.dilations = tuple(dilations)

    def branches(self, x: Tensor, style: Tensor) -> Tensor:
        """The branch features before fusion, (B, O, H, W), rate by rate along the channels."""
        modulation = self.modulation(style)
        return modulated_conv2d(x, self.weight, modulation, dilations=self.dilations)

    def merge(self, branches: Tensor, noise: Tensor | None = None) -> Tensor:
        """Fusion, noise and activation of the branch features, (B, O, H, W)."""
        return bias_act(self.noise(self.fusion(branches), noise), self.bias)

    def forward(self, x: Tensor, style: Tensor, noise: Tensor | None = None) -> Tensor:
        """x (B, I, H, W), style (B, D), noise (B, 1, H, W) or None -> (B, O, H, W)."""
        return self.merge(self.branches(x, style), noise)
