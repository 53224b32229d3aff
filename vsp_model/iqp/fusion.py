"""Stage III: features of the degraded face modulate the decoder's, as much as is asked for.

CodeFormer's controllable transformation: scale and shift from both features, weighted by w.

Shapes: B batch, C channels of a level, r its side.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsp_model.iqp.backbone import TAIL, Modulate, ResBlock, convolution, has_tail, side_of
from vsp_model.iqp.config import FidelityConfig

_SLOPE = 0.2
_TAIL_GROUPS = 4


class _Modulation(nn.Module):
    """Of one side; zero until it is trained, so that w changes nothing then [I]."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.joint = ResBlock(2 * channels, channels, groups)
        self.inward = convolution(channels, 2 * channels)
        self.scale, self.shift = convolution(channels, channels), convolution(channels, channels)
        for layer in (self.scale, self.shift):
            nn.init.zeros_(layer.weight)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def forward(self, decoded: Tensor, encoded: Tensor, fidelity: float | Tensor) -> Tensor:
        joint = self.joint(torch.cat([encoded, decoded], dim=1))
        for_scale, for_shift = F.leaky_relu(self.inward(joint), _SLOPE).chunk(2, dim=1)
        return decoded + fidelity * (decoded * self.scale(for_scale) + self.shift(for_shift))


class _PictureModulation(_Modulation):
    """Behind the pixel shuffle, where the degraded face itself is what there is to look at [I]."""

    def __init__(self) -> None:
        super().__init__(TAIL, _TAIL_GROUPS)
        self.look = convolution(3, TAIL)

    def forward(self, decoded: Tensor, encoded: Tensor, fidelity: float | Tensor) -> Tensor:
        return super().forward(decoded, self.look(encoded), fidelity)


class FidelityFusion(nn.Module):
    """Modulations by the side of their level."""

    def __init__(self, config: FidelityConfig) -> None:
        super().__init__()
        self.config = config
        backbone = config.backbone
        widths = {side_of(backbone, n): width for n, width in enumerate(backbone.widths)}
        self.sides = nn.ModuleDict()
        for side in config.sides:
            at_the_tail = has_tail(backbone) and side == backbone.size
            self.sides[str(side)] = (
                _PictureModulation() if at_the_tail else _Modulation(widths[side], backbone.groups)
            )

    def forward(self, features: Mapping[int, Tensor], fidelity: float | Tensor) -> Modulate:
        """What the decoder calls on its features.

        Args:
            features: of the degraded face by side, (B, C, r, r) each; of a tail the face itself.
            fidelity: w in [0, 1], or one for each face, (B, 1, 1, 1); training may go beyond 1.
        """
        return partial(self._modulated, features, fidelity)

    def _modulated(
        self, features: Mapping[int, Tensor], fidelity: float | Tensor, side: int, decoded: Tensor
    ) -> Tensor:
        if str(side) not in self.sides:
            return decoded
        return self.sides[str(side)](decoded, features[side], fidelity)
