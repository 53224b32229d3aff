"""The loss for how good a picture looks, of every stage that trains for it, and its guard."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vsp_model.train.batch import Batch
from vsp_model.train.guard import GuardConfig, Watch, detail_energy
from vsp_model.train.judges import Judges
from vsp_model.train.stage import Terms


class QualityLoss:
    """1 - score of restored pictures, until the guard has had enough.

    Attributes:
        watch: The guard, and the steps of its next look.
    """

    def __init__(self, guard: GuardConfig, judges: Judges) -> None:
        self.judges = judges
        self.watch = Watch(guard)

    @property
    def active(self) -> bool:
        """Whether there is something to judge; False for good once the guard has stopped."""
        return not self.watch.guard.stopped

    def judged(
        self, image: Tensor, batch: Batch, identity: Tensor | None = None
    ) -> tuple[Tensor, Terms]:
        """The loss, and figures for the guard.

        Args:
            image: Restored faces, (B, 3, S, S) in [-1, 1], float32.
            batch: With the true ones.
            identity: Mean of 1 - cosine to these, where that is known already.
        """
        assert self.judges.quality is not None
        score = self.judges.quality(image).mean()
        with torch.no_grad():
            figures = {"score": score, "detail": detail_energy(image)}
            figures["natural"] = detail_energy(batch.hq)
            if identity is None:
                identity = self.judges.identity(image, batch.hq, batch.points)
            if identity is not None:
                figures["cosine"] = 1 - identity
            if self.judges.monitor is not None:
                figures["monitor"] = self.judges.monitor(image).mean()
        return 1 - score, figures

    def observe(self, terms: Mapping[str, Tensor]) -> dict[str, float]:
        """Follow a step, by its means over all workers; figures for the log."""
        return {"quality_allowed": self.watch.observe(terms) if self.active else 0.0}

    def state_dict(self) -> dict[str, Any]:
        """What must be resumed."""
        return self.watch.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state_dict``."""
        self.watch.load_state_dict(state)
