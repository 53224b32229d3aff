"""Stage 3, the restoration network against its discriminator; prompt and prior are frozen.

The published trainer runs the restorer twice a step, once for each player. Here both look at one
set of pictures: the generator's loss is taken against the discriminator of the step before.

A model's quality condition is trained here as well. What it adds to the codes is reached through
the code diffuser and the prior, which stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, NamedTuple, Self, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor

from vsp_model.code_diffuser import CodeDiffuser
from vsp_model.config import Config
from vsp_model.randomness import RandomInputs, RandomShapes, draw, generator_for
from vsp_model.restoration import RestorationNet
from vsp_model.style_condition import Shifts, StyleCondition, conditioned
from vsp_model.style_encoder import StyleEncoder
from vsp_model.stylegan2 import StyleGAN2
from vsp_model.train import inversion
from vsp_model.train.adversary import Adversary, AdversaryConfig
from vsp_model.train.batch import Batch
from vsp_model.train.condition import (
    HIGH,
    LOW,
    ConditionTraining,
    told_qualities,
)
from vsp_model.train.config import AdamConfig, EMAConfig
from vsp_model.train.judges import Judges
from vsp_model.train.optimiser import Player
from vsp_model.train.quality_loss import QualityLoss
from vsp_model.train.stage import (
    ChainConfig,
    Moment,
    Parts,
    Pictures,
    Stage,
    Terms,
    detached,
    weighted,
    without_gradients_to,
)


class RestorerWeights(Config):
    """Of the losses; the defaults are the published code's.

    There LPIPS is summed over the batch, here it is a mean: its weight is 0.5 times batch 4.
    """

    l1: float = Field(0.0, ge=0)
    lpips: float = Field(2.0, ge=0)
    identity: float = Field(0.1, ge=0)
    adversarial: float = Field(1.0, ge=0)


class RestorerConfig(ChainConfig):
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
    condition: ConditionTraining | None = None
    """How the quality condition is taught, for a model that has one; not published."""

    @property
    def asks_quality(self) -> bool:
        """See ``StageConfig``."""
        return self.condition is not None and self.condition.quality is not None

    @model_validator(mode="after")
    def _condition_is_taught(self) -> Self:
        if (self.condition is None) != (self.model.condition is None):
            raise ValueError("condition: expected with model.condition, and only with it")
        return self


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
        self.condition: StyleCondition | None = None
        self.quality: QualityLoss | None = None
        if config.condition:
            if config.condition.quality and judges.quality:
                self.quality = QualityLoss(config.condition.quality.guard, judges)
            self.condition = cast(StyleCondition, self.parts["condition"])
            self.condition.requires_grad_(True).train()
            self.players["condition"] = Player({"condition": self.condition}, config.condition.adam)
        moving = ("restoration", "condition") if config.condition else ("restoration",)
        self.keep_averages(config.ema, *moving)
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
        shifts = self._shifts(batch)
        guidance = self._guide(batch, random, shifts)
        with self.autocast(), self._waiting(moment):
            restored = self._restore(
                self.net, batch, random, guidance, shifts, self._keep(batch)
            ).float()
        terms: dict[str, Tensor | None] = {
            "l1": (restored - batch.hq).abs().mean(),
            "lpips": self.judges.perceptual(restored, batch.hq),
            "identity": self.judges.identity(restored, batch.hq, batch.points),
        }
        plays = self.adversary is not None and self.adversary.active(moment)
        if self.adversary and plays:
            terms["adversarial"] = self.adversary.judge(restored, moment)
        weights, figures = dict(self.config.weights), dict[str, Tensor]()
        if self.quality and self.quality.active and self.config.condition:
            judged = self.quality.judged(restored, batch, terms["identity"])
            terms["quality"], figures = judged
            weights["quality"] = self.config.condition.quality_weight(moment)
        loss, kept = weighted(terms, weights)
        self.backward(loss, moment)
        kept |= figures
        if self.adversary and plays:
            kept |= self.adversary.accumulate(batch.hq, restored, moment)
        return detached(kept | {"loss": loss})

    def after_update(self, moment: Moment, terms: Mapping[str, Tensor]) -> dict[str, float]:
        """See ``Stage``."""
        figures = super().after_update(moment, terms)
        return figures | (self.quality.observe(terms) if self.quality else {})

    def extra_state(self) -> dict[str, Any]:
        """See ``Stage``."""
        mine = {"quality": self.quality.state_dict()} if self.quality else {}
        return super().extra_state() | mine

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """See ``Stage``."""
        super().load_extra_state(state)
        if self.quality:
            self.quality.load_state_dict(state["quality"])

    def _shifts(self, batch: Batch) -> Shifts | None:
        """What the qualities of a part's true faces add."""
        if self.condition is None:
            return None
        seed = self.config.run.seed
        return self.condition(told_qualities(self.condition.embedding, batch, seed))

    def _waiting(self, moment: Moment) -> AbstractContextManager[Any]:
        """While the condition moves alone, the restorer gets no gradients, and so doesn't move."""
        taught = self.config.condition
        alone = taught is not None and moment.progress < taught.alone
        return without_gradients_to(self.net) if alone else nullcontext()

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

    def _guide(self, batch: Batch, random: RandomInputs, shifts: Shifts | None = None) -> Guidance:
        """With gradients only for a condition in training; else the chain runs in float64."""
        learns = torch.is_grad_enabled() and shifts is not None
        with torch.set_grad_enabled(learns), self.autocast():
            codes = conditioned(self.encoder(batch.lq).float(), shifts)
            time = None if shifts is None else shifts.time
            w_plus = codes
            if self.diffuser is not None:
                w_plus = self.diffuser.sample(codes, random.start, time)
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
        shifts: Shifts | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        noise = random.restoration_noise if self.config.noise else None
        w_plus, features = guidance
        restored: Tensor = net(
            batch.lq, w_plus, random.z, features, noise, random.inject, keep, shifts
        )
        return restored

    @torch.no_grad()
    def validate(self, batch: Batch) -> Terms:
        """See ``Stage``. Judged is what nobody asked anything of: the quality is unknown."""
        _, restored = self._restored(batch)
        found = inversion.validated(self.judges, restored, batch)
        if self._knows_quality:
            low, high = (self._restored(batch, quality)[1] for quality in (LOW, HIGH))
            found["dial"] = (high - low).abs().mean()
        return found

    @torch.no_grad()
    def preview(self, batch: Batch) -> Pictures:
        """See ``Stage``."""
        w_plus, restored = self._restored(batch)
        inverted = inversion.picture(self.prior, w_plus, size=self._stop)
        columns = {"LQ": batch.lq, "prompt": inverted, "restored": restored}
        if self._knows_quality:
            for quality in (LOW, HIGH):
                columns[f"quality {quality:g}"] = self._restored(batch, quality)[1]
        return columns | {"HQ": batch.hq}

    @property
    def _knows_quality(self) -> bool:
        """Whether there is a dial to turn: without scores a condition knows unknown alone."""
        return self.condition is not None and self.condition.embedding.scored

    def _restored(self, batch: Batch, quality: float = math.nan) -> tuple[Tensor, Tensor]:
        """Prompt and picture of the result, asked for a quality."""
        random, kept = self._draw(batch, mixing=False), self.result()
        shifts: Shifts | None = None
        if self.condition is not None:
            shifts = kept["condition"](torch.full_like(batch.quality, quality))
        guidance = self._guide(batch, random, shifts)
        net = cast(RestorationNet, kept["restoration"])
        with inversion.evaluating(net), self.autocast():
            return guidance.w_plus, self._restore(net, batch, random, guidance, shifts).float()
