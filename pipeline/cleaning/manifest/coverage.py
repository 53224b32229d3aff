"""Whom a cleaning run kept: the set before and after it, group by group.

"Before" are the images that could be read, "after" those that are in the output. For each
attribute: the share of each group before and after, the difference with a 95 % interval, and how
much of the group was restored and left out. The images count as drawn independently: where many
are of one person, the true intervals are wider.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.cleaning.manifest.attributes import COLUMNS, Axis, Tally, tally

SMALL = 10
"""Groups of fewer images say little; they are marked, and never called unequal."""
BY_DESIGN = ("quality",)
"""Attributes that the gate goes by: their groups are counted, and not called unequal."""
CONFIDENCE = 0.95

__all__ = ["COLUMNS", "Attribute", "Coverage", "Group", "Range", "coverage", "lines", "merged"]


@dataclass(frozen=True, slots=True)
class Range:
    """A share, or a difference of shares, with its 95 % interval; shares from 0 to 1."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Group:
    """The images of one group, such as an age or a kind of file.

    Attributes:
        label: Its name.
        before: Images that could be read.
        after: Images in the output.
        share_before: Of all that could be read.
        share_after: Of all in the output; 0 where there are none.
        difference: The latter minus the former.
        num_restored: Images before whose restored face was taken.
        num_fallback: Images before whose restored face was not accepted.
        num_rejected: Images before that were left out.
        restored: Share of the group that was restored; None for none before.
        rejected: Share of the group that was left out; None for none before.
        is_small: Whether it has fewer than `SMALL` images before.
        unequal: What happened to this group more or less often than chance explains among so many
            groups: "rejected more", "rejected less", "restored more", "restored less".
    """

    label: str
    before: int
    after: int
    share_before: float
    share_after: float
    difference: Range
    num_restored: int
    num_fallback: int
    num_rejected: int
    restored: Range | None
    rejected: Range | None
    is_small: bool
    unequal: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Attribute:
    """One way to divide the set.

    Attributes:
        name: The manifest's column, or the field's name.
        title: For people.
        is_field: Whether it is from the set's own metadata.
        follows: Whether a group is where an image's own group after the cleaning counts: an image
            that was restored may have another quality than before.
        groups: In their own order, or the largest first.
        missing: Images before of which it is not known; they are in no group.
    """

    name: str
    title: str
    is_field: bool
    follows: bool
    groups: tuple[Group, ...]
    missing: int


@dataclass(frozen=True, slots=True)
class Coverage:
    """A set before and after its cleaning.

    Attributes:
        total: Rows of the manifest.
        before: Images that could be read.
        after: Images in the output.
        restored: How many of these are restored.
        fallback: How many kept their original because the restored face was not accepted.
        rejected: Images that could be read and were left out.
        attributes: Those known to the program first, then the set's own.
    """

    total: int
    before: int
    after: int
    restored: int
    fallback: int
    rejected: int
    attributes: tuple[Attribute, ...]


def coverage(table: pa.Table) -> Coverage:
    """Compare a set before and after its cleaning.

    Args:
        table: A manifest, or its columns `COLUMNS`.
    """
    return merged([table])


def merged(tables: Iterable[pa.Table]) -> Coverage:
    """As `coverage`, of a manifest in parts, of which one is held at a time."""
    found = tally(tables)
    attributes = (_attribute(axis, found) for axis in found.axes)
    return Coverage(
        total=found.total,
        before=found.before,
        after=found.after,
        restored=found.outcomes["restored"],
        fallback=found.outcomes["fallback"],
        rejected=found.outcomes["rejected"],
        attributes=tuple(each for each in attributes if len(each.groups) > 1),
    )


def lines(found: Coverage) -> list[str]:
    """What is to be told on a terminal: counts, and every group that fared unlike the others."""
    told = [
        f"{found.before:,} images could be read; {found.after:,} are in the output: "
        f"{found.restored:,} restored, {found.fallback:,} restored and not accepted; "
        f"{found.rejected:,} left out"
    ]
    for attribute in found.attributes:
        for group in attribute.groups:
            if group.unequal:
                told.append(f"{attribute.title}, {group.label}: {_told(group)}")
    if len(told) == 1:
        told.append("no group was restored or left out more or less often than chance explains")
    return told


def _told(group: Group) -> str:
    parts = [f"{group.before:,} images, {', '.join(group.unequal)} often than the rest"]
    for word, share in (("restored", group.restored), ("left out", group.rejected)):
        if share is not None:
            parts.append(f"{word} {share.value:.1%} [{share.low:.1%}, {share.high:.1%}]")
    return "; ".join(parts)


# --------------------------------------------------------------------------------- statistics


def _attribute(axis: Axis, found: Tally) -> Attribute:
    sizes = axis.counts.sum(axis=(1, 2)) + axis.dropped
    known = np.flatnonzero(sizes + axis.counts.sum(axis=(0, 2))).tolist()
    groups = tuple(_group(axis, number, len(known)) for number in known)
    missing = found.before - int(sizes.sum())
    return Attribute(axis.name, axis.title, axis.is_field, axis.follows, groups, missing)


def _group(axis: Axis, number: int, num_groups: int) -> Group:
    counts, dropped = axis.counts, axis.dropped
    before, after = int(counts[number].sum() + dropped[number]), int(counts[:, number].sum())
    total, kept = int(counts.sum() + dropped.sum()), int(counts.sum())
    hits = {
        "rejected": (int(axis.rejected[number]), int(axis.rejected.sum())),
        "restored": (int(counts[number, :, 1].sum()), int(counts[:, :, 1].sum())),
    }
    is_small = before < SMALL
    unequal = (
        [] if is_small or axis.name in BY_DESIGN
        else [_unequal(ours, before, theirs - ours, total - before, num_groups)
              for ours, theirs in hits.values()]
    )  # fmt: skip
    return Group(
        label=axis.labels[number],
        before=before,
        after=after,
        share_before=before / max(1, total),
        share_after=after / max(1, kept),
        difference=_difference(counts, dropped, number),
        num_restored=hits["restored"][0],
        num_fallback=int(counts[number, :, 2].sum()),
        num_rejected=hits["rejected"][0],
        restored=_rate(hits["restored"][0], before),
        rejected=_rate(hits["rejected"][0], before),
        is_small=is_small,
        unequal=tuple(f"{w} {how}" for w, how in zip(hits, unequal, strict=False) if how),
    )


def _difference(counts: NDArray[np.int64], dropped: NDArray[np.int64], number: int) -> Range:
    """Share after minus share before, by linearisation of the ratio over the same images.

    An image adds k (x' - p')/k̄ - (x - p) to the difference: x, x' whether it is in the group before
    and after, k whether it is in the output, k̄ the share that is, p, p' the two shares. Only six
    kinds of images exist, so their counts are all that is needed.
    """
    stays = counts.sum(axis=2)
    both = int(stays[number, number])
    left, came = int(stays[number].sum()) - both, int(stays[:, number].sum()) - both
    kept, gone, lost = int(stays.sum()), int(dropped.sum()), int(dropped[number])
    total = kept + gone
    if not kept:
        return Range(0.0, 0.0, 0.0)
    share_before, share_after = (both + left + lost) / total, (both + came) / kept
    kinds = (  # how many, in the group before, after, in the output
        (both, 1, 1, 1), (left, 1, 0, 1), (came, 0, 1, 1), (kept - both - left - came, 0, 0, 1),
        (lost, 1, 0, 0), (gone - lost, 0, 0, 0),
    )  # fmt: skip
    squares = sum(
        n * (k * (x_after - share_after) * total / kept - (x - share_before)) ** 2
        for n, x, x_after, k in kinds
    )
    value = share_after - share_before
    reach = _z(CONFIDENCE) * squares**0.5 / total
    return Range(value, max(-1.0, value - reach), min(1.0, value + reach))


def _rate(hits: int, count: int, confidence: float = CONFIDENCE) -> Range | None:
    """A share with its interval (Wilson, 1927)."""
    if not count:
        return None
    z2 = _z(confidence) ** 2
    share = hits / count
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    reach = (z2 * (share * (1 - share) / count + z2 / (4 * count**2))) ** 0.5 / (1 + z2 / count)
    return Range(share, max(0.0, middle - reach), min(1.0, middle + reach))


def _unequal(hits: int, count: int, other_hits: int, others: int, num_groups: int) -> str:
    """Whether a share differs from that of all others: "more", "less" or "".

    The level is shared by an attribute's groups. The interval of the difference is Newcombe's
    (1998, method 10): of two Wilson intervals.
    """
    confidence = 1 - (1 - CONFIDENCE) / num_groups
    ours, theirs = _rate(hits, count, confidence), _rate(other_hits, others, confidence)
    if ours is None or theirs is None:
        return ""
    value = ours.value - theirs.value
    down = ((ours.value - ours.low) ** 2 + (theirs.high - theirs.value) ** 2) ** 0.5
    up = ((ours.high - ours.value) ** 2 + (theirs.value - theirs.low) ** 2) ** 0.5
    if value - down > 0:
        return "more"
    return "less" if value + up < 0 else ""


def _z(confidence: float) -> float:
    """Standard deviations that a two-sided interval reaches."""
    return NormalDist().inv_cdf((1 + confidence) / 2)
