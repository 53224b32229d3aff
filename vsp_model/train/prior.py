"""The prior as StyleGAN2 trains it: non-saturating, lazy R1, path lengths on request, ADA, EMA.

Needed wherever no published generator fits the domain or the size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast

import torch
from pydantic import Field
from torch import Tensor

from vsp_model.config import Config
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
    step_generator,
)

_PREVIEWS = 8


class PathLengthConfig(Config):
    """Path length regularisation (StyleGAN2, Sec. 3.2); the defaults are that paper's."""

    weight: float = Field(2.0, gt=0)
    interval: int = Field(4, ge=1)
    """It runs in every n-th step, n times as heavy."""
    decay: float = Field(0.01, gt=0, le=1)
    """Of the running mean of lengths."""
    batch_shrink: int = Field(2, ge=1)
    """It looks at one n-th of the batch."""


class PriorConfig(ChainConfig):
    """``vsp train prior`` with ``kind: gan``; the defaults are StyleGAN2's."""

    kind: Literal["gan"] = "gan"
    adam: AdamConfig = AdamConfig(lr=0.002, betas=(0.0, 0.99))
    ema: EMAConfig = EMAConfig()
    adversary: AdversaryConfig
    mixing_probability: float = Field(0.9, ge=0, le=1)
    """Of two styles in one picture."""
    path_length: PathLengthConfig | None = None


class PriorStage(Stage):
    """z -> picture, against a discriminator."""

    config: PriorConfig

    def __init__(
        self, config: PriorConfig, parts: Parts, judges: Judges, device: str = "cpu"
    ) -> None:
        super().__init__(config, parts, judges, device)
        self.prior = cast(StyleGAN2, self.parts["prior"]).train()
        self.players["prior"] = Player({"prior": self.prior}, config.adam)
        self.adversary: Adversary = Adversary(self, config.adversary)
        self.keep_averages(config.ema, "prior")
        self._mean_length = torch.zeros((), device=device)

    def accumulate(self, batch: Batch, moment: Moment) -> Terms:
        """See ``Stage``; of the batch only the clean faces are read."""
        generator = step_generator(self.config.run.seed, moment, "prior")
        codes = self._codes(len(batch.hq), generator)
        image = self._picture(self.prior, codes, generator)
        loss = self.adversary.judge(image, moment)
        self.backward(loss, moment)
        terms = {"adversarial": loss, "loss": loss}
        terms |= self.adversary.accumulate(pooled(batch.hq, image.shape[-1]), image, moment)
        plan = self.config.path_length
        if plan and moment.step % plan.interval == 0:
            terms |= self._regularise_paths(plan, len(batch.hq), generator, moment)
        return detached(terms)

    def _codes(self, num: int, generator: torch.Generator) -> Tensor:
        """Styles of drawn z's, (B, T, D), two of them in some pictures."""
        width, slots = self.prior.config.style_dim, self.prior.config.num_slots
        z = torch.randn(2 * num, width, generator=generator).to(self.device)
        mixes = torch.rand(num, generator=generator) < self.config.mixing_probability
        crossover = torch.randint(1, slots, (num,), generator=generator)
        inject = torch.where(mixes, crossover, slots).to(self.device)
        first, second = self.prior.mapping(z).chunk(2)
        takes_first = torch.arange(slots, device=self.device) < inject[:, None]
        return torch.where(takes_first[:, :, None], first[:, None], second[:, None])

    def _picture(self, net: StyleGAN2, codes: Tensor, generator: torch.Generator) -> Tensor:
        noise = [
            torch.randn(len(codes), 1, side, side, generator=generator).to(self.device)
            for side in net.noise_sides()
        ]
        with self.autocast():
            return inversion.picture(net, codes, noise).float()

    def _regularise_paths(
        self, plan: PathLengthConfig, num: int, generator: torch.Generator, moment: Moment
    ) -> Terms:
        """Lengths of the pictures' gradient in the codes, held near their running mean."""
        codes = self._codes(max(1, num // plan.batch_shrink), generator)
        image = self._picture(self.prior, codes, generator)
        probe = torch.randn(image.shape, generator=generator).to(image.device)
        probe = probe / image.shape[-1]
        (gradient,) = torch.autograd.grad((image * probe).sum(), codes, create_graph=True)
        lengths = gradient.square().sum(dim=2).mean(dim=1).sqrt()  # (B,)
        goal = self._mean_length.lerp(lengths.detach().mean(), plan.decay)
        penalty = (lengths - goal).square().mean()
        self.backward(plan.weight * plan.interval * penalty, moment)
        return {"path_penalty": penalty, "path_length": lengths.mean()}

    def after_update(self, moment: Moment, terms: Mapping[str, Tensor]) -> dict[str, float]:
        """See ``Stage``."""
        if self.config.path_length and "path_length" in terms:
            decay = self.config.path_length.decay
            self._mean_length = self._mean_length.lerp(terms["path_length"], decay)
        return super().after_update(moment, terms)

    def validate(self, batch: Batch) -> Terms:
        """Nothing to compare with: quality of a set is measured by ``vsp`` on drawn pictures."""
        return {}

    @torch.no_grad()
    def preview(self, batch: Batch) -> Pictures:
        """See ``Stage``: drawn pictures, the same styles each time, and half way to the mean."""
        prior = cast(StyleGAN2, self.averages["prior"])
        generator = torch.Generator().manual_seed(self.config.run.seed)
        z = torch.randn(_PREVIEWS, prior.config.style_dim, generator=generator).to(self.device)
        w = prior.mapping(z)[:, None].expand(-1, prior.config.num_slots, -1)
        average = inversion.average_code(prior, self.config.run.seed)
        return {
            "drawn": self._picture(prior, w, generator),
            "truncated 0.7": self._picture(prior, average.lerp(w, 0.7), generator),
        }

    def extra_state(self) -> dict[str, Any]:
        """See ``Stage``."""
        return super().extra_state() | {"mean_length": self._mean_length}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """See ``Stage``."""
        super().load_extra_state(state)
        self._mean_length = state["mean_length"].to(self.device)
