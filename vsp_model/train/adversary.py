"""The discriminator's side of a stage: its losses, lazy R1, adaptive augmentation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field
from torch import Tensor

from vsp_model import augment
from vsp_model.augment import AugmentConfig, AugmentController
from vsp_model.config import Config
from vsp_model.discriminator import Discriminator, DiscriminatorConfig
from vsp_model.losses import discriminator_loss, generator_loss, r1_penalty
from vsp_model.train.config import AdamConfig
from vsp_model.train.optimiser import Player
from vsp_model.train.stage import Moment, Stage, Terms, step_generator, without_gradients_to

PLAYER = "discriminator"


class AdversaryConfig(Config):
    """Defaults: what the published trainer of the restorer does."""

    network: DiscriminatorConfig
    adam: AdamConfig = AdamConfig(lr=0.00188235, betas=(0.0, 0.990585))
    r1_gamma: float = Field(10.0, ge=0)
    """Weight: gamma / 2 times the penalty; 0 leaves it out."""
    r1_interval: int = Field(16, ge=1)
    """R1 runs in every n-th step, n times as heavy, together with the step's own loss."""
    augment: AugmentConfig | None = None
    """Adaptive augmentation; null: none, as published unless asked for."""
    starts_at: float = Field(0.0, ge=0, le=1)
    """Share of the run after which the adversary joins in."""


class Adversary:
    """A new discriminator that plays against a stage's pictures; it joins the stage's players."""

    def __init__(self, stage: Stage, config: AdversaryConfig) -> None:
        self.config = config
        self.net = Discriminator(config.network).to(stage.device)
        stage.players[PLAYER] = Player({PLAYER: self.net}, config.adam)
        self.controller = AugmentController(config.augment) if config.augment else None
        self._seed = stage.config.run.seed
        self._stage = stage

    def active(self, moment: Moment) -> bool:
        """Whether it plays in this step."""
        return moment.progress >= self.config.starts_at

    def judge(self, fake: Tensor, moment: Moment) -> Tensor:
        """The generator's loss; gradients reach the pictures and not the discriminator."""
        with without_gradients_to(self.net), self._stage.autocast():
            return generator_loss(self.net(self._augmented(fake, moment, "judge")).float())

    def accumulate(self, real: Tensor, fake: Tensor, moment: Moment) -> Terms:
        """One part of the discriminator's step, R1 with it when its turn comes."""
        penalised = self.config.r1_gamma > 0 and moment.step % self.config.r1_interval == 0
        real = real.detach().requires_grad_(penalised)
        with self._stage.autocast():
            fake_logits = self.net(self._augmented(fake.detach(), moment, "fake")).float()
            real_logits = self.net(self._augmented(real, moment, "real")).float()
        loss = discriminator_loss(real_logits, fake_logits)
        terms = {
            "discriminator": loss,
            "sign_real": real_logits.sign().mean(),
            "sign_fake": fake_logits.sign().mean(),
        }
        if penalised:
            terms["r1"] = r1_penalty(real_logits, real)
            loss = loss + self.config.r1_gamma / 2 * self.config.r1_interval * terms["r1"]
        self._stage.backward(loss, moment)
        return terms

    def _augmented(self, image: Tensor, moment: Moment, purpose: str) -> Tensor:
        if self.controller is None or self.controller.probability == 0:
            return image
        generator = step_generator(self._seed, moment, f"augment {purpose}")
        return augment.augment(image.float(), self.controller.probability, generator)

    def observe(self, terms: Mapping[str, Tensor]) -> dict[str, float]:
        """Let the augmentation follow the real logits' mean sign; ``terms`` are all workers'."""
        if self.controller is None or "sign_real" not in terms:
            return {}
        self.controller.observe_sign(terms["sign_real"].cpu(), self._stage.config.run.batch_size)
        return {"augment_probability": self.controller.probability}

    def state_dict(self) -> dict[str, Any]:
        """Of the augmentation; network and optimiser are the player's."""
        return self.controller.state_dict() if self.controller else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state_dict``."""
        if self.controller and state:
            self.controller.load_state_dict(dict(state))
