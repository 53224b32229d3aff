"""The discriminator of IQP's stages I and III: patches, hinge losses, a balancing weight."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from vsp_model.config import Config
from vsp_model.train.config import AdamConfig
from vsp_model.train.iqp_losses import widened
from vsp_model.train.optimiser import Player
from vsp_model.train.stage import Moment, Stage, Terms, without_gradients_to

PLAYER = "discriminator"
_SLOPE, _SIDE, _GROUPS = 0.2, 4, 16
_WIDEST = 8  # times the first layer's channels
_EPS = 1e-4


class PatchConfig(Config):
    """PatchGAN.

    Attributes:
        channels: Of the first layer; each further one doubles them, up to eight times as many.
        num_layers: That halve the side; each logit sees 2^(n + 1) pixels and more.
    """

    channels: int = Field(64, ge=16)
    num_layers: int = Field(4, ge=1)


class PatchAdversaryConfig(Config):
    """How the discriminator plays; the defaults are the released code's in stage I [C].

    Attributes:
        network: Its widths.
        adam: Its optimiser.
        weight: The adversarial term's, times what follows from the gradients.
        limit: The largest that may follow.
        starts_at: Share of the run after which it joins in; 30,001 of 200,000 steps.
    """

    network: PatchConfig = PatchConfig()
    adam: AdamConfig = AdamConfig(lr=7e-5, betas=(0.9, 0.99))
    weight: float = Field(0.8, ge=0)
    limit: float = Field(1.0, gt=0)
    starts_at: float = Field(0.15, ge=0, le=1)


class PatchDiscriminator(nn.Module):
    """Picture -> a logit for each patch.

    GroupNorm in the place of BatchNorm [I]: statistics of a batch would make two workers' steps
    differ from one's.
    """

    def __init__(self, config: PatchConfig) -> None:
        super().__init__()
        widths = [config.channels * min(2**n, _WIDEST) for n in range(config.num_layers + 1)]
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], _SIDE, 2, 1), nn.LeakyReLU(_SLOPE)]
        for n, (before, after) in enumerate(pairwise(widths), 1):
            stride = 2 if n < config.num_layers else 1
            layers += [
                nn.Conv2d(before, after, _SIDE, stride, 1, bias=False),
                nn.GroupNorm(_GROUPS, after),
                nn.LeakyReLU(_SLOPE),
            ]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, _SIDE, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, S, S) in [-1, 1] -> (B, 1, r, r)."""
        return self.layers(image)


class PatchAdversary:
    """A new discriminator that joins a stage's players.

    The adversarial term's weight lambda = |gradient of the other losses| / |its gradient|, both at
    the last layer that is trained. The gradients are those of the whole batch, means over all parts
    as the loop makes them of ``gathered``, and count for the next step: a lambda of each part would
    depend on how a batch is cut [I].
    """

    def __init__(self, stage: Stage, config: PatchAdversaryConfig, last: Tensor) -> None:
        self.config = config
        self.net = PatchDiscriminator(config.network).to(stage.device)
        stage.players[PLAYER] = Player({PLAYER: self.net}, config.adam)
        self._stage = stage
        self._last = last
        self._gradients = (torch.zeros_like(last).detach(), torch.zeros_like(last).detach())
        self.balance = 0.0
        """lambda, 0 until the first step that the discriminator looked at has ended."""

    def active(self, moment: Moment) -> bool:
        """Whether it plays in this step."""
        return moment.progress >= self.config.starts_at

    def gathered(self) -> Iterator[Tensor]:
        """What a part of a step adds to; means over parts after it."""
        yield from self._gradients

    def pull(self, image: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """What the picture's gradient becomes with the adversary's, and the generator's loss.

        Args:
            image: that the generator made, with its graph.
            wanted: gradient of the other losses with respect to it.
        """
        picture = image.detach().requires_grad_(True)
        with without_gradients_to(self.net), self._stage.autocast():
            loss = -widened(self.net(picture)).mean()
        (pull,) = torch.autograd.grad(loss, picture)
        for kept, gradient in zip(self._gradients, (wanted, pull), strict=True):
            (found,) = torch.autograd.grad(image, self._last, gradient, retain_graph=True)
            kept.add_(found)
        return wanted + self.config.weight * self.balance * pull, loss.detach()

    def backward(self, loss: Tensor, image: Tensor, real: Tensor, moment: Moment) -> Terms:
        """Add one part's gradients: the other losses', the adversary's, the discriminator's own.

        Args:
            loss: the other losses.
            image: that the generator made, which they look at.
            real: true pictures.
            moment: of the part.
        """
        (wanted,) = torch.autograd.grad(loss, image, retain_graph=True)
        pull, adversarial = self.pull(image, wanted)
        # The loss's own gradient, and what the adversary adds at the picture.
        self._stage.backward(loss + (image * (pull - wanted).detach()).sum(), moment)
        return {"adversarial": adversarial} | self.accumulate(real, image, moment)

    def accumulate(self, real: Tensor, fake: Tensor, moment: Moment) -> Terms:
        """One part of the discriminator's step: hinge losses."""
        with self._stage.autocast():
            real_logits = widened(self.net(real))
            fake_logits = widened(self.net(fake.detach()))
        loss = 0.5 * (F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean())
        self._stage.backward(loss, moment)
        return {
            "discriminator": loss,
            "logits_real": real_logits.mean(),
            "logits_fake": fake_logits.mean(),
        }

    def observe(self, terms: Mapping[str, Tensor]) -> dict[str, float]:
        """Balance the next step by this one's gradients, which the loop has reduced."""
        others, own = (gradient.norm() for gradient in self._gradients)
        if own > 0:
            self.balance = (others / (own + _EPS)).clamp(0, self.config.limit).item()
        for gradient in self._gradients:
            gradient.zero_()
        return {"balance": self.balance} if self.balance else {}

    def state_dict(self) -> dict[str, Any]:
        """Of the balance; network and optimiser are the player's."""
        return {"balance": self.balance}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state_dict``."""
        self.balance = state["balance"]
