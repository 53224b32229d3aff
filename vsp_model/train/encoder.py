"""Stage 1, the style encoder (e4e): degraded face -> W+ codes of the clean one, prior frozen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, cast

import torch
from pydantic import Field
from torch import Tensor

from vsp_model.config import Config
from vsp_model.style_encoder import StyleEncoder
from vsp_model.stylegan2 import StyleGAN2
from vsp_model.train import inversion
from vsp_model.train.batch import Batch
from vsp_model.train.config import AdamConfig, EMAConfig
from vsp_model.train.judges import Judges
from vsp_model.train.optimiser import Player
from vsp_model.train.stage import (
    ChainConfig,
    Moment,
    Parts,
    Pictures,
    Stage,
    Terms,
    detached,
    pooled,
    weighted,
)


class EncoderWeights(Config):
    """Of the losses; the defaults are the authors' e4e trainer."""

    l2: float = Field(1.0, ge=0)
    l1: float = Field(0.0, ge=0)
    lpips: float = Field(0.8, ge=0)
    identity: float = Field(0.5, ge=0)
    delta: float = Field(2e-4, ge=0)
    """Norm of each token's difference to token 0: keeps codes near W, where priors draw well."""


class ProgressiveConfig(Config):
    """Tokens join in one after the other; the defaults are published (at batch 8)."""

    first_images: int = Field(160_000, ge=0)
    """Images with token 0 alone."""
    every_images: int = Field(16_000, ge=1)
    """Images between two tokens."""


class EncoderConfig(ChainConfig):
    """``vsp train encoder``."""

    kind: Literal["encoder"] = "encoder"
    weights: EncoderWeights = EncoderWeights()
    adam: AdamConfig = AdamConfig(lr=1e-4)
    ema: EMAConfig | None = None
    progressive: ProgressiveConfig | None = ProgressiveConfig()
    """Null: all tokens from the start."""


class EncoderStage(Stage):
    """Degraded face -> codes -> picture, against the clean face."""

    config: EncoderConfig
    needs = ("prior",)

    def __init__(
        self, config: EncoderConfig, parts: Parts, judges: Judges, device: str = "cpu"
    ) -> None:
        super().__init__(config, parts, judges, device)
        self.encoder = cast(StyleEncoder, self.parts["encoder"]).requires_grad_(True).train()
        self.prior = cast(StyleGAN2, self.frozen("prior"))
        self.players["encoder"] = Player({"encoder": self.encoder}, config.adam)
        self.keep_averages(config.ema, "encoder")

    def accumulate(self, batch: Batch, moment: Moment) -> Terms:
        """See ``Stage``."""
        with self.autocast():
            codes = self.encoder(batch.lq)
        codes, deltas = active_codes(codes, self.encoder.latent_avg, self.num_active(moment))
        with self.autocast():
            image = inversion.picture(self.prior, codes, size=batch.hq.shape[-1])
        image = image.float()
        target = pooled(batch.hq, image.shape[-1])
        terms = {
            "l2": (image - target).square().mean(),
            "l1": (image - target).abs().mean(),
            "lpips": self.judges.perceptual(image, target),
            "identity": self.judges.identity(image, batch.hq, batch.points),
            "delta": deltas.norm(dim=2).sum(dim=1).mean(),
        }
        loss, kept = weighted(terms, dict(self.config.weights))
        self.backward(loss, moment)
        return detached(kept | {"loss": loss})

    def num_active(self, moment: Moment) -> int:
        """Tokens that take part: token 0, then one more at a time."""
        tokens = self.encoder.config.num_tokens
        plan = self.config.progressive
        if plan is None:
            return tokens
        past = moment.images_seen - plan.first_images
        return min(tokens, 1 if past < 0 else 2 + past // plan.every_images)

    def after_update(self, moment: Moment, terms: Mapping[str, Tensor]) -> dict[str, float]:
        """See ``Stage``."""
        return super().after_update(moment, terms) | {"tokens": self.num_active(moment)}

    @torch.no_grad()
    def validate(self, batch: Batch) -> Terms:
        """See ``Stage``."""
        return inversion.validated(self.judges, self._inverted(batch.lq), batch)

    @torch.no_grad()
    def preview(self, batch: Batch) -> Pictures:
        """See ``Stage``."""
        return {
            "LQ": batch.lq,
            "inverted": self._inverted(batch.lq),
            "inverted HQ": self._inverted(batch.hq),
            "HQ": batch.hq,
        }

    def _inverted(self, image: Tensor) -> Tensor:
        encoder = cast(StyleEncoder, self.result()["encoder"])
        with inversion.evaluating(encoder), self.autocast():
            return inversion.picture(self.prior, encoder(image), size=image.shape[-1]).float()


def begin_at_average(encoder: StyleEncoder, prior: StyleGAN2, seed: int) -> None:
    """Let an encoder without training put out the prior's average code, as e4e's begin."""
    encoder.latent_avg.copy_(inversion.average_code(prior, seed))


def active_codes(codes: Tensor, average: Tensor, num_active: int) -> tuple[Tensor, Tensor]:
    """Codes whose late tokens repeat token 0, around the average code, and the active differences.

    Args:
        codes: (B, T, D).
        average: (T, D), which the encoder has added.
        num_active: tokens with a difference of their own, token 0 included.

    Returns:
        Codes (B, T, D) and differences (B, num_active - 1, D).
    """
    own = codes.float() - average
    base = own[:, :1]
    deltas = own[:, 1:num_active] - base
    late = base.expand(-1, codes.shape[1] - num_active, -1)
    return torch.cat([own[:, :num_active], late], dim=1) + average, deltas
