"""The Transformer of IQP: latent of a degraded face -> scores of both code sequences [C].

Shapes: B batch, T places, D channels of the latent, W width, K codes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsp_model.iqp.config import PredictorConfig
from vsp_model.iqp.dictionary import Codes
from vsp_model.layers import ItemLayerNorm, ItemLinear

_HQ, _COMMON = 0, -1  # on the scores' last axis; with a single book both are the one there is


class _Layer(nn.Module):
    """Pre-norm attention and MLP; positions join queries and keys alone."""

    def __init__(self, config: PredictorConfig) -> None:
        super().__init__()
        width = config.width
        self.num_heads = config.num_heads
        self.norm1, self.norm2 = ItemLayerNorm(width), ItemLayerNorm(width)
        self.query, self.key = ItemLinear(width, width), ItemLinear(width, width)
        self.value, self.out = ItemLinear(width, width), ItemLinear(width, width)
        self.widen, self.narrow = ItemLinear(width, config.hidden), ItemLinear(config.hidden, width)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """(B, T, W) -> (B, T, W)."""
        y = self.norm1(x)
        placed = y + positions.to(y.dtype)
        query, key, value = (
            layer(part).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for layer, part in ((self.query, placed), (self.key, placed), (self.value, y))
        )
        seen = F.scaled_dot_product_attention(query, key, value)  # (B, heads, T, W / heads)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        return x + self.narrow(F.gelu(self.widen(self.norm2(x))))


class Predictor(nn.Module):
    """Which codes a face has."""

    def __init__(self, config: PredictorConfig) -> None:
        super().__init__()
        self.config = config
        self.inward = ItemLinear(config.latent, config.width)
        self.positions = nn.Parameter(torch.zeros(config.num_tokens, config.width))
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.num_layers))
        self.norm = ItemLayerNorm(config.width)
        self.num_books = 2 if config.num_codes_hq else 1
        self.num_scores = max(config.num_codes, config.num_codes_hq)
        self.head = ItemLinear(config.width, self.num_scores * self.num_books, bias=False)

    def forward(self, places: Tensor) -> Tensor:
        """Args: places (B, T, D). Returns: scores (B, T, K, books), float32 or wider."""
        x = self.inward(places)
        for layer in self.layers:
            x = layer(x, self.positions)
        scores = self.head(self.norm(x)).unflatten(2, (self.num_scores, self.num_books))
        return scores.to(torch.promote_types(scores.dtype, torch.float32))

    def split(self, scores: Tensor) -> tuple[Tensor, Tensor | None]:
        """Scores of the common book (B, T, K) and of HQ+, which is the first of the two [C]."""
        common = scores[..., : self.config.num_codes, _COMMON]
        hq = scores[..., : self.config.num_codes_hq, _HQ] if self.num_books == 2 else None
        return common, hq

    def best(self, scores: Tensor) -> Codes:
        """The codes with the highest scores."""
        common, hq = self.split(scores)
        return Codes(common.argmax(dim=2), None if hq is None else hq.argmax(dim=2))
