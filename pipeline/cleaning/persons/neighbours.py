"""Pairs of embeddings whose cosine is above a threshold, and what hangs together by them."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

Embeddings = NDArray[np.float32]
Places = NDArray[np.int64]
Found = tuple[Places, Places, NDArray[np.float32]]

_BLOCK = 2048
# Up to so many all are compared with all; of more, those that share a landmark.
_EXACT = 50_000
# Landmarks are rows at even distances; every row is listed with its nearest of them. Two photos of
# one person share one of 8 of 1,024 in 98.6 of 100 cases (docs/duplicates.md).
_NUM_LANDMARKS = 1024
_LISTED = 8
# So many finds wait before all but the nearest are dropped.
_MAX_WAITING = 10_000_000


def near_pairs(
    embeddings: Embeddings, min_cosine: float, num_neighbours: int, *, mutual: bool
) -> Found:
    """Pairs (first < second) of rows that are near each other, sorted, and their cosines.

    Args:
        embeddings: (N, D) of length 1.
        min_cosine: What a pair must reach.
        num_neighbours: Only so many nearest count for each row; of equals the earlier.
        mutual: Whether each must be among the nearest of the other, or one of them suffices.
    """
    num = len(embeddings)
    own, other, cosine = _nearest(embeddings, min_cosine, num_neighbours)
    code = np.minimum(own, other) * num + np.maximum(own, other)
    pair, at, times = np.unique(code, return_index=True, return_counts=True)
    kept = times == 2 if mutual else times > 0
    return pair[kept] // num, pair[kept] % num, cosine[at[kept]]


def _nearest(embeddings: Embeddings, min_cosine: float, num_neighbours: int) -> Found:
    """For each row its nearest above the threshold: (row, neighbour, cosine)."""
    waiting = [_none()]
    for places in _lists(embeddings):
        for start in range(0, len(places), _BLOCK):
            ours = places[start : start + _BLOCK]
            for other in range(start, len(places), _BLOCK):
                theirs = places[other : other + _BLOCK]
                cosines = embeddings[ours] @ embeddings[theirs].T
                for block, rows, columns in ((cosines, ours, theirs), (cosines.T, theirs, ours)):
                    row, column = _best(block, min_cosine, num_neighbours + 1)
                    found = rows[row], columns[column], block[row, column]
                    other_one = found[0] != found[1]
                    waiting.append((found[0][other_one], found[1][other_one], found[2][other_one]))
                if sum(len(part[0]) for part in waiting) > _MAX_WAITING:
                    waiting = [_pruned(waiting, len(embeddings), num_neighbours)]
    return _pruned(waiting, len(embeddings), num_neighbours)


def _none() -> Found:
    return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)


def _best(cosines: Embeddings, min_cosine: float, num: int) -> tuple[Places, Places]:
    """Where a block is above the threshold; of rows with many such the largest only."""
    rows, columns = np.nonzero(cosines >= min_cosine)
    if len(rows) <= num * len(cosines) or cosines.shape[1] <= num:
        return rows, columns
    columns = np.argpartition(-cosines, num - 1, axis=1)[:, :num]
    rows = np.repeat(np.arange(len(cosines)), num)
    kept = cosines[rows, columns.ravel()] >= min_cosine
    return rows[kept], columns.ravel()[kept]


def _pruned(parts: list[Found], num: int, num_neighbours: int) -> Found:
    """Each pair once, and the nearest of each row only."""
    own, other, cosine = (np.concatenate(column) for column in zip(*parts, strict=True))
    _, at = np.unique(own * num + other, return_index=True)
    own, other, cosine = own[at], other[at], cosine[at]
    order = np.lexsort((other, -cosine, own))
    own, other, cosine = own[order], other[order], cosine[order]
    rank = np.arange(len(own)) - np.searchsorted(own, own)
    kept = rank < num_neighbours
    return own[kept], other[kept], cosine[kept]


def _lists(embeddings: Embeddings) -> Iterator[Places]:
    """Rows to be compared with each other, places rising."""
    num = len(embeddings)
    if num <= _EXACT:
        yield np.arange(num)
        return
    landmarks = embeddings[np.arange(_NUM_LANDMARKS) * num // _NUM_LANDMARKS]
    nearest = np.concatenate(
        [
            np.argpartition(-(embeddings[start : start + _BLOCK] @ landmarks.T), _LISTED)[
                :, :_LISTED
            ]
            for start in range(0, num, _BLOCK)
        ]
    )
    order = np.argsort(nearest.ravel(), kind="stable")
    ends = np.cumsum(np.bincount(nearest.ravel(), minlength=_NUM_LANDMARKS))
    yield from np.split(order // _LISTED, ends[:-1])


def crossing_pairs(ours: Embeddings, theirs: Embeddings, min_cosine: float) -> Found:
    """All pairs between (N, D) and (M, D), sorted, and their cosines."""
    parts = [_none()]
    for start in range(0, len(ours), _BLOCK):
        for other in range(0, len(theirs), _BLOCK):
            cosines = ours[start : start + _BLOCK] @ theirs[other : other + _BLOCK].T
            rows, columns = np.nonzero(cosines >= min_cosine)
            parts.append((rows + start, columns + other, cosines[rows, columns]))
    first, second, cosine = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((second, first))
    return first[order], second[order], cosine[order]


def components(num: int, first: Places, second: Places) -> Places:
    """(N,) number of what hangs together, in order of its first member."""
    links = coo_matrix((np.ones(len(first), np.bool_), (first, second)), shape=(num, num))
    labels = connected_components(links, directed=False)[1]
    _, at, inverse = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.empty(len(at), np.int64)
    rank[np.argsort(at)] = np.arange(len(at))
    return np.asarray(rank[inverse], np.int64)
