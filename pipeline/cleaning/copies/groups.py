"""From pairs of copies to groups, each around its best image."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.cleaning.copies.find import Pairs
from pipeline.cleaning.tables import CopyKind

# Identity embeddings below this cosine are of different people: see docs/duplicates.md.
OTHER_PERSON = 0.4


@dataclass(frozen=True, slots=True)
class Copy:
    """An image's part in a group of copies.

    Attributes:
        group: Number of the group, from 0, in the order of the groups' first images.
        kind: How it is a copy of the best; None for the best itself.
        of: Place of the best.
        likeness: To the best: 1 the same; see `copies_confirm.likeness`.
    """

    group: int
    kind: CopyKind | None
    of: int
    likeness: float


# What an image has to do with another: (kind, likeness).
_Link = tuple[CopyKind, float]


def group_copies(
    sha256: Sequence[str | None],
    pairs: Pairs,
    rank: Sequence[tuple[float, ...]],
    identities: NDArray[np.float32] | None,
) -> list[Copy | None]:
    """Group copies around the best of each.

    The best image that is in no group yet takes to itself all that are confirmed copies of it, and
    so on: there are no chains, in which the ends are no copies of each other.

    Args:
        sha256: (N,) of each file; None where there is no image.
        pairs: Near copies and mirror images.
        rank: (N,) the larger the better; of equals the earlier.
        identities: (N, 128) of length 1, zeros where unknown. Two images whose cosine is below
            `OTHER_PERSON` are in no group together, whatever they look like.

    Returns:
        (N,) None for an image that is nobody's copy.
    """
    twins, links = _twins(sha256), _Links(pairs)
    best_of: dict[int, tuple[int, CopyKind | None, float]] = {}
    for best in sorted(range(len(sha256)), key=lambda place: _worst_last(rank[place], place)):
        if best in best_of:
            continue
        found = _copies_of(best, sha256, twins, links)
        free = {
            place: link
            for place, link in found.items()
            if place not in best_of and (link[0] == "exact" or _may_be_one(identities, best, place))
        }
        if free:
            best_of[best] = (best, None, 1.0)
            best_of |= {place: (best, *link) for place, link in free.items()}
    return _numbered(len(sha256), best_of)


def _worst_last(rank: tuple[float, ...], place: int) -> tuple[float, ...]:
    return (*(-value for value in rank), place)


def _twins(sha256: Sequence[str | None]) -> dict[str, list[int]]:
    """Places of the files that are there more than once."""
    places: dict[str, list[int]] = defaultdict(list)
    for place, digest in enumerate(sha256):
        if digest is not None:
            places[digest].append(place)
    return {digest: each for digest, each in places.items() if len(each) > 1}


class _Links:
    """Who is linked with whom, clumps spelled out."""

    def __init__(self, pairs: Pairs) -> None:
        self._clump = pairs.clump
        self._with: dict[int, dict[int, _Link]] = defaultdict(dict)
        self._members: dict[int, list[int]] = defaultdict(list)
        for member in np.flatnonzero(pairs.clump != np.arange(len(pairs.clump))).tolist():
            self._members[int(pairs.clump[member])].append(member)
        columns = (pairs.first, pairs.second, pairs.is_flip, pairs.likeness)
        for first, second, is_flip, likeness in zip(*map(np.ndarray.tolist, columns), strict=True):
            link: _Link = ("flip" if is_flip else "near", likeness)
            for own, other in ((first, second), (second, first)):
                # A face that is its own mirror image is a near copy first.
                self._with[own].setdefault(other, link)

    def of(self, place: int) -> Iterator[tuple[int, _Link]]:
        """Every image that is a copy of this one."""
        leader = int(self._clump[place])
        for other, link in self._with[leader].items():
            yield other, link
            for member in self._members.get(other, ()):
                yield member, link
        if leader != place:
            yield leader, self._with[place][leader]


def _copies_of(
    best: int, sha256: Sequence[str | None], twins: dict[str, list[int]], links: _Links
) -> dict[int, _Link]:
    """All copies of an image: files equal to it, its near copies, then mirror images."""
    found: dict[int, _Link] = {}
    same = twins.get(sha256[best] or "", [best])
    found |= dict.fromkeys(same, ("exact", 1.0))
    linked = {place: link for each in same for place, link in links.of(each)}
    for kind in ("near", "flip"):
        for place, link in linked.items():
            if link[0] == kind:
                for twin in twins.get(sha256[place] or "", [place]):
                    found.setdefault(twin, link)
    found.pop(best)
    return found


def _may_be_one(identities: NDArray[np.float32] | None, one: int, other: int) -> bool:
    if identities is None or not (identities[one].any() and identities[other].any()):
        return True
    return float(identities[one] @ identities[other]) >= OTHER_PERSON


def _numbered(
    num: int, best_of: dict[int, tuple[int, CopyKind | None, float]]
) -> list[Copy | None]:
    numbers: dict[int, int] = {}
    copies: list[Copy | None] = [None] * num
    for place in sorted(best_of):
        best, kind, likeness = best_of[place]
        number = numbers.setdefault(best, len(numbers))
        copies[place] = Copy(number, kind, best, likeness)
    return copies
