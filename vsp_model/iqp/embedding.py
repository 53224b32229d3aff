"""The quality condition of IQP: what a quality adds to the latent, Z + E_S [C].

Shapes: B batch, T places, D channels of the latent.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vsp_model.condition import QualityCondition
from vsp_model.iqp.config import EmbeddingConfig


class CodeCondition(nn.Module):
    """Latent and percentile of quality -> latent that knows it."""

    def __init__(self, config: EmbeddingConfig) -> None:
        super().__init__()
        self.config = config
        places = config.side**2 if config.per_place else 1
        self.condition = QualityCondition(places * config.latent, config.condition)

    def forward(self, places: Tensor, quality: Tensor) -> Tensor:
        """A new tensor: what the encoder keeps for later is not touched.

        Args:
            places: latent of the degraded face, (B, T, D).
            quality: (B,), percentiles of the training scores; NaN: unknown.
        """
        with torch.autocast(places.device.type, enabled=False):
            added = self.condition(quality.to(self.condition.unknown.dtype))
        return places + added.unflatten(1, (-1, self.config.latent)).to(places.dtype)
