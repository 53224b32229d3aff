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


def close_pairs(embeddings: Embeddings, min_cosine: float) -> Found:
    """All pairs (first < second) of (N, D) vectors of length 1, sorted, and their cosines."""
    return _joined(
        found
        for start in range(0, len(embeddings), _BLOCK)
        for found in _against(embeddings, embeddings, start, start, min_cosine)
    )


def crossing_pairs(ours: Embeddings, theirs: Embeddings, min_cosine: float) -> Found:
    """All pairs between (N, D) and (M, D), sorted, and their cosines."""
    return _joined(
        found
        for start in range(0, len(ours), _BLOCK)
        for found in _against(ours, theirs, start, 0, min_cosine, crosses=True)
    )


def _against(
    ours: Embeddings,
    theirs: Embeddings,
    start: int,
    other_start: int,
    min_cosine: float,
    crosses: bool = False,
) -> Iterator[Found]:
    """Pairs of one block of ours with theirs from a place on."""
    block = ours[start : start + _BLOCK]
    for other in range(other_start, len(theirs), _BLOCK):
        cosines = block @ theirs[other : other + _BLOCK].T
        rows, columns = np.nonzero(cosines >= min_cosine)
        kept = np.full(len(rows), True) if crosses else rows + start < columns + other
        rows, columns = rows[kept], columns[kept]
        yield rows + start, columns + other, cosines[rows, columns]


def _joined(parts: Iterator[Found]) -> Found:
    found = [part for part in parts if len(part[0])]
    if not found:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)
    first, second, cosine = (np.concatenate(column) for column in zip(*found, strict=True))
    order = np.lexsort((second, first))
    return first[order], second[order], cosine[order]


def mutual(
    num: int, first: Places, second: Places, cosine: NDArray[np.float32], num_neighbours: int
) -> tuple[Places, Places]:
    """Keep the pairs in which each is among the nearest of the other; of equals the earlier."""
    own, other = np.concatenate([first, second]), np.concatenate([second, first])
    order = np.lexsort((other, -np.concatenate([cosine, cosine]), own))
    starts = np.searchsorted(own[order], np.arange(num))
    rank = np.empty(len(own), np.int64)
    rank[order] = np.arange(len(own)) - starts[own[order]]
    near = (rank < num_neighbours).reshape(2, -1).all(axis=0)
    return first[near], second[near]


def components(num: int, first: Places, second: Places) -> Places:
    """(N,) number of what hangs together, in order of its first member."""
    links = coo_matrix((np.ones(len(first), np.bool_), (first, second)), shape=(num, num))
    labels = connected_components(links, directed=False)[1]
    _, at, inverse = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.empty(len(at), np.int64)
    rank[np.argsort(at)] = np.arange(len(at))
    return np.asarray(rank[inverse], np.int64)
