"""The prior for small budgets: style encoder and generator together, led by reconstruction.

An adversarial prior needs hours to draw faces. Trained as an auto-encoder, clean face -> W+ codes
-> picture, the pair gets there in minutes; an adversary may join in late, for texture. The mapping
network takes no part: such a prior inverts, it can't be sampled from z.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Literal, cast

import torch
from pydantic import Field
from torch import Tensor

from vsp_model.config import Config
from vsp_model.losses import code_l1
from vsp_model.style_encoder import StyleBlock, StyleEncoder
from vsp_model.stylegan2 import StyleGAN2
from vsp_model.train import inversion
from vsp_model.train.adversary import Adversary, AdversaryConfig
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


class ReconstructionWeights(Config):
    """Of the losses."""

    l1: float = Field(1.0, ge=0)
    lpips: float = Field(0.5, ge=0)
    identity: float = Field(0.1, ge=0)
    codes: float = Field(0.0, ge=0)
    """Between the codes of the degraded and of the clean face; draws the encoder to one code."""
    adversarial: float = Field(0.03, ge=0)


class ReconstructionConfig(ChainConfig):
    """``vsp train prior`` with ``kind: reconstruction``."""

    kind: Literal["reconstruction"] = "reconstruction"
    weights: ReconstructionWeights = ReconstructionWeights()
    adam: AdamConfig = AdamConfig(lr=2e-3, betas=(0.0, 0.99))
    """Of the prior, whose layers have an equalised learning rate: a step changes a weight by about
    the rate itself, so that short runs want a higher one."""
    encoder_adam: AdamConfig = AdamConfig(lr=1e-3, betas=(0.9, 0.99))
    ema: EMAConfig | None = EMAConfig()
    adversary: AdversaryConfig | None = None


class ReconstructionStage(Stage):
    """Clean face -> codes -> picture."""

    config: ReconstructionConfig

    def __init__(
        self, config: ReconstructionConfig, parts: Parts, judges: Judges, device: str = "cpu"
    ) -> None:
        super().__init__(config, parts, judges, device)
        self.encoder = cast(StyleEncoder, self.parts["encoder"]).train()
        self.prior = cast(StyleGAN2, self.parts["prior"]).train()
        self.players["prior"] = Player({"prior": self.prior}, config.adam)
        self.players["encoder"] = Player({"encoder": self.encoder}, config.encoder_adam)
        self.adversary: Adversary | None = None
        if config.adversary and config.weights.adversarial:
            self.adversary = Adversary(self, config.adversary)
        self.keep_averages(config.ema, "encoder", "prior")
        self._energy: Tensor | None = None  # mean square of the codes, over the last steps

    def accumulate(self, batch: Batch, moment: Moment) -> Terms:
        """See ``Stage``."""
        with self.autocast():
            codes = self.encoder(batch.hq)
            image = inversion.picture(self.prior, codes)
        image = image.float()
        target = pooled(batch.hq, image.shape[-1])
        terms: dict[str, Tensor | None] = {
            "l1": (image - target).abs().mean(),
            "lpips": self.judges.perceptual(image, target),
            "identity": self.judges.identity(image, batch.hq, batch.points),
        }
        energy = codes.detach().float().square().mean()
        if self.config.weights.codes:
            with self.autocast():
                terms["codes"] = code_l1(self.encoder(batch.lq), codes.detach())
        plays = self.adversary is not None and self.adversary.active(moment)
        if self.adversary and plays:
            terms["adversarial"] = self.adversary.judge(image, moment)
        loss, kept = weighted(terms, dict(self.config.weights))
        self.backward(loss, moment)
        if self.adversary and plays:
            kept |= self.adversary.accumulate(target, image, moment)
        return detached(kept | {"loss": loss, "code_energy": energy})

    def after_update(self, moment: Moment, terms: Mapping[str, Tensor]) -> dict[str, float]:
        """See ``Stage``."""
        energy = terms["code_energy"].cpu()
        self._energy = energy if self._energy is None else self._energy.lerp(energy, 0.01)
        return super().after_update(moment, terms)

    def result(self) -> Parts:
        """Encoder and prior, the codes between them brought to unit size.

        Nothing holds the size of codes that are learnt freely, but the diffuser's layers put out
        numbers around one. Scaling encoder and modulations against each other changes no picture.
        """
        nets = super().result()
        if self._energy is None:
            return nets
        nets = {name: copy.deepcopy(nets[name]) for name in ("encoder", "prior")}
        scale = self._energy.rsqrt().item()
        scale_codes(cast(StyleEncoder, nets["encoder"]), cast(StyleGAN2, nets["prior"]), scale)
        return nets

    @torch.no_grad()
    def validate(self, batch: Batch) -> Terms:
        """See ``Stage``."""
        image = self._reconstructed(batch)
        return inversion.validated(self.judges, image, batch)

    @torch.no_grad()
    def preview(self, batch: Batch) -> Pictures:
        """See ``Stage``."""
        return {"reconstructed": self._reconstructed(batch), "HQ": batch.hq}

    def _reconstructed(self, batch: Batch) -> Tensor:
        nets = super().result()
        encoder = cast(StyleEncoder, nets["encoder"])
        with inversion.evaluating(encoder), self.autocast():
            return inversion.picture(cast(StyleGAN2, nets["prior"]), encoder(batch.hq)).float()

    def extra_state(self) -> dict[str, Any]:
        """See ``Stage``."""
        return super().extra_state() | {"code_energy": self._energy}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """See ``Stage``."""
        super().load_extra_state(state)
        self._energy = state["code_energy"]


@torch.no_grad()
def scale_codes(encoder: StyleEncoder, prior: StyleGAN2, factor: float) -> None:
    """Multiply the encoder's codes and divide the prior's reading of them; pictures stay."""
    encoder.latent_avg.mul_(factor)
    for block in encoder.styles:
        linear = cast(StyleBlock, block).linear
        linear.weight.mul_(factor)
        linear.bias.mul_(factor)
    for name, parameter in prior.named_parameters():
        if name.endswith("modulation.weight"):
            parameter.div_(factor)
