"""Which of a million hashes are near each other: banding over sorted keys, nothing missed.

A hash of 64 bits is cut into three bands. Hashes that differ in at most d bits differ in at most
d // 3 bits of one band; so looking up every band, with all such changes of it, in a table sorted by
that band finds every pair within d bits. Each find is then counted over all 64 bits.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Places = NDArray[np.int64]

# (first bit, number of bits) of the bands.
BANDS = ((0, 21), (21, 21), (42, 22))
# So many finds are counted at once: it bounds the memory, whatever the hashes.
_MAX_FINDS = 2_000_000


@dataclass(frozen=True, slots=True, eq=False)
class Band:
    """All hashes, sorted by one band of them.

    Attributes:
        shift: First bit.
        num_bits: Width.
        hashes: (N,) in the order of the band.
        places: (N,) where each of them comes from.
        starts: (2**num_bits + 1,) where a band's value begins in both.
    """

    shift: int
    num_bits: int
    hashes: Hashes
    places: Places
    starts: NDArray[np.int32]

    def keys(self, hashes: Hashes) -> NDArray[np.int32]:
        """The band of each hash."""
        mask = np.uint64((1 << self.num_bits) - 1)
        return ((hashes >> np.uint64(self.shift)) & mask).astype(np.int32)


def tables(hashes: Hashes, places: Places) -> list[Band]:
    """Sort hashes (N,) of given places by each band."""
    return [_table(hashes, places, shift, num_bits) for shift, num_bits in BANDS]


def _table(hashes: Hashes, places: Places, shift: int, num_bits: int) -> Band:
    mask = np.uint64((1 << num_bits) - 1)
    keys = ((hashes >> np.uint64(shift)) & mask).astype(np.int32)
    order = np.argsort(keys, kind="stable")
    counts = np.bincount(keys, minlength=1 << num_bits)
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return Band(shift, num_bits, hashes[order], places[order], starts)


@cache
def changes(num_bits: int, radius: int) -> tuple[int, ...]:
    """All numbers of `num_bits` bits of which at most `radius` are set."""
    sets = (itertools.combinations(range(num_bits), num_set) for num_set in range(radius + 1))
    return tuple(sum(1 << bit for bit in each) for each in itertools.chain(*sets))


def near(
    bands: list[Band], asked: Hashes, sure_bits: int, max_bits: int
) -> Iterator[tuple[Places, Places]]:
    """Find all hashes within `sure_bits` of those asked for, and most within `max_bits`.

    Args:
        bands: What `tables` made.
        asked: (Q,) hashes.
        sure_bits: Pairs that differ in so many bits are all found.
        max_bits: Of pairs that differ in up to so many those are found that the bands meet: seven
            of eight at 6 bits and two of three at 7 where 5 are sure.

    Yields:
        Indices into `asked` and places; a pair may come up to three times.
    """
    for band in bands:
        keys = band.keys(asked)
        for change in changes(band.num_bits, sure_bits // len(BANDS)):
            changed = keys ^ np.int32(change)
            first = band.starts[changed]
            count = band.starts[changed + 1] - first
            found = np.flatnonzero(count)
            yield from _counted(band, asked, max_bits, found, first[found], count[found])


def _counted(
    band: Band, asked: Hashes, max_bits: int, rows: Places, first: Places, count: Places
) -> Iterator[tuple[Places, Places]]:
    """Keep the finds that are near over all bits."""
    for part in _parts(count):
        many = count[part].astype(np.int64)
        row = np.repeat(rows[part], many)
        within = np.arange(len(row)) - np.repeat(np.cumsum(many) - many, many)
        at = np.repeat(first[part].astype(np.int64), many) + within
        kept = np.bitwise_count(band.hashes[at] ^ asked[row]) <= max_bits
        yield row[kept], band.places[at[kept]]


def _parts(count: Places) -> Iterator[slice]:
    """Cut rows so that each part finds about `_MAX_FINDS`."""
    if len(count) == 0:
        return
    ends = np.cumsum(count, dtype=np.int64)
    cuts = np.searchsorted(ends, np.arange(_MAX_FINDS, ends[-1], _MAX_FINDS)) + 1
    edges = np.unique(np.concatenate([[0], cuts, [len(count)]]))
    yield from itertools.starmap(slice, itertools.pairwise(edges.tolist()))
