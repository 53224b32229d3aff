"""How a restorer learns its quality condition: what each face is said to be worth, and a score."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from vsp_model.condition import QualityCondition
from vsp_model.config import Config
from vsp_model.randomness import generator_for
from vsp_model.train.batch import Batch
from vsp_model.train.config import AdamConfig
from vsp_model.train.guard import GuardConfig
from vsp_model.train.stage import Moment

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

    def quality_weight(self, moment: Moment) -> float:
        """Of the loss for the score, which rises from where the restorer begins to move."""
        if self.quality is None:
            return 0.0
        moved = moment.images_seen - self.alone * moment.num_images
        return self.quality.weight * min(1.0, max(0.0, moved / self.quality.warmup_images))


def told_qualities(condition: QualityCondition, batch: Batch, seed: int) -> Tensor:
    """Percentile of each true face, NaN where it is unknown or withheld, (B,)."""
    chances = [generator_for(seed, stream, "withheld").random() for stream in batch.streams]
    quality = condition.percentile(batch.quality)
    return condition.withheld(quality, torch.tensor(chances, device=quality.device))
