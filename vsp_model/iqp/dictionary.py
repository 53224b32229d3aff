"""The dictionary of IQP: a common and an HQ+ codebook, and the decoder of what they say together.

Shapes: B batch, h side of the latent, T = h h places, D channels of the latent.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsp_model.iqp.backbone import Decoder, Modulate
from vsp_model.iqp.codebook import Codebook
from vsp_model.iqp.config import DictionaryConfig
from vsp_model.layers import ItemLinear


class Codes(NamedTuple):
    """What is said of a picture, (B, T) int64 each."""

    common: Tensor
    hq: Tensor | None
    """None where there is a single book."""


class CodeFusion(nn.Module):
    """HQ+ codes as the common ones ask for them: attention, query q_c, key and value q_h [C]."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query, self.key = ItemLinear(width, width), ItemLinear(width, width)
        self.value, self.out = ItemLinear(width, width), ItemLinear(width, width)

    def forward(self, common: Tensor, hq: Tensor) -> Tensor:
        """(B, T, D) twice -> (B, T, D)."""
        query, key, value = (
            layer(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for layer, x in ((self.query, common), (self.key, hq), (self.value, hq))
        )
        return self.out(
            F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        )


class Dictionary(nn.Module):
    """Codes -> feature -> picture; frozen after stage I."""

    def __init__(self, config: DictionaryConfig) -> None:
        super().__init__()
        self.config = config
        books, width = config.books, config.backbone.latent
        learnt = books.update == "gradient"
        self.common = Codebook(books.num_codes, width, learnt=learnt)
        self.hq = Codebook(books.num_codes_hq, width, learnt=learnt) if books.num_codes_hq else None
        self.fusion = None
        if self.hq is not None and books.fusion == "attention":
            self.fusion = CodeFusion(width, config.num_heads)
        self.decoder = Decoder(config.backbone)

    def nearest(self, places: Tensor) -> Codes:
        """The codes of each place (B, T, D), of both books whatever the quality [C]."""
        hq = None if self.hq is None else self.hq.nearest(places)
        return Codes(self.common.nearest(places), hq)

    def fused(self, common: Tensor, hq: Tensor | None, weight: Tensor) -> Tensor:
        """Z_q = q_c + alpha m q_h.

        Args:
            common: q_c, (B, T, D).
            hq: q_h, alike; None for a single book.
            weight: alpha m, (B,).
        """
        if hq is None:
            return common
        if self.fusion is not None:
            hq = self.fusion(common, hq)
        return common + weight[:, None, None].to(hq.dtype) * hq

    def look_up(self, codes: Codes, weight: Tensor) -> Tensor:
        """Z_q of codes, (B, T, D); ``weight`` as in ``fused``."""
        hq = None if self.hq is None or codes.hq is None else self.hq(codes.hq)
        return self.fused(self.common(codes.common), hq, weight)

    def decode(self, places: Tensor, modulate: Modulate | None = None) -> Tensor:
        """(B, T, D) -> pictures (B, 3, S, S), about [-1, 1], not clamped."""
        return self.decoder(as_map(places, self.config.backbone.latent_side), modulate)


def as_places(latent: Tensor) -> Tensor:
    """(B, D, h, h) -> (B, T, D) in float32 or wider, where codes are compared."""
    wide = torch.promote_types(latent.dtype, torch.float32)
    return latent.to(wide).flatten(2).mT.contiguous()


def as_map(places: Tensor, side: int) -> Tensor:
    """(B, T, D) -> (B, D, h, h), channels_last."""
    return places.mT.unflatten(2, (side, side))


def straight_through(places: Tensor, codes: Tensor) -> Tensor:
    """The codes' values, with gradients that flow to the latents."""
    return places + (codes - places).detach()
