"""Keep, restore or leave out: one decision an image, with its reason.

What is looked at, the first that applies deciding:

1.  under a tombstone: reject, `forgotten`; no image in the record: keep, `no_image`
2.  refused or cut by the decoder: reject, `unusable`; not looked at: keep, `not_inspected`
3.  no face, several faces, too small: reject
4.  surely not the person that its field names: reject, `identity_outlier`
5.  a copy of a better image that stays: reject, `duplicate_*`
6.  at least the calibrated quality: keep, `good`; below it, or without one, but not among the
    worst of this set: keep, `not_worst`
7.  no identity net, or no calibration: keep, `no_identity_net`, `uncalibrated`
8.  it carries more detail than the model gives back: keep, `model_too_small`
9.  at its level of damage restoring does not bring faces closer to the truth, or the identity net
    cannot tell people apart: keep, `no_profit`, `identity_unmeasurable`
10. else: restore, `worst`

Last, and over all of them but the first two: what the user's file of keys says.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from pipeline.cleaning.calibration.thresholds import Thresholds
from pipeline.cleaning.copies.groups import Copy
from pipeline.cleaning.overrule import Overruled, Overrules, verdict_on
from pipeline.cleaning.persons.identities import Persons
from pipeline.cleaning.tables import CopyKind, Decision, Reason, Verdict
from pipeline.replica import Frozen

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


class GateConfig(Frozen):
    """What is restored, and what is left out.

    Attributes:
        worst_share: Only below this quantile of the set's own qualities anything is restored.
        min_images: A set of fewer usable images has no quantile to speak of.
        min_side_px: A crop with a shorter side is left out.
        more_detail: How far the resolution that an image's pixels carry may exceed the model's
            side, as a factor.
        flips: What becomes of mirrored copies.
        outliers: What becomes of images that are not who their field says.
    """

    worst_share: float = Field(0.25, ge=0, le=1)
    min_images: int = Field(20, ge=2)
    min_side_px: int = Field(48, ge=1)
    more_detail: float = Field(1.25, ge=1)
    flips: Literal["reject", "keep"] = "reject"
    outliers: Literal["reject", "keep"] = "reject"


UNREADABLE = ("refused", "truncated")
FIXED: tuple[Reason, ...] = ("forgotten", "unusable")
"""What no verdict of a person can change: there is nothing to keep or restore."""
VERDICTS: dict[Overruled, Verdict] = {"accept": "restore", "keep": "keep", "reject": "reject"}
DECISION_OF: dict[Reason, Verdict] = {
    "good": "keep", "not_worst": "keep", "no_profit": "keep", "identity_unmeasurable": "keep",
    "no_identity_net": "keep", "model_too_small": "keep", "uncalibrated": "keep",
    "no_image": "keep", "not_inspected": "keep", "worst": "restore",
    "no_face": "reject", "several_faces": "reject",
    "too_small": "reject", "unusable": "reject", "duplicate_exact": "reject",
    "duplicate_near": "reject", "duplicate_flip": "reject", "identity_outlier": "reject",
    "forgotten": "reject",
}  # fmt: skip
DUPLICATE: dict[CopyKind, Reason] = {
    "exact": "duplicate_exact", "near": "duplicate_near", "flip": "duplicate_flip",
}  # fmt: skip


@dataclass(slots=True)
class _Reasons:
    """A reason an image, filled from the first rule to the last; what has one keeps it."""

    words: NDArray[np.object_]

    def give(self, where: Mask, word: Reason) -> None:
        """Give those their reason that have none."""
        self.words[where & self.open] = word

    @property
    def open(self) -> Mask:
        """Which have none yet."""
        return np.asarray(self.words == "", np.bool_)


def decide(
    seen: pa.Table, copies: Sequence[Copy | None], persons: Persons | None,
    thresholds: Thresholds | None, overrules: Overrules, model_size: int, has_identity: bool,
    config: GateConfig,
) -> list[Decision]:  # fmt: skip
    """Decide about every image of the set.

    Args:
        seen: `shard` and columns of `Inspected`, sorted by shard and index.
        copies: One an image: how it is a copy, None alone.
        persons: Who is who; None without embeddings.
        thresholds: Of the calibration; None without one.
        overrules: What a person decided.
        model_size: Side on which the model works, in pixels.
        has_identity: Whether there is an identity net.
        config: See there.

    Returns:
        One decision an image, in that order.
    """
    reasons = _Reasons(np.full(len(seen), "", object))
    _unusable(seen, reasons, config)
    reasons.give(_outliers(persons, len(seen), config), "identity_outlier")
    copies = _led_by_living(copies, ~reasons.open | _overruled_out(seen, overrules))
    _duplicates(copies, reasons, config)
    quality = _floats(seen, "quality")
    bound = _worst_bound(quality[reasons.open], config)
    levels = np.zeros(len(seen), np.int64) if thresholds is None else thresholds.levels_of(quality)
    if thresholds is not None and thresholds.keep_quality is not None:
        reasons.give(quality >= thresholds.keep_quality, "good")
    reasons.give(~(quality < bound), "not_worst")
    if not has_identity:
        reasons.give(reasons.open, "no_identity_net")
    too_fine = _floats(seen, "native_side_px") > model_size * config.more_detail
    _not_restorable(reasons, levels, too_fine, thresholds)
    reasons.give(reasons.open, "worst")
    details = _details(seen, reasons, levels, bound, thresholds, model_size)
    return _rows(seen, reasons, details, levels, copies, persons, overrules)


# ---------------------------------------------------------------------------------- left out


def _unusable(seen: pa.Table, reasons: _Reasons, config: GateConfig) -> None:
    status = np.array(seen["status"].to_pylist(), object)
    reasons.give(status == "forgotten", "forgotten")
    reasons.give(status == "copied", "no_image")
    reasons.give(np.isin(status, UNREADABLE), "unusable")
    reasons.give(status == "failed", "not_inspected")
    faces = _floats(seen, "num_faces")
    reasons.give(~(faces >= 1), "no_face")
    reasons.give(faces > 1, "several_faces")
    side = np.fmin(_floats(seen, "width_px"), _floats(seen, "height_px"))
    reasons.give(side < config.min_side_px, "too_small")


def _floats(seen: pa.Table, name: str) -> Floats:
    """A column of numbers, NaN for null."""
    column = seen[name].cast(pa.float64()).to_numpy(zero_copy_only=False)
    return np.asarray(column, np.float64)


def _outliers(persons: Persons | None, count: int, config: GateConfig) -> Mask:
    if persons is None or config.outliers == "keep":
        return np.zeros(count, np.bool_)
    return np.asarray(persons.is_outlier, np.bool_)


def _overruled_out(seen: pa.Table, overrules: Overrules) -> Mask:
    """Which a person has left out: their copies then have no better copy."""
    if not overrules:
        return np.zeros(len(seen), np.bool_)
    places = zip(seen["shard"].to_pylist(), seen["key"].to_pylist(), strict=True)
    return np.array([verdict_on(overrules, *place) == "reject" for place in places], np.bool_)


def _led_by_living(copies: Sequence[Copy | None], gone: Mask) -> list[Copy | None]:
    """The same groups, each led by an image that stays.

    Where the best of a group is itself left out, its first copy that is not takes its place: a
    picture is not lost because its best copy was.
    """
    heirs: dict[int, tuple[int, bool]] = {}
    for place, copy in enumerate(copies):
        if copy is not None and gone[copy.of] and not gone[place]:
            heirs.setdefault(copy.of, (place, copy.kind == "flip"))
    if not heirs:
        return list(copies)
    return [
        copy if copy is None or copy.of not in heirs else _under(copy, place, *heirs[copy.of])
        for place, copy in enumerate(copies)
    ]


def _under(copy: Copy, place: int, leader: int, is_mirrored: bool) -> Copy:
    """A copy under another leader; to a mirrored one what was upright is the flip."""
    if place == leader:
        return replace(copy, kind=None, of=leader)
    kind = copy.kind or "near"
    if is_mirrored:
        kind = "near" if kind == "flip" else "flip"
    return replace(copy, kind=kind, of=leader)


def _duplicates(copies: Sequence[Copy | None], reasons: _Reasons, config: GateConfig) -> None:
    kinds = np.array([(copy.kind or "") if copy else "" for copy in copies], object)
    for kind, word in DUPLICATE.items():
        if kind != "flip" or config.flips == "reject":
            reasons.give(np.asarray(kinds == kind, np.bool_), word)


# ------------------------------------------------------------------------------------- kept


def _worst_bound(quality: Floats, config: GateConfig) -> float:
    """The set's own quantile; minus infinity where the set is too small to have one.

    Args:
        quality: Of its usable images that are nobody's copy; NaN where unknown.
        config: See there.
    """
    known = quality[~np.isnan(quality)]
    if len(known) < config.min_images:
        return -np.inf
    return float(np.quantile(known, config.worst_share))


def _not_restorable(
    reasons: _Reasons, levels: NDArray[np.int64], too_fine: Mask, thresholds: Thresholds | None
) -> None:
    if thresholds is None:
        reasons.give(reasons.open, "uncalibrated")
        return
    reasons.give(too_fine, "model_too_small")
    if thresholds.refusal:
        reasons.give(reasons.open, thresholds.refusal)
    for level in thresholds.levels:
        if level.refusal:
            reasons.give(levels == level.level, level.refusal)


# ------------------------------------------------------------------------------------ telling


def _details(
    seen: pa.Table, reasons: _Reasons, levels: NDArray[np.int64], bound: float,
    thresholds: Thresholds | None, model_size: int,
) -> list[str]:  # fmt: skip
    """One line an image where the reason does not say all."""
    details = np.full(len(seen), "", object)
    if bound == -np.inf:
        details[reasons.words == "not_worst"] = "too few usable images to call one the worst"
    if thresholds is not None and thresholds.refusal:
        details[reasons.words == thresholds.refusal] = thresholds.conclusion
    columns: dict[Reason, tuple[str, str]] = {
        "unusable": ("reason", "{}"),
        "several_faces": ("num_faces", "{} faces"),
        "model_too_small": ("native_side_px", f"carries {{:.0f}} px, the model gives {model_size}"),
        "identity_outlier": ("person", "not like the others of {}"),
    }
    for word, (column, text) in columns.items():
        places = np.flatnonzero(reasons.words == word)
        for place, value in zip(places, seen[column].take(places).to_pylist(), strict=True):
            details[place] = text.format(value)
    for place in np.flatnonzero(reasons.words == "too_small"):
        width, height = seen["width_px"][int(place)], seen["height_px"][int(place)]
        details[place] = f"{width} x {height} px"
    found: list[str] = details.tolist()
    return found


def _rows(
    seen: pa.Table, reasons: _Reasons, details: list[str], levels: NDArray[np.int64],
    copies: Sequence[Copy | None], persons: Persons | None, overrules: Overrules,
) -> list[Decision]:  # fmt: skip
    shards, keys = seen["shard"].to_pylist(), seen["key"].to_pylist()
    groups, likenesses = _persons_columns(persons, len(seen))
    rows = []
    for place, (index, word) in enumerate(
        zip(seen["index"].to_pylist(), reasons.words.tolist(), strict=True)
    ):
        shard, key, copy, detail = shards[place], keys[place], copies[place], details[place]
        verdict, reason = DECISION_OF[word], word
        if overrules and (said := verdict_on(overrules, shard, key)):
            verdict, reason, detail = _overruled(said, word, verdict, detail)
        is_copy = copy is not None and copy.kind is not None
        rows.append(
            Decision(
                index, key, verdict, reason, detail,
                level=int(levels[place]) or None,
                group=copy.group if copy else None,
                copy_kind=copy.kind if copy else None,
                copy_of=f"{shards[copy.of]}/{keys[copy.of]}" if copy and is_copy else None,
                copy_likeness=copy.likeness if copy and is_copy else None,
                identity_group=groups[place],
                identity_likeness=likenesses[place],
            )
        )  # fmt: skip
    return rows


def _overruled(
    said: Overruled, reason: Reason, verdict: Verdict, detail: str
) -> tuple[Verdict, Reason, str]:
    """What a person's word makes of a decision; nothing of one that it cannot change."""
    if reason in FIXED or (reason == "no_image" and said == "accept"):
        return verdict, reason, detail
    return VERDICTS[said], "overruled", f"{said}; the program: {verdict}, {reason}"


def _persons_columns(
    persons: Persons | None, count: int
) -> tuple[list[int | None], list[float | None]]:
    """Group and likeness of each image, None where there is none."""
    if persons is None:
        return [None] * count, [None] * count
    groups = [None if group < 0 else group for group in persons.group.tolist()]
    likenesses = [None if value != value else value for value in persons.likeness.tolist()]
    return groups, likenesses
