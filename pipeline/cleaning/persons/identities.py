"""Who is who in a set: faces under the wrong name, one person under two, overlap with other sets.

Everything here rests on a net's embeddings, (128,) of length 1, whose cosine is about 0.7 for two
photos of a person and about 0 for strangers; docs/duplicates.md has what was measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline.cleaning.persons.neighbours import components, crossing_pairs, near_pairs
from pipeline.replica import Frozen

Embeddings = NDArray[np.float32]
_FEWEST = 4


class IdentityConfig(Frozen):
    """Where one person ends and another begins, in cosines.

    Attributes:
        max_outlier: An image below this, against the centre of the others of its person, is of
            somebody else.
        min_merge: Two persons whose centres are at least this close are one.
        min_cluster: Two images without a person must be this close to be linked ...
        num_neighbours: ... and each among so many nearest of the other; of a person's centre too
            only so many nearest others are told.
        min_overlap: An image of another set this close to one of ours is of the same person.
    """

    max_outlier: float = Field(0.3, ge=-1, le=1)
    min_merge: float = Field(0.65, gt=0, le=1)
    min_cluster: float = Field(0.6, gt=0, le=1)
    num_neighbours: int = Field(10, ge=1)
    min_overlap: float = Field(0.6, gt=0, le=1)


@dataclass(frozen=True, slots=True)
class Merge:
    """Two persons who look like one.

    Attributes:
        person: The one name, the lesser of the two.
        other: The other.
        likeness: Cosine of their centres.
    """

    person: str
    other: str
    likeness: float


@dataclass(frozen=True, slots=True, eq=False)
class Persons:
    """What identities say of N images.

    Attributes:
        group: (N,) number of the person, in order of first image; of those without a person the
            number of their cluster; -1 without an embedding and a person.
        likeness: (N,) cosine with the centre of the others of its person that are no outliers; nan
            without a person, an embedding, or others.
        is_outlier: (N,) whether it is somebody else. Of fewer than four images nobody can tell
            which is wrong: none is.
        merges: Persons who look like one, the likest first.
    """

    group: NDArray[np.int64]
    likeness: NDArray[np.float64]
    is_outlier: NDArray[np.bool_]
    merges: list[Merge]


def find_persons(
    person: Sequence[str | None],
    embeddings: Embeddings,
    has: NDArray[np.bool_],
    config: IdentityConfig,
) -> Persons:
    """Look for images under the wrong person, and persons who are one.

    Args:
        person: (N,) what a field says; None where none does.
        embeddings: (N, 128) of length 1.
        has: (N,) where an embedding is known.
        config: Thresholds.
    """
    num = len(person)
    likeness = np.full(num, np.nan)
    is_outlier = np.zeros(num, np.bool_)
    group = np.full(num, -1, np.int64)
    names, centres = [], []
    for number, (name, places) in enumerate(_places_of(person).items()):
        group[places] = number
        known = places[has[places]]
        if len(known) == 0:
            continue
        likeness[known], is_outlier[known], centre = _person(embeddings[known], config)
        names.append(name)
        centres.append(centre)
    merges = _merges(names, np.array(centres, np.float32).reshape(-1, embeddings.shape[1]), config)
    nameless = np.flatnonzero(has & (group < 0))
    group[nameless] = clusters(embeddings[nameless], config) + (group.max(initial=-1) + 1)
    return Persons(group, likeness, is_outlier, merges)


def _places_of(person: Sequence[str | None]) -> dict[str, NDArray[np.int64]]:
    places: dict[str, list[int]] = {}
    for place, name in enumerate(person):
        if name is not None:
            places.setdefault(name, []).append(place)
    return {name: np.array(each, np.int64) for name, each in places.items()}


def _person(
    faces: Embeddings, config: IdentityConfig
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.float64]]:
    """Likeness and outliers among one person's (K, 128), and the centre without them.

    The worst is taken out and the centre found anew, until none is below the threshold: a wrong
    face draws the centre to itself and makes right ones look odd.
    """
    rows = faces.astype(np.float64)
    inside = np.ones(len(rows), np.bool_)
    while True:
        likeness = _likeness(rows, inside)
        worst = int(np.where(inside, likeness, np.inf).argmin())
        told_apart = inside.sum() >= _FEWEST and likeness[worst] < config.max_outlier
        if not told_apart or not _agree(rows[inside], config):
            return likeness, ~inside, _unit(rows[inside].sum(axis=0))
        inside[worst] = False


def _likeness(rows: NDArray[np.float64], inside: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Cosine of each with the centre of the others inside; nan without others."""
    others = rows[inside].sum(axis=0) - rows * inside[:, None]
    length = np.linalg.norm(others, axis=1)
    found = np.einsum("ij,ij->i", rows, others) / np.maximum(length, 1e-9)
    return np.where(length > 1e-9, found, np.nan)


def _agree(rows: NDArray[np.float64], config: IdentityConfig) -> bool:
    """Whether most are one person, without which nobody is an outlier."""
    likeness = _likeness(rows, np.ones(len(rows), np.bool_))
    return bool(np.median(likeness) >= config.max_outlier)


def _unit(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(vector / max(float(np.linalg.norm(vector)), 1e-9), np.float64)


def _merges(names: Sequence[str], centres: Embeddings, config: IdentityConfig) -> list[Merge]:
    first, second, cosine = near_pairs(
        centres, config.min_merge, config.num_neighbours, mutual=False
    )
    found = [
        Merge(min(names[one], names[other]), max(names[one], names[other]), float(value))
        for one, other, value in zip(first, second, cosine, strict=True)
    ]
    return sorted(found, key=lambda merge: (-merge.likeness, merge.person, merge.other))


def clusters(embeddings: Embeddings, config: IdentityConfig) -> NDArray[np.int64]:
    """(N,) number of each face's cluster, in order of first face."""
    first, second, _ = near_pairs(
        embeddings, config.min_cluster, config.num_neighbours, mutual=True
    )
    return components(len(embeddings), first, second)


def overlaps(
    ours: Embeddings, theirs: Embeddings, config: IdentityConfig
) -> list[tuple[int, int, float]]:
    """Faces of another set that are of people in ours.

    Args:
        ours: (N, 128) of length 1; zeros are like nobody.
        theirs: (M, 128) likewise.
        config: `min_overlap` counts.

    Returns:
        (place in ours, place in theirs, cosine), sorted.
    """
    first, second, cosine = crossing_pairs(ours, theirs, config.min_overlap)
    return list(zip(first.tolist(), second.tolist(), cosine.tolist(), strict=True))
