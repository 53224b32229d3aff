"""How a restorer learns its quality condition: what each face is said to be worth, and a score."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from vsp_model.condition import QualityCondition
from vsp_model.config import Config
from vsp_model.randomness import generator_for
from vsp_model.train.batch import Batch
from vsp_model.train.config import AdamConfig
from vsp_model.train.guard import GuardConfig, Watch, detail_energy
from vsp_model.train.judges import Judges
from vsp_model.train.stage import Moment, Terms

LOW, HIGH = 0.1, 0.9
"""Percentiles between which the figure "dial" and the sample grid look."""


class QualityLossConfig(Config):
    """Of 1 - score of the restored faces (H4 of the spec of IQP, 1.8).

    The restorer's output is continuous, with no codes to keep it natural: the weight stays small
    and the guard ends it.
    """

    weight: float = Field(0.02, gt=0, le=0.02)
    warmup_images: int = Field(2_000, ge=1)
    """The weight rises over them, from where the restorer begins to move."""
    guard: GuardConfig = GuardConfig()


class ConditionTraining(Config):
    """Of a condition that is put into a trained restorer."""

    adam: AdamConfig = AdamConfig(lr=0.004, betas=(0.9, 0.99), clip_norm=1.0)
    alone: float = Field(0.05, ge=0, lt=1)
    """Share of the run in which the restorer stands still: a new condition then can't disturb it
    (inferred, spec of IQP 1.8)."""
    quality: QualityLossConfig | None = None
    """Train for the score of ``judges.quality`` as well; null: don't."""


def told_qualities(condition: QualityCondition, batch: Batch, seed: int) -> Tensor:
    """Percentile of each true face, NaN where it is unknown or withheld, (B,)."""
    chances = [generator_for(seed, stream, "withheld").random() for stream in batch.streams]
    quality = condition.percentile(batch.quality)
    return condition.withheld(quality, torch.tensor(chances, device=quality.device))


class QualityLoss:
    """The loss for a score, and the guard that watches it."""

    def __init__(self, config: ConditionTraining, judges: Judges) -> None:
        assert config.quality is not None
        self.config = config.quality
        self.alone = config.alone
        self.judges = judges
        self.watch = Watch(self.config.guard)

    def weight(self, moment: Moment) -> float:
        """Of the loss at this moment."""
        moved = moment.images_seen - self.alone * moment.num_images
        risen = min(1.0, max(0.0, moved / self.config.warmup_images))
        return self.config.weight * risen * self.watch.guard.weight

    def judged(
        self, restored: Tensor, truth: Tensor, identity: Tensor | None
    ) -> tuple[Tensor, Terms]:
        """1 - mean score of restored faces (B, 3, S, S), and figures for the guard.

        ``identity`` is the mean of 1 - cosine, where that is known.
        """
        assert self.judges.quality is not None
        score = self.judges.quality(restored).mean()
        with torch.no_grad():
            figures = {"score": score, "detail": detail_energy(restored)}
            figures["natural"] = detail_energy(truth)
        if identity is not None:
            figures["cosine"] = 1 - identity
        if self.judges.monitor is not None:
            with torch.no_grad():
                figures["monitor"] = self.judges.monitor(restored).mean()
        return 1 - score, figures

    def observe(self, terms: Mapping[str, Tensor]) -> dict[str, float]:
        """Follow a step, by its means over all workers; figures for the log."""
        return {"quality_allowed": self.watch.observe(terms)}

    def state_dict(self) -> dict[str, Any]:
        """What must be resumed."""
        return self.watch.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state_dict``."""
        self.watch.load_state_dict(state)
