"""Stage 3, the restoration network against its discriminator; prompt and prior are frozen.

The published trainer runs the restorer twice a step, once for each player. Here both look at one
set of pictures: the generator's loss is taken against the discriminator of the step before.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, cast

import torch
from pydantic import Field
from torch import Tensor

from vsp_model.code_diffuser import CodeDiffuser
from vsp_model.config import Config
from vsp_model.randomness import RandomInputs, RandomShapes, draw, generator_for
from vsp_model.restoration import RestorationNet
from vsp_model.style_encoder import StyleEncoder
from vsp_model.stylegan2 import StyleGAN2
from vsp_model.train import inversion
from vsp_model.train.adversary import Adversary, AdversaryConfig
from vsp_model.train.batch import Batch
from vsp_model.train.config import AdamConfig, EMAConfig
from vsp_model.train.judges import Judges
from vsp_model.train.optimiser import Player
from vsp_model.train.stage import (
    Moment,
    Parts,
    Pictures,
    Stage,
    StageConfig,
    Terms,
    detached,
    weighted,
)


class RestorerWeights(Config):
    """Of the losses; the defaults are the published code's.

    There LPIPS is summed over the batch, here it is a mean: its weight is 0.5 times batch 4.
    """

    l1: float = Field(0.0, ge=0)
    lpips: float = Field(2.0, ge=0)
    identity: float = Field(0.1, ge=0)
    adversarial: float = Field(1.0, ge=0)


class RestorerConfig(StageConfig):
    """``vsp train restorer``; the defaults are the published code's."""

    kind: Literal["restorer"] = "restorer"
    weights: RestorerWeights = RestorerWeights()
    adam: AdamConfig = AdamConfig(lr=0.0016, betas=(0.0, 0.991992))
    ema: EMAConfig | None = EMAConfig()
    adversary: AdversaryConfig | None = None
    """Null: no adversarial term."""
    noise: bool = True
    """Inject noise into prior and restorer. Without it their strengths stay as they are."""
    mixing: bool = True
    """Two random styles in half of the images."""


class Guidance(NamedTuple):
    """What the frozen parts say of a batch."""

    w_plus: Tensor
    features: list[Tensor] | None


class RestorerStage(Stage):
    """Degraded face, prompt and prior -> restored face."""

    config: RestorerConfig
    needs = ("encoder", "prior", "diffuser")

    def __init__(
        self, config: RestorerConfig, parts: Parts, judges: Judges, device: str = "cpu"
    ) -> None:
        super().__init__(config, parts, judges, device)
        self.encoder = cast(StyleEncoder, self.frozen("encoder"))
        self.prior = cast(StyleGAN2, self.frozen("prior"))
        self.diffuser: CodeDiffuser | None = None
        if config.model.diffuser:
            self.diffuser = cast(CodeDiffuser, self.frozen("diffuser"))
        self.net = cast(RestorationNet, self.parts["restoration"]).requires_grad_(True).train()
        self.players["restoration"] = Player({"restoration": self.net}, config.adam)
        self.adversary: Adversary | None = None
        if config.adversary and config.weights.adversarial:
            self.adversary = Adversary(self, config.adversary)
        self.keep_averages(config.ema, "restoration")
        self._stop = min(config.model.size, config.model.prior.size)
        self._shapes = self._random_shapes()

    def _random_shapes(self) -> RandomShapes:
        model, config = self.config.model, self.config
        sides = self.prior.noise_sides(self._stop, image=False)
        use_prior = config.noise and model.restoration.facial_priors
        return RandomShapes(
            num_tokens=model.encoder.num_tokens,
            style_dim=model.encoder.style_dim,
            num_slots=model.restoration.num_slots,
            prior_sides=tuple(sides) if use_prior else (),
            restoration_sides=tuple(self.net.noise_sides()) if config.noise else (),
        )

    def accumulate(self, batch: Batch, moment: Moment) -> Terms:
        """See ``Stage``."""
        random = self._draw(batch, mixing=self.config.mixing)
        guidance = self._guide(batch, random)
        with self.autocast():
            restored = self._restore(self.net, batch, random, guidance, self._keep(batch)).float()
        terms: dict[str, Tensor | None] = {
            "l1": (restored - batch.hq).abs().mean(),
            "lpips": self.judges.perceptual(restored, batch.hq),
            "identity": self.judges.identity(restored, batch.hq, batch.points),
        }
        plays = self.adversary is not None and self.adversary.active(moment)
        if self.adversary and plays:
            terms["adversarial"] = self.adversary.judge(restored, moment)
        loss, kept = weighted(terms, dict(self.config.weights))
        self.backward(loss, moment)
        if self.adversary and plays:
            kept |= self.adversary.accumulate(batch.hq, restored, moment)
        return detached(kept | {"loss": loss})

    def _draw(self, batch: Batch, *, mixing: bool) -> RandomInputs:
        seed = self.config.run.seed
        return draw(self._shapes, batch.streams, seed, mixing=mixing).to(self.device)

    def _keep(self, batch: Batch) -> Tensor | None:
        """Drop-out of the global code, from each record's own stream."""
        rate = self.net.config.dropout
        if rate == 0:
            return None
        seed, width = self.config.run.seed, self.net.config.global_dim
        rows = [
            torch.from_numpy(generator_for(seed, stream, "dropout").random(width))
            for stream in batch.streams
        ]
        kept = (torch.stack(rows) >= rate).float() / (1 - rate)
        return kept.to(self.device)

    @torch.no_grad()
    def _guide(self, batch: Batch, random: RandomInputs) -> Guidance:
        with self.autocast():
            codes = self.encoder(batch.lq).float()
            w_plus = codes if self.diffuser is None else self.diffuser.sample(codes, random.start)
            features = None
            if self.net.config.facial_priors:
                maps = random.prior_noise if self.config.noise else None
                features = self.prior(w_plus, maps, stop=self._stop).features
        return Guidance(w_plus, features)

    def _restore(
        self,
        net: RestorationNet,
        batch: Batch,
        random: RandomInputs,
        guidance: Guidance,
        keep: Tensor | None = None,
    ) -> Tensor:
        noise = random.restoration_noise if self.config.noise else None
        restored: Tensor = net(
            batch.lq, guidance.w_plus, random.z, guidance.features, noise, random.inject, keep
        )
        return restored

    @torch.no_grad()
    def validate(self, batch: Batch) -> Terms:
        """See ``Stage``."""
        _, restored = self._restored(batch)
        return inversion.validated(self.judges, restored, batch)

    @torch.no_grad()
    def preview(self, batch: Batch) -> Pictures:
        """See ``Stage``."""
        w_plus, restored = self._restored(batch)
        inverted = inversion.picture(self.prior, w_plus, size=self._stop)
        return {"LQ": batch.lq, "prompt": inverted, "restored": restored, "HQ": batch.hq}

    def _restored(self, batch: Batch) -> tuple[Tensor, Tensor]:
        random = self._draw(batch, mixing=False)
        guidance = self._guide(batch, random)
        net = cast(RestorationNet, self.result()["restoration"])
        with inversion.evaluating(net), self.autocast():
            return guidance.w_plus, self._restore(net, batch, random, guidance).float()
