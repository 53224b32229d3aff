"""The quality condition of VSPBFR: what is added to prompt, code diffuser and restorer.

Four additions from one embedding, zero until they are trained, so that a model without the
condition gives the same bits with it. Where they go is our choice (inferred; places H1 to H3 of the
spec of IQP, 1.8): the published network has no condition.

Shapes: B batch, T style tokens, D style width, G global code width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from vsp_model.condition import ConditionConfig, QualityCondition


class StyleConditionConfig(ConditionConfig):
    """How a quality is embedded, and for which network.

    Attributes:
        num_tokens: T of the style encoder.
        style_dim: D of the style encoder.
        global_dim: G of the restorer.
    """

    num_tokens: int = 18
    style_dim: int = 512
    global_dim: int = 1024

    @property
    def widths(self) -> tuple[int, int, int, int]:
        """Of the four additions, in the order of ``Shifts``."""
        return self.num_tokens * self.style_dim, 1, 2 * self.style_dim, self.global_dim


class Shifts(NamedTuple):
    """What a quality adds, float32."""

    codes: Tensor
    """H1, to the encoder's codes before the code diffuser, (B, T, D): Z + s of IQPFR."""
    time: Tensor
    """H2, to the time in the condition of every TACC block, (B,). A column of its own, though zero,
    would change the last bits of the products."""
    style: Tensor
    """H3, to every style of the restorer's encoder, (B, 2 D)."""
    global_code: Tensor
    """H3, to the global code, which every layer of the decoder reads, (B, G)."""


def conditioned(codes: Tensor, shifts: Shifts | None) -> Tensor:
    """The encoder's codes (B, T, D) with H1; as they are without a condition."""
    return codes if shifts is None else codes + shifts.codes.to(codes.dtype)


class StyleCondition(nn.Module):
    """Percentile of quality -> ``Shifts``."""

    def __init__(self, config: StyleConditionConfig) -> None:
        super().__init__()
        self.config = config
        # One embedding for all places: its last layer is what each place would have of its own.
        self.embedding = QualityCondition(sum(config.widths), config)

    def forward(self, quality: Tensor) -> Shifts:
        """Args: quality (B,), percentiles of the training scores; NaN: unknown."""
        with torch.autocast(quality.device.type, enabled=False):
            codes, time, style, code = self.embedding(quality).split(self.config.widths, dim=1)
        tokens = codes.unflatten(1, (self.config.num_tokens, self.config.style_dim))
        return Shifts(tokens, time.squeeze(1), style, code)
