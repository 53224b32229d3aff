"""Stage 2, the code diffuser: the few-step chain unrolled, only the final codes supervised."""

from __future__ import annotations

from typing import Literal, cast

import torch
from pydantic import Field
from torch import Tensor

from vsp_model.code_diffuser import CodeDiffuser
from vsp_model.config import Config
from vsp_model.losses import code_l1
from vsp_model.style_encoder import StyleEncoder
from vsp_model.stylegan2 import StyleGAN2
from vsp_model.train import inversion
from vsp_model.train.batch import Batch
from vsp_model.train.config import AdamConfig
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
    normal,
    pooled,
    weighted,
)


class DiffuserWeights(Config):
    """Of the losses; the defaults are hard-wired in the published trainer."""

    codes: float = Field(1.0, ge=0)
    lpips: float = Field(0.1, ge=0)
    identity: float = Field(0.1, ge=0)


class DiffuserConfig(ChainConfig):
    """``vsp train diffuser``; the defaults are the published code's."""

    kind: Literal["diffuser"] = "diffuser"
    weights: DiffuserWeights = DiffuserWeights()
    adam: AdamConfig = AdamConfig(lr=0.0016, betas=(0.0, 0.991992))
    start: Literal["degraded", "noise"] = "degraded"
    """What the chain begins with: the degraded face's codes noised to the last step (published
    code), or pure noise, as at inference."""


class DiffuserStage(Stage):
    """Codes of the degraded face -> codes of the clean one, and what the prior makes of them."""

    config: DiffuserConfig
    needs = ("encoder", "prior")

    def __init__(
        self, config: DiffuserConfig, parts: Parts, judges: Judges, device: str = "cpu"
    ) -> None:
        super().__init__(config, parts, judges, device)
        self.encoder = cast(StyleEncoder, self.frozen("encoder"))
        self.prior = cast(StyleGAN2, self.frozen("prior"))
        self.diffuser = cast(CodeDiffuser, self.parts["diffuser"]).requires_grad_(True).train()
        self.players["diffuser"] = Player({"diffuser": self.diffuser}, config.adam)

    def accumulate(self, batch: Batch, moment: Moment) -> Terms:
        """See ``Stage``."""
        with torch.no_grad(), self.autocast():  # both pictures in one pass
            both = self.encoder(torch.cat([batch.lq, batch.hq])).float()
        codes, target_codes = both.chunk(2)
        noise = self._noise(batch, codes)
        start = noise
        if self.config.start == "degraded":
            start = self.diffuser.training_start(codes, noise)
        cleaned = self.diffuser.sample(codes, start)
        terms: dict[str, Tensor | None] = {"codes": code_l1(cleaned, target_codes)}
        if self._looks():
            with self.autocast():
                image = inversion.picture(self.prior, cleaned, size=batch.hq.shape[-1])
            image = image.float()
            target = pooled(batch.hq, image.shape[-1])
            terms["lpips"] = self.judges.perceptual(image, target)
            terms["identity"] = self.judges.identity(image, batch.hq, batch.points)
        loss, kept = weighted(terms, dict(self.config.weights))
        self.backward(loss, moment)
        return detached(kept | {"loss": loss})

    def _looks(self) -> bool:
        """Whether any judge of pictures counts; else none is drawn."""
        w, judges = self.config.weights, self.judges
        return bool((w.lpips and judges.lpips) or (w.identity and judges.embedder))

    def _noise(self, batch: Batch, codes: Tensor) -> Tensor:
        shape = tuple(codes.shape[1:])
        return normal(batch.streams, shape, self.config.run.seed, "diffuser").to(codes.device)

    @torch.no_grad()
    def validate(self, batch: Batch) -> Terms:
        """See ``Stage``."""
        codes, target = self.encoder(batch.lq), self.encoder(batch.hq)
        cleaned = self.diffuser.sample(codes, self._noise(batch, codes))
        image = inversion.picture(self.prior, cleaned, size=batch.hq.shape[-1])
        found = inversion.validated(self.judges, image, batch)
        found["codes"] = code_l1(cleaned, target)
        found["codes_before"] = code_l1(codes, target)
        found["loss"] = found["codes"]
        return found

    @torch.no_grad()
    def preview(self, batch: Batch) -> Pictures:
        """See ``Stage``."""
        codes = self.encoder(batch.lq)
        cleaned = self.diffuser.sample(codes, self._noise(batch, codes))
        size = batch.hq.shape[-1]
        return {
            "LQ": batch.lq,
            "encoder's codes": inversion.picture(self.prior, codes, size=size),
            "prompt": inversion.picture(self.prior, cleaned, size=size),
            "HQ": batch.hq,
        }
