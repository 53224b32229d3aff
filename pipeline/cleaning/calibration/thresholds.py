"""From damaged and restored faces to the thresholds of a run: what is derived, and from what.

A trial is one good face of the set, damaged by a known amount and restored. Per level of damage:
how many came closer to the truth, who would pass for whom by the identity net, how much the
classic measures rose and the content moved where a face did come closer. docs/cleaning-evidence.md
shows the numbers behind the defaults.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline.cleaning.calibration.derive import longest_run, stranger_threshold, strangers, wilson
from pipeline.cleaning.calibration.levels import LEVELS
from pipeline.cleaning.calibration.telling import conclusion, table_lines
from pipeline.cleaning.tables import EMBEDDING_DIM, as_matrix
from pipeline.replica import Frozen

__all__ = [
    "CalibrateConfig", "Level", "Refusal", "Thresholds", "Trial", "derive", "table_lines",
]  # fmt: skip

Values = NDArray[np.float64]
Refusal = Literal["", "uncalibrated", "no_profit", "identity_unmeasurable"]
"""Why a level, or a whole set, is not restored; "" where it is."""


class CalibrateConfig(Frozen):
    """How the thresholds are derived.

    Attributes:
        min_trials: Fewer at a level say nothing about it.
        min_closer: Share that must come closer to the truth, for a level to be restored.
        min_closer_low: What the lower end of that share's 95 % interval must reach.
        far: Share of strangers that the identity check may let pass.
        confidence: Of the bound on it.
        min_genuine: Share of restored faces that must pass their own check, and of those that must
            be known again as the undamaged face, for identity to be measurable at a level.
        same_person: Two undamaged faces at least this alike count as one person, not as strangers.
        min_gain: Least rise of the classic measures, whatever the trials say.
        gaining: Share of the trials that came closer whose rise of the classic measures is enough.
        passing: Share of them whose change of content is not too much.
        content_slack: What the content may change beyond that, as a factor: other damage than ours
            moves it more.
        agreeing: Share of the trials that came closer whose classic quality, before, counts as
            damaged: the measures that verify must see the damage that the net saw.
        milder_below: Share of the next milder level's faces that may lie below the gate.
    """

    min_trials: int = Field(30, ge=2)
    min_closer: float = Field(0.9, gt=0.5, le=1)
    min_closer_low: float = Field(0.9, ge=0.5, le=1)
    far: float = Field(1e-3, gt=0, lt=0.5)
    confidence: float = Field(0.95, gt=0.5, lt=1)
    min_genuine: float = Field(0.9, gt=0, le=1)
    same_person: float = Field(0.6, gt=0, le=1)
    min_gain: float = Field(0.01, ge=0)
    gaining: float = Field(0.75, gt=0, le=1)
    passing: float = Field(0.975, gt=0.5, le=1)
    content_slack: float = Field(1.5, ge=1)
    agreeing: float = Field(0.75, gt=0, le=1)
    milder_below: float = Field(0.1, ge=0, le=0.5)


@dataclass(frozen=True, slots=True)
class Trial:
    """One good face, damaged at one level and restored.

    Attributes:
        key: Of the image.
        level: Of the damage, 1 to 5.
        quality: Of the damaged face by the net that gates.
        distance_before: Of the damaged face to the truth.
        distance_after: Of the restored one.
        classic_before: Classic quality of the damaged face.
        classic_after: Of the restored one.
        content_change: See `accept.content_change`.
        num_faces_after: Faces found on the restored face.
        identity_damaged: (128,) float32 of length 1, None without a face or an identity net.
        identity_restored: Likewise.
        person: Who it is, if a field of the set says so.
        shard: Of the image: keys may come again in another shard.
    """

    key: str
    level: int
    quality: float
    distance_before: float
    distance_after: float
    classic_before: float
    classic_after: float
    content_change: float
    num_faces_after: int
    identity_damaged: bytes | None
    identity_restored: bytes | None
    person: str | None = None
    shard: str = ""

    @property
    def place(self) -> tuple[str, str]:
        """Which image it is."""
        return self.shard, self.key


class Level(Frozen):
    """What was found at one level of damage. None where it could not be.

    Attributes:
        level: 1 to 5.
        count: Trials.
        quality: Median of the damaged faces; from level to level it never rises.
        classic: Likewise by the classic measures.
        distance_before: Median distance of the damaged faces to the truth.
        distance_after: Of the restored ones.
        num_closer: Trials that came closer to it.
        closer_low: Lower end of that share's 95 % interval.
        closer_high: Upper end.
        profits: Whether enough did.
        identity_threshold: Cosine with the original that a restored face has to reach.
        num_pairs: Pairs of strangers that it was derived from, of each kind.
        genuine: Median cosine of restored faces with their own damaged ones.
        genuine_share: Share of them that reach the threshold.
        known_share: Share of them known again as the undamaged face.
        measurable: Whether the identity net can tell people apart here.
        max_classic: Best classic quality that an original may have to count as damaged.
        min_gain: Least rise of the classic measures.
        max_change: Most change of content.
        refusal: Why images of this level are not restored, "" where they are.
    """

    level: int
    count: int
    quality: float | None = None
    classic: float | None = None
    distance_before: float | None = None
    distance_after: float | None = None
    num_closer: int = 0
    closer_low: float = 0.0
    closer_high: float = 1.0
    profits: bool = False
    identity_threshold: float | None = None
    num_pairs: int = 0
    genuine: float | None = None
    genuine_share: float = 0.0
    known_share: float = 0.0
    measurable: bool = False
    max_classic: float | None = None
    min_gain: float | None = None
    max_change: float | None = None
    refusal: Refusal = "uncalibrated"

    @property
    def closer(self) -> float:
        """Share of trials that came closer to the truth."""
        return self.num_closer / self.count if self.count else 0.0


class Thresholds(Frozen):
    """Everything that gate and verification take from the calibration.

    Attributes:
        levels: The five, mild to severe.
        keep_quality: At or above it an image stays as it is; None where nothing is restored.
        refusal: Why nothing is restored at all, "" where something is.
        conclusion: One sentence about it, for people.
        config: What it was derived with.
        facts: What the trials were made with, for people: the model, the distance to the truth.
        derived_from: What they are known by: another set or setting gives other thresholds.
    """

    levels: tuple[Level, ...]
    keep_quality: float | None
    refusal: Refusal
    conclusion: str
    config: CalibrateConfig
    facts: dict[str, str]
    derived_from: str = ""

    def at(self, level: int) -> Level:
        """What was found at a level, 1 to 5."""
        return self.levels[level - 1]

    def levels_of(self, quality: Values) -> NDArray[np.int64]:
        """The level that each quality stands for, (N,); 0 above all of them, and for NaN.

        The bounds lie halfway between the medians of neighbours, level 1's upper bound as far above
        its median as its lower bound below. What is worse than the worst level counts as that.
        """
        upper = _upper_bounds([level.quality for level in self.levels])
        below = quality[:, None] < upper[None, :]  # (N, 5), True up to the level and never after
        return np.asarray(below.sum(axis=1), np.int64)

    def level_of(self, quality: float) -> int | None:
        """The level that one quality stands for; None above all of them."""
        return int(self.levels_of(np.array([quality]))[0]) or None


def _upper_bounds(medians: Sequence[float | None]) -> Values:
    """Upper bound of each level; minus infinity where there is no median."""
    known = [median for median in medians if median is not None]
    if len(known) < len(medians) or len(known) < 2:
        return np.full(len(medians), -np.inf)
    points = np.array(known)
    between = (points[:-1] + points[1:]) / 2
    return np.concatenate([[2 * points[0] - between[0]], between])


# ---------------------------------------------------------------------------------- deriving


def derive(
    trials: Sequence[Trial], config: CalibrateConfig, facts: Mapping[str, str]
) -> Thresholds:
    """Derive all thresholds; the order of the trials does not matter.

    Args:
        trials: Of all levels; every image at most once a level.
        config: See there.
        facts: What they were made with, for people; it decides nothing.
    """
    ordered = sorted(trials, key=lambda trial: (trial.level, trial.place))
    by_level = {level.number: [t for t in ordered if t.level == level.number] for level in LEVELS}
    found = [_derive_level(level.number, by_level, config) for level in LEVELS]
    levels = _refuse(_monotone(found), config)
    refusal = _refusal_of_all(levels)
    keep = None if refusal else _keep_quality(levels, by_level, config)
    return Thresholds(
        levels=tuple(levels), keep_quality=keep, refusal=refusal, config=config, facts=dict(facts),
        conclusion=conclusion(levels, keep, refusal, config),
    )  # fmt: skip


def _derive_level(
    number: int, by_level: Mapping[int, Sequence[Trial]], config: CalibrateConfig
) -> Level:
    trials = by_level[number]
    count = len(trials)
    if count < config.min_trials:
        return Level(level=number, count=count)
    closer = [trial for trial in trials if trial.distance_after < trial.distance_before]
    low, high = wilson(len(closer), count)
    return Level(
        level=number, count=count,
        quality=_median(trial.quality for trial in trials),
        classic=_median(trial.classic_before for trial in trials),
        distance_before=_median(trial.distance_before for trial in trials),
        distance_after=_median(trial.distance_after for trial in trials),
        num_closer=len(closer), closer_low=low, closer_high=high,
        profits=len(closer) >= config.min_closer * count and low >= config.min_closer_low,
        **_identity(trials, by_level[1], config), **_bounds(closer, config),
    )  # fmt: skip


def _identity(
    trials: Sequence[Trial], mildest: Sequence[Trial], config: CalibrateConfig
) -> dict[str, Any]:
    """Who would pass for whom: the fields of `Level` that are about identity.

    Three kinds of strangers, because a restorer that goes astray may answer with a face of any of
    them: somebody else restored, somebody else as damaged, somebody else undamaged. The faces of
    level 1 stand for undamaged ones.
    """
    clean_of = {trial.place: trial.identity_damaged for trial in mildest}
    known = [
        t for t in trials if t.identity_damaged and t.identity_restored and clean_of.get(t.place)
    ]
    if len(known) < config.min_trials:
        return {}
    damaged, restored, clean = (
        as_matrix(packed, np.float32, EMBEDDING_DIM).astype(np.float64)
        for packed in (
            [t.identity_damaged for t in known],
            [t.identity_restored for t in known],
            [clean_of[t.place] for t in known],
        )
    )
    apart = strangers([t.person for t in known], clean @ clean.T >= config.same_person)

    def bound(handed_in: Values, asked_for: Values) -> float:
        likeness = handed_in @ asked_for.T
        return stranger_threshold(likeness, apart, far=config.far, confidence=config.confidence)

    threshold = max(bound(each, damaged) for each in (restored, damaged, clean))
    own, true = (restored * damaged).sum(axis=1), (restored * clean).sum(axis=1)
    return {
        "identity_threshold": threshold,
        "num_pairs": int(apart.sum()),
        "genuine": float(np.median(own)),
        "genuine_share": float((own >= threshold).sum() / len(trials)),
        "known_share": float((true >= bound(restored, clean)).sum() / len(trials)),
    }


def _bounds(closer: Sequence[Trial], config: CalibrateConfig) -> dict[str, float]:
    """What quality must gain and content may change, from the trials that came closer."""
    if not closer:
        return {}
    gains = [trial.classic_after - trial.classic_before for trial in closer]
    changes = [trial.content_change for trial in closer]
    before = [trial.classic_before for trial in closer]
    return {
        "max_classic": float(np.quantile(before, config.agreeing)),
        "min_gain": max(config.min_gain, float(np.quantile(gains, 1 - config.gaining))),
        "max_change": config.content_slack * float(np.quantile(changes, config.passing)),
    }


def _monotone(levels: Sequence[Level]) -> list[Level]:
    """More damage never counts as better quality, nor as easier to know a person by."""
    done: list[Level] = []
    for level in levels:
        change: dict[str, Any] = {}
        for name, worse in (("quality", min), ("classic", min), ("identity_threshold", max)):
            there = [getattr(each, name) for each in (*done[-1:], level)]
            known = [value for value in there if value is not None]
            change[name] = worse(known) if getattr(level, name) is not None else None
        done.append(level.model_copy(update=change))
    return done


def _refuse(levels: Sequence[Level], config: CalibrateConfig) -> list[Level]:
    """Why each level is not restored: no trials, no profit, or nobody can be told apart."""
    trusted = longest_run([level.profits for level in levels])
    done = []
    for level in levels:
        measurable = min(level.genuine_share, level.known_share) >= config.min_genuine
        refusal: Refusal = ""
        if level.count < config.min_trials:
            refusal = "uncalibrated"
        elif level.level - 1 not in trusted:
            refusal = "no_profit"
        elif not measurable:
            refusal = "identity_unmeasurable"
        done.append(level.model_copy(update={"measurable": measurable, "refusal": refusal}))
    return done


def _refusal_of_all(levels: Sequence[Level]) -> Refusal:
    """Why nothing is restored at all: the reason that came furthest.

    Where a level has no median nobody knows which level an image stands for.
    """
    if any(level.quality is None for level in levels):
        return "uncalibrated"
    reasons = {level.refusal for level in levels}
    order: tuple[Refusal, ...] = ("", "identity_unmeasurable", "no_profit", "uncalibrated")
    return next(reason for reason in order if reason in reasons)


def _keep_quality(
    levels: Sequence[Level], by_level: Mapping[int, Sequence[Trial]], config: CalibrateConfig
) -> float | None:
    """The gate: below it an image looks like the mildest level that is restored, or worse.

    Halfway between that level's median and its milder neighbour's, and lower where more than
    `milder_below` of the neighbour's faces would lie below that.
    """
    mildest = next(level for level in levels if not level.refusal)
    if mildest.level == 1 or mildest.quality is None:
        return mildest.quality
    milder = levels[mildest.level - 2]
    if milder.quality is None:
        return mildest.quality
    qualities = [trial.quality for trial in by_level[milder.level]]
    tail = float(np.quantile(qualities, config.milder_below))
    return min((mildest.quality + milder.quality) / 2, tail)


def _median(values: Iterable[float]) -> float:
    return float(np.median(list(values)))
