"""A set may hold one picture a hundred thousand times; then all pairs of it are too many.

Where many hashes share a band, images that are all but the same are gathered around the first of
them, which alone is searched for. Those of one clump are copies of each other: each correlates at
least `_SAME` with the first, which leaves 0.9 between any two by the triangle of their angles.

Where very many share one (thousands of crops of one picture, say), those are gathered too that are
alike only once they are laid over the first. Each of them is confirmed against the first; that any
two of them are alike is then likely, not proven.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.cleaning.copies import prints
from pipeline.cleaning.copies import search as copies_search
from pipeline.cleaning.copies.confirm import likeness

Places = NDArray[np.int64]

# Buckets up to this size are left to the search: their pairs are few.
_MANY = 256
# Images around which a bucket is gathered, at most; what is then left goes to the search.
_MAX_CLUMPS = 64
_SAME = 0.975
# A bucket beyond this is a crowd.
_CROWD = 4096
_SAME_ONCE_LAID = 0.92
_BLOCK = 65_536
_LAID_BLOCK = 4096


@dataclass(frozen=True, slots=True, eq=False)
class Joined:
    """Images that stand behind another: (K,) leader, (K,) member, (K,) likeness."""

    leader: Places
    member: Places
    likeness: NDArray[np.float32]

    def codes(self, num: int) -> Places:
        """As pairs of `copies.Pairs`, each as one number."""
        return (self.leader * num + self.member) << 1


def gather(packed: NDArray[np.uint8], seen: Places) -> tuple[Places, Joined]:
    """Gather what is all but the same.

    Args:
        packed: (N, PRINT_BYTES).
        seen: The places that count, rising.

    Returns:
        (N,) the place of the image that stands for each, its own if none does; and those who stand
        behind another.
    """
    clump = np.arange(len(packed), dtype=np.int64)
    alike = np.ones(len(packed), np.float32)
    hashes = prints.hashes_of(packed[seen], 1)[:, 0]
    for band in copies_search.tables(hashes, seen):
        sizes = np.diff(band.starts)
        for key in np.flatnonzero(sizes > _MANY):
            bucket = np.sort(band.places[band.starts[key] : band.starts[key + 1]])
            _gather(packed, bucket, clump, alike)
    member = seen[clump[seen] != seen]
    return clump, Joined(clump[member], member, alike[member])


def _gather(
    packed: NDArray[np.uint8], bucket: Places, clump: Places, alike: NDArray[np.float32]
) -> None:
    """Gather one bucket around its first images, in place.

    One that already stands for others stays: it may only become a leader again.
    """
    leads = np.zeros(len(clump), np.bool_)
    leads[clump[clump != np.arange(len(clump))]] = True
    left = bucket[clump[bucket] == bucket]
    for _ in range(_MAX_CLUMPS):
        if len(left) <= _MANY:
            return
        leader, left = left[0], left[1:]
        found = _correlation(packed, leader, left)
        enough = np.full(len(left), _SAME, np.float32)
        if len(left) > _CROWD:
            unlike = np.flatnonzero(found < _SAME)
            found[unlike] = _laid_over(packed, leader, left[unlike])
            enough[unlike] = _SAME_ONCE_LAID
        same = (found >= enough) & ~leads[left]
        clump[left[same]], alike[left[same]] = leader, found[same]
        left = left[~same]


def _correlation(packed: NDArray[np.uint8], leader: int, others: Places) -> NDArray[np.float32]:
    """Of the thumbnails as they lie."""
    own = prints.thumbs_of(packed[leader : leader + 1])[0].ravel()
    own /= np.linalg.norm(own)
    found = np.empty(len(others), np.float32)
    for start in range(0, len(others), _BLOCK):
        block = prints.thumbs_of(packed[others[start : start + _BLOCK]]).reshape(-1, own.size)
        length = np.sqrt(np.einsum("ij,ij->i", block, block))
        found[start : start + _BLOCK] = block @ own / length
    return found


def _laid_over(packed: NDArray[np.uint8], leader: int, others: Places) -> NDArray[np.float32]:
    """Likeness once laid over the leader; see `copies_confirm.likeness`."""
    own = prints.thumbs_of(packed[leader : leader + 1])
    found = np.empty(len(others), np.float32)
    for start in range(0, len(others), _LAID_BLOCK):
        block = prints.thumbs_of(packed[others[start : start + _LAID_BLOCK]])
        ours = np.broadcast_to(own, block.shape)
        found[start : start + _LAID_BLOCK] = likeness(ours, block, _SAME_ONCE_LAID)
    return found
