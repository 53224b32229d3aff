"""What may be asked of a restorer beside the face itself, and what its model makes of it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from vsp_model.condition import ConditionConfig, Dial, Percentile
from vsp_model.config import Config


class Ask(Config):
    """Wishes; None leaves each to the model.

    Attributes:
        quality: Percentile of the training scores that is asked for, 0 to 1, or "unknown", which
            NaN says, too.
        guidance: How far beyond what the condition says, 1 not at all; see ``Dial``.
        fidelity: IQP: 0 the codes' face, 1 closest to the input (w of CodeFormer).
        steps: IDM: steps of the sampler.
        sampler: IDM: which.
        eta: IDM: noise of the DDIM sampler, 0 none.
        start: IDM: from pure noise, or from an estimate that is noised to ``t0``.
        t0: IDM: how far an estimate is noised, 0 to 1 of the schedule.
    """

    quality: Percentile | None = None
    guidance: float = Field(1.0, ge=0, le=20)
    fidelity: float | None = Field(None, ge=0, le=1)
    steps: int | None = Field(None, ge=1)
    sampler: Literal["ddim", "ancestral"] | None = None
    eta: float | None = Field(None, ge=0, le=1)
    start: Literal["noise", "estimate"] | None = None
    t0: float | None = Field(None, gt=0, le=1)

    def beside(self, *known: str) -> list[str]:
        """Names of wishes that are set and not among those that a model knows."""
        default = Ask()
        names = type(self).model_fields
        return [n for n in names if n not in known and getattr(self, n) != getattr(default, n)]


def dial_of(
    ask: Ask, condition: ConditionConfig | None, kind: str, *, scored: bool = True
) -> Dial | None:
    """The dial's setting; None for a model that has none.

    Args:
        ask: What is wanted.
        condition: Of the model.
        kind: Of the model, for the message.
        scored: ``QualityCondition.scored``; without scores even the model's own default is unknown.

    Raises:
        ValueError: if a quality is none, or is asked of a model that has learnt none.
    """
    if condition is None:
        if ask.quality is not None or ask.guidance != 1.0:
            raise ValueError(f"quality: this {kind} model was trained without a quality condition")
        return None
    if not scored:
        if ask.quality not in (None, "unknown") or ask.guidance != 1.0:
            raise ValueError(
                f"quality: this {kind} model was trained without scores; it knows unknown alone"
            )
        return Dial()
    wanted = condition.default if ask.quality is None else ask.quality
    if wanted == "unknown":
        if ask.guidance != 1.0:
            raise ValueError("guidance: leads from unknown to a quality; ask for a quality, too")
        return Dial()
    value = float(wanted)
    if not 0 <= value <= 1:
        raise ValueError(f"quality: {value:g}, expected 0 to 1 or unknown")
    return Dial(value, ask.guidance)


def refuse_others(ask: Ask, kind: str, *known: str) -> None:
    """Refuse wishes that a model of this kind does not know.

    Raises:
        ValueError: naming the first.
    """
    others = ask.beside("quality", "guidance", *known)
    if others:
        raise ValueError(f"{others[0]}: not known to {kind} models")
