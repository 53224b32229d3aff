"""Training of the quality network: severity regression and ranking; nobody's opinion is needed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from vsp_model.config import Config
from vsp_model.quality import QualityConfig, QualityNet
from vsp_model.train.ema import averaged_copy, decay_of, update_average

_TINY_DIFFERENCE = 0.02  # in severity: which of two is worse is not asked below it


class QualityTrainConfig(Config):
    """How it is trained.

    Attributes:
        net: The network.
        batch_size: Faces a step.
        num_steps: Of the whole run.
        lr: Highest learning rate; it rises over the first 5 % and falls as a cosine to 0.
        weight_decay: Of AdamW.
        ranking_weight: Of the ranking loss beside the regression.
        ranking_scale: Severity that counts as a clear difference.
        ema_half_life: Images after which an old weight counts half in the average that is kept.
        seed: Of weights and data.
    """

    net: QualityConfig = QualityConfig()
    batch_size: int = Field(32, ge=2)
    num_steps: int = Field(3000, ge=1)
    lr: float = Field(2e-3, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    ranking_weight: float = Field(0.5, ge=0)
    ranking_scale: float = Field(0.1, gt=0)
    ema_half_life: float = Field(3000, gt=0)
    seed: int = 0


class QualityBatch(NamedTuple):
    """What a step is fed: faces (B, 3, S, S) in [-1, 1], and their severity (B,)."""

    faces: Tensor
    severity: Tensor


def losses(predicted: Tensor, severity: Tensor, ranking_scale: float) -> dict[str, Tensor]:
    """Regression (smooth L1) and ranking (logistic over all pairs of the batch that differ).

    Args:
        predicted: (B,).
        severity: (B,), the truth.
        ranking_scale: Severity that counts as a clear difference.
    """
    regression = F.smooth_l1_loss(predicted, severity, beta=0.05)
    apart = severity[:, None] - severity[None, :]
    told = (predicted[:, None] - predicted[None, :]) * apart.sign() / ranking_scale
    asked = apart.abs() > _TINY_DIFFERENCE
    count = asked.sum().clamp(min=1)
    ranking = (F.softplus(-told) * asked).sum() / count * ranking_scale
    return {"regression": regression, "ranking": ranking}


class QualityTrainer:
    """The network, its average and its optimiser.

    Args:
        config: How to train.
        start: Weights to begin with; None for random ones.
    """

    def __init__(self, config: QualityTrainConfig, start: QualityNet | None = None) -> None:
        self.config = config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.net = QualityNet(config.net)
        if start is not None:
            self.net.load_state_dict(start.state_dict())
        self.average = averaged_copy(self.net)
        self._optimiser = torch.optim.AdamW(
            self.net.parameters(), lr=config.lr, weight_decay=config.weight_decay
        )
        self._step = 0

    def step(self, batch: QualityBatch) -> dict[str, float]:
        """One step; returns the losses before it."""
        for group in self._optimiser.param_groups:
            group["lr"] = self.config.lr * self._schedule()
        terms = losses(self.net(batch.faces), batch.severity, self.config.ranking_scale)
        total = terms["regression"] + self.config.ranking_weight * terms["ranking"]
        self._optimiser.zero_grad(set_to_none=True)
        total.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self._optimiser.step()
        self._step += 1
        seen = self._step * len(batch.faces)
        decay = decay_of(self.config.ema_half_life, len(batch.faces), seen, 0.05)
        update_average(self.average, self.net, decay)
        return {name: float(term.detach()) for name, term in terms.items()}

    def _schedule(self) -> float:
        done = self._step / self.config.num_steps
        return min(1.0, done / 0.05 + 1e-3) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def train(
    batches: Iterable[QualityBatch],
    config: QualityTrainConfig,
    on_step: Callable[[int, dict[str, float], QualityNet], None] = lambda step, terms, net: None,
    start: QualityNet | None = None,
) -> QualityNet:
    """Train on batches until they end; returns the average, frozen, in evaluation mode.

    Args:
        batches: At most `num_steps` of them count for the schedule.
        config: How.
        on_step: Told each step's number (from 1), losses and the average.
        start: Weights to begin with, of the same configuration; None for random ones.
    """
    trainer = QualityTrainer(config, start)
    for number, batch in enumerate(batches, 1):
        terms = trainer.step(batch)
        on_step(number, terms, trainer.average)
    return trainer.average
