"""The loop train, clean, train again: what one round came to, and whether there is another.

Pure functions of a manifest and of figures; nothing here opens a file. The rules are those of
spec/idm.md 3.4: its stop rule is ours, the paper's (arXiv 2307.08996) is unknown.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import Field

from pipeline.metrics.pixels import Values
from pipeline.replica import Frozen
from vsp_model.randomness import generator_for

MANIFEST_COLUMNS = ("shard", "key", "outcome", "identity", "identity_threshold", "fields")
MAX_ROUNDS = 3
MAX_VALUES = 24  # a field of more different values is no attribute
_RESAMPLES = 1000


class StopConfig(Frozen):
    """When the loop ends. The defaults are those of the specification.

    Attributes:
        min_gain: Median gain of the held-out scorer over the accepted faces.
        min_accepted: Accepted faces as a share of the set.
        max_below: Accepted faces whose identity lies below their threshold, as a share of them.
        max_shift: By how much a spread or an attribute's histogram may shift.
    """

    min_gain: float = Field(0.005, ge=0)
    min_accepted: float = Field(0.02, ge=0, le=1)
    max_below: float = Field(0.01, ge=0, le=1)
    max_shift: float = Field(0.02, ge=0)


class Figures(Frozen):
    """What one round of cleaning came to. None: not measured, for want of a file or of faces.

    Attributes:
        round: From 0.
        cleaned_by: The model.
        num_images: Records with an image in the set that was cleaned.
        num_tried: Faces that were restored, accepted or not.
        num_accepted: Restored faces that were taken.
        num_rejected: Images that were left out: copies, no face ...
        scorer: What `gain` is of; it neither gated nor verified.
        gain: Median relative fall of the scorer's distance over the accepted faces; more is better.
        gain_low: 2.5th percentile of that median over resampled faces.
        gain_high: The 97.5th.
        below: Share of the accepted whose identity lies below its threshold.
        feature: What the distances are between; not comparable with a published FID.
        distance_before: Frechet's distance of the set to the held-out faces.
        distance_after: The same of the cleaned set.
        identity_before: Mean cosine distance of two faces' identity embeddings.
        identity_after: The same of the cleaned set.
        identity_held_out: The same of the held-out faces.
        spread_before: Mean squared distance of two faces' features.
        spread_after: The same of the cleaned set.
        spread_held_out: The same of the held-out faces.
        shifts: Attribute -> total variation of its histogram, all images against those that stay.
    """

    round: int
    cleaned_by: str = ""
    num_images: int
    num_tried: int
    num_accepted: int
    num_rejected: int
    scorer: str = ""
    gain: float | None = None
    gain_low: float | None = None
    gain_high: float | None = None
    below: float | None = None
    feature: str = ""
    distance_before: float | None = None
    distance_after: float | None = None
    identity_before: float | None = None
    identity_after: float | None = None
    identity_held_out: float | None = None
    spread_before: float | None = None
    spread_after: float | None = None
    spread_held_out: float | None = None
    shifts: dict[str, float] = Field(default_factory=dict)

    @property
    def accepted_share(self) -> float:
        """Of the whole set."""
        return self.num_accepted / self.num_images if self.num_images else 0.0


@dataclass(frozen=True, slots=True)
class Stop:
    """A rule that ends the loop.

    Attributes:
        rule: Its number in the specification, 1 to 6.
        words: Why, for people.
        refuses: The round did harm: what it cleaned is not trained on.
        is_idle: Nothing worth another training was changed.
    """

    rule: int
    words: str
    refuses: bool = False
    is_idle: bool = False


# ------------------------------------------------------------------------------ the stop rule


def stops(figures: Figures, num_rounds: int, config: StopConfig) -> list[Stop]:
    """The rules that end the loop after a round, in their order; none: there is another round.

    Args:
        figures: Of the round that has just cleaned.
        num_rounds: Rounds of cleaning that were asked for.
        config: Where the limits lie.
    """
    told = chain(
        _no_gain(figures, config),
        _few(figures, config),
        _other_people(figures, config),
        _no_nearer(figures),
        _enough(figures, num_rounds),
        _other_spread(figures, config),
    )
    return list(told)


def _no_gain(figures: Figures, config: StopConfig) -> Iterator[Stop]:
    if figures.gain is not None and figures.gain < config.min_gain:
        words = f"median gain of {figures.scorer} {figures.gain:+.2%}, under {config.min_gain:.1%}"
        yield Stop(1, words, is_idle=True)


def _few(figures: Figures, config: StopConfig) -> Iterator[Stop]:
    if figures.accepted_share < config.min_accepted:
        words = (
            f"{figures.num_accepted} of {figures.num_images} faces were accepted "
            f"({figures.accepted_share:.1%}), under {config.min_accepted:.0%}"
        )
        yield Stop(2, words, is_idle=True)


def _other_people(figures: Figures, config: StopConfig) -> Iterator[Stop]:
    if figures.below is not None and figures.below > config.max_below:
        words = (
            f"identity below its threshold for {figures.below:.1%} of the accepted, "
            f"over {config.max_below:.0%}"
        )
        yield Stop(3, words, refuses=True)


def _no_nearer(figures: Figures) -> Iterator[Stop]:
    before, after = figures.distance_before, figures.distance_after
    if before is not None and after is not None and figures.num_accepted and after >= before:
        words = (
            f"distance to the held-out faces no longer falls: {number(before)} to {number(after)}"
        )
        yield Stop(4, words, refuses=True)


def _enough(figures: Figures, num_rounds: int) -> Iterator[Stop]:
    if figures.round + 1 >= num_rounds:
        yield Stop(5, f"K = {num_rounds}: as many rounds as were asked for")


def _other_spread(figures: Figures, config: StopConfig) -> Iterator[Stop]:
    """Any shift, but one of a spread that leads towards the held-out faces' own.

    The specification has no such exception. But noise and blur are spread themselves: a cleaning
    that undid them took 8 % of a damaged set's spread away, and was on its way to the truth's.
    """
    excused = _towards_held_out(figures)
    for name, shift in diversity(figures).items():
        if abs(shift) > config.max_shift and name not in excused:
            words = f"{name} shifts by {shift:+.1%}, over {config.max_shift:.0%}"
            yield Stop(6, words, refuses=True)


def diversity(figures: Figures) -> dict[str, float]:
    """What the diversity guard looks at: relative shift of each spread, histograms' distances."""
    spreads = {
        name: after / before - 1
        for name, (before, after, _) in _spreads(figures).items()
        if before and after is not None
    }
    return spreads | {f"attribute {name}": shift for name, shift in figures.shifts.items()}


def _spreads(figures: Figures) -> dict[str, tuple[float | None, ...]]:
    """Each spread before, after, and of the held-out faces."""
    people = (figures.identity_before, figures.identity_after, figures.identity_held_out)
    features = (figures.spread_before, figures.spread_after, figures.spread_held_out)
    return {"spread of identities": people, "spread of features": features}


def _towards_held_out(figures: Figures) -> set[str]:
    """Spreads that have come nearer to that of the held-out faces."""
    return {
        name
        for name, (before, after, goal) in _spreads(figures).items()
        if before is not None and after is not None and goal is not None
        and abs(after - goal) < abs(before - goal)
    }  # fmt: skip


# ----------------------------------------------------------------------- out of the manifest


def counts(manifest: pa.Table) -> dict[str, int]:
    """The numbers of `Figures`, out of a manifest's column `outcome`."""
    found = Counter(manifest["outcome"].to_pylist())
    gone = found["forgotten"] + found["failed"]
    return {
        "num_images": manifest.num_rows - gone,
        "num_tried": found["restored"] + found["fallback"],
        "num_accepted": found["restored"],
        "num_rejected": found["rejected"],
    }


def accepted(manifest: pa.Table) -> set[tuple[str, str]]:
    """Shard and key of the faces that were restored and taken."""
    columns = (manifest[name].to_pylist() for name in ("shard", "key", "outcome"))
    return {(shard, key) for shard, key, outcome in zip(*columns, strict=True)
            if outcome == "restored"}  # fmt: skip


def share_below(
    manifest: pa.Table, likeness: Mapping[tuple[str, str], float] | None = None
) -> float | None:
    """Share of the accepted whose identity lies below its threshold; None without any.

    Args:
        manifest: Of the round.
        likeness: By shard and key, the cosine with the first original, where the round did not
            begin with that; None: the manifest's own.
    """
    names = ("shard", "key", "outcome", "identity", "identity_threshold")
    below = []
    for row in manifest.select(list(names)).to_pylist():
        own = row["identity"]
        value = own if likeness is None else likeness.get((row["shard"], row["key"]))
        if row["outcome"] == "restored" and value is not None:
            below.append(row["identity_threshold"] is None or value < row["identity_threshold"])
    return float(np.mean(below)) if below else None


def attribute_shifts(manifest: pa.Table) -> dict[str, float]:
    """Total variation, 0 to 1, of each attribute's histogram: all images against those that stay.

    An attribute is a metadata field of at most `MAX_VALUES` different values over the set.
    """
    everyone: dict[str, Counter[str]] = defaultdict(Counter)
    staying: dict[str, Counter[str]] = defaultdict(Counter)
    columns = (manifest[name].to_pylist() for name in ("fields", "outcome"))
    for text, outcome in zip(*columns, strict=True):
        for name, value in _attributes(text).items():
            everyone[name][value] += 1
            staying[name][value] += outcome not in ("rejected", "forgotten")
    return {
        name: _variation(everyone[name], staying[name])
        for name in sorted(everyone)
        if 2 <= len(everyone[name]) <= MAX_VALUES
    }


def _attributes(text: str | None) -> dict[str, str]:
    fields: Mapping[str, Any] = json.loads(text) if text else {}
    return {n: str(v) for n, v in fields.items() if isinstance(v, str | int | bool)}


def _variation(first: Counter[str], second: Counter[str]) -> float:
    totals = first.total(), second.total()
    if not all(totals):
        return 1.0
    return sum(abs(first[v] / totals[0] - second[v] / totals[1]) for v in first) / 2


def median_gain(before: Values, after: Values) -> dict[str, float | None]:
    """`gain` of `Figures` with its interval: median of 1 - after / before, face by face.

    Args:
        before: (N,) the scorer's distances of the originals, above 0; NaN for none.
        after: (N,) of the restored faces.
    """
    gains = 1 - after / before
    gains = gains[np.isfinite(gains)]
    if not len(gains):
        return {"gain": None, "gain_low": None, "gain_high": None}
    stream = generator_for(0, "median gain", "rounds")
    drawn = stream.integers(len(gains), size=(_RESAMPLES, len(gains)))
    low, high = np.percentile(np.median(gains[drawn], axis=1), (2.5, 97.5))
    return {"gain": float(np.median(gains)), "gain_low": float(low), "gain_high": float(high)}


# ---------------------------------------------------------------------------------- in a table

HEAD = (
    "round", "cleaned by", "images", "tried", "accepted", "left out", "median gain",
    "identity below", "distance to held-out", "identities", "features", "attributes",
)  # fmt: skip


def row_of(figures: Figures) -> list[str]:
    """A round's cells under `HEAD`; "-" for what was not measured."""
    distances = (figures.distance_before, figures.distance_after)
    shifts = diversity(figures)
    return [
        str(figures.round),
        figures.cleaned_by,
        f"{figures.num_images:,}",
        f"{figures.num_tried:,}",
        f"{figures.num_accepted:,} ({figures.accepted_share:.1%})",
        f"{figures.num_rejected:,}",
        _gain_cell(figures),
        "-" if figures.below is None else f"{figures.below:.1%}",
        "-" if None in distances else " to ".join(map(number, distances)),
        *(_shift_cell(shifts.get(f"spread of {what}")) for what in ("identities", "features")),
        _shift_cell(max(figures.shifts.values(), default=None)),
    ]


def _gain_cell(figures: Figures) -> str:
    if figures.gain is None:
        return "-"
    return f"{figures.gain:+.1%} ({figures.gain_low:+.1%} to {figures.gain_high:+.1%})"


def _shift_cell(shift: float | None) -> str:
    return "-" if shift is None else f"{shift:+.1%}"


def number(value: float | None, *, sign: bool = False) -> str:
    """A distance for people: four figures, thousands in full; "-" for none."""
    if value is None:
        return "-"
    mark = "+" if sign else ""
    return f"{value:{mark},.0f}" if abs(value) >= 1000 else f"{value:{mark}.4g}"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table as Markdown; a bar in a cell is spelled out."""
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in lines]
