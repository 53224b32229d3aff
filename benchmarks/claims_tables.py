"""The tables of benchmarks/claims.py: two arms side by side, and when a difference counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from card_tables import heading, table
from claims_damage import Bucket
from claims_figures import TIMES
from dial import SHARPNESS

from pipeline.metrics.intervals import mean_interval
from pipeline.metrics.pixels import Values
from pipeline.metrics.table import BY_NAME

Scores = Mapping[str, Values]

STUDENT = 4.302653  # of three seeds, two-sided 95 %
DIGITS = {"psnr": 2, "niqe-small": 2, SHARPNESS: 2, "identity": 3}
RULE = (
    "A difference counts where all three seeds agree in sign, and 0 lies outside the interval over "
    "seeds (t, n = 3: training chance) or the pooled one (the seeds' mean face by face, bootstrap "
    "over people: chance of the faces). Marks: ** both intervals, * the pooled one alone. All else "
    "is not decided at this budget."
)


class Contrast(NamedTuple):
    """Two arms of one claim."""

    after: str
    before: str

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.after} - {self.before}"


QUALITY = (
    Contrast("IDM, asked for 0.9", "IDM without a condition"),
    Contrast("IDM, asked for 0.9", "IDM, asked for unknown"),
    Contrast("IQP single, asked for 0.9", "IQP single without a condition"),
    Contrast("IQP single, asked for 0.9", "IQP single, asked for unknown"),
    Contrast("IQP dual, asked for 0.9", "IQP dual, asked for unknown"),
)
BOOKS = (
    Contrast("stage I, dual, common codes", "stage I, single"),
    Contrast("stage I, dual, both", "stage I, single"),
    Contrast("IQP dual, asked for 0.9", "IQP single, asked for 0.9"),
    Contrast("IQP dual, asked for unknown", "IQP single, asked for unknown"),
)
ROUNDS = (
    Contrast("IDM, round 1, real gate", "IDM, round 0"),
    Contrast("IDM, round 1, all beyond 0.6", "IDM, round 0"),
    Contrast("IDM, trained on the truth", "IDM, round 0"),
)


@dataclass(frozen=True, slots=True)
class Difference:
    """What one metric says of a contrast.

    Attributes:
        seeds: Mean difference over faces, of each seed.
        pooled: Interval of the seeds' mean, over faces.
        over_seeds: Interval of Student's t.
    """

    seeds: tuple[float, ...]
    pooled: tuple[float, float]
    over_seeds: tuple[float, float]

    @property
    def mean(self) -> float:
        """Over seeds."""
        return float(np.mean(self.seeds))

    @property
    def mark(self) -> str:
        """How sure it is; "" where it is not decided."""
        agree = len({math.copysign(1, value) for value in self.seeds}) == 1 and all(self.seeds)
        sure = [not low <= 0 <= high for low, high in (self.pooled, self.over_seeds)]
        if len(self.seeds) < 3 or not agree or not any(sure):
            return ""
        return "**" if all(sure) else "*" if sure[0] else "(t)"


def difference(after: Sequence[Values], before: Sequence[Values], drawn: Values) -> Difference:
    """Compare two arms, each with one value a face and seed."""
    each = [a - b for a, b in zip(after, before, strict=True)]
    seeds = tuple(float(np.nanmean(values)) for values in each)
    pooled = mean_interval(np.mean(each, axis=0), drawn)
    reach = STUDENT * float(np.std(seeds, ddof=1)) / math.sqrt(len(seeds)) if seeds[1:] else np.inf
    middle = float(np.mean(seeds))
    return Difference(seeds, (pooled.low, pooled.high), (middle - reach, middle + reach))


def verdict(metric: str, found: Difference) -> str:
    """In words."""
    if not found.mark:
        return "not decided"
    if metric == SHARPNESS:
        return f"{'more' if found.mean > 0 else 'less'} {found.mark}"
    better = (found.mean > 0) == (BY_NAME[metric].better != "lower")
    return f"{'better' if better else 'worse'} {found.mark}"


def contrast_table(
    contrast: Contrast, found: Mapping[str, Mapping[int, Scores]], drawn: Values
) -> str:
    """Every metric of a contrast; "" where one side was not trained."""
    both = [found.get(name, {}) for name in contrast]
    seeds = sorted(set(both[0]) & set(both[1]))
    if not seeds:
        return f"{contrast.title}: not trained.\n"
    rows = []
    for metric in both[0][seeds[0]]:
        after, before = ([arm[seed][metric] for seed in seeds] for arm in both)
        rows.append(_row(metric, after, before, drawn))
    head = ["", *(name.split(", ", 1)[-1] for name in (contrast.before, contrast.after))]
    head += ["difference, seed by seed", "pooled 95 %", "over seeds 95 %", "verdict"]
    return f"**{contrast.title}**\n\n{table(head, rows)}"


def _row(
    metric: str, after: Sequence[Values], before: Sequence[Values], drawn: Values
) -> list[str]:  # fmt: skip
    found, digits = difference(after, before, drawn), DIGITS.get(metric, 3)
    title = "sharpness" if metric == SHARPNESS else heading(metric)
    means = (f"{np.nanmean(side):.{digits}f}" for side in (before, after))
    told = " ".join(f"{value:+.{digits + 1}f}" for value in found.seeds)
    spans = (
        f"{low:+.{digits + 1}f} to {high:+.{digits + 1}f}" if math.isfinite(high - low) else "-"
        for low, high in (found.pooled, found.over_seeds)
    )
    return [title, *means, told, *spans, verdict(metric, found)]


def spread(values: Sequence[float], digits: int) -> str:
    """Mean and range over seeds: `31.2 (30.9 to 31.4)`."""
    low, high = min(values), max(values)
    return f"{np.mean(values):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def repeated_table(found: Mapping[int, Scores]) -> str:
    """What repeating without a gate does: means over faces, with the range over seeds."""
    columns: dict[str, tuple[Callable[[str, int], str], int]] = {
        "PSNR to the truth": (lambda kind, n: f"{kind} {n}", 2),
        "PSNR to what was given": (lambda kind, n: f"{kind} step {n}", 2),
        "LPIPS to the truth": (lambda kind, n: f"{kind} lpips {n}", 3),
        "identity": (lambda kind, n: f"{kind} identity {n}", 3),
        "sharpness": (lambda kind, n: f"{kind} {SHARPNESS} {n}", 2),
    }
    rows = []
    for kind in ("clean", "degraded"):
        for number in range(TIMES + 1):
            cells = []
            for name, digits in columns.values():
                key = name(kind, number)
                there = [
                    float(np.nanmean(scores[key])) for scores in found.values() if key in scores
                ]
                cells.append(spread(there, digits) if there else "-")
            rows.append([f"{kind}, {number} times", *cells])
    return table(["", *columns], rows)


def profit_table(found: Sequence[Sequence[Bucket]]) -> str:
    """Who comes closer to the truth, by damage: mean over seeds, with their range."""
    head = ["damage", "faces", "PSNR before", "after", "closer by PSNR", "LPIPS before", "after",
            "closer by LPIPS"]  # fmt: skip
    rows = []
    for buckets in zip(*found, strict=True):
        first = buckets[0]
        before = "equal" if math.isinf(first.psnr_before) else f"{first.psnr_before:.1f}"
        rows.append([
            first.name, str(first.num_faces), before, spread([b.psnr_after for b in buckets], 1),
            _percent([b.closer for b in buckets]), f"{first.lpips_before:.3f}",
            spread([b.lpips_after for b in buckets], 3),
            _percent([b.closer_lpips for b in buckets]),
        ])  # fmt: skip
    return table(head, rows)


def _percent(shares: Sequence[float]) -> str:
    return f"{np.mean(shares):.0%} ({min(shares):.0%} to {max(shares):.0%})"
