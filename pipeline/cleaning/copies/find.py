"""All near copies and mirror images of a set: hashes propose, embedding and thumbnail confirm.

Read docs/duplicates.md for what is guaranteed and what was measured.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline.cleaning.copies import prints
from pipeline.cleaning.copies import search as copies_search
from pipeline.cleaning.copies.clumps import gather
from pipeline.cleaning.copies.confirm import likeness
from pipeline.cleaning.copies.ordered import ordered
from pipeline.replica import Frozen

Places = NDArray[np.int64]
# Images asked for at once, and pairs compared at once, by one thread.
_BLOCK = 4096
# So many proposed pairs are gathered (and freed of repeats) before they are compared.
_MAX_WAITING = 20_000_000


class CopyConfig(Frozen):
    """What counts as a copy.

    Attributes:
        sure_bits: All pairs are looked at in which the hash of one picture and that of the other,
            or of one of its 17 crops, differ in at most so many of 64 bits.
        max_bits: Those that differ in up to so many are looked at if they happen to be met.
        min_likeness: Least correlation of two pictures laid over each other; see
            `copies_confirm.likeness`.
        flips: Whether mirror images are looked for.
        threads: How many work at once; the result does not depend on it.
    """

    sure_bits: int = Field(5, ge=0, le=8)
    max_bits: int = Field(6, ge=0, le=16)
    min_likeness: float = Field(0.9, gt=0, le=1)
    flips: bool = True
    threads: int = Field(2, ge=1)


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """Confirmed pairs of places, each once, sorted by (first, second, is_flip).

    Attributes:
        first: (M,) the earlier image.
        second: (M,) the later one.
        is_flip: (M,) whether the one is like the other's mirror image.
        likeness: (M,) correlation once laid over each other, at least `min_likeness`.
        clump: (N,) for each image the image that stands for it in the pairs, nearly always itself;
            see `copies_clumps.gather`.
        num_looked_at: How many pairs the hashes proposed.
    """

    first: Places
    second: Places
    is_flip: NDArray[np.bool_]
    likeness: NDArray[np.float32]
    clump: Places
    num_looked_at: int = 0


def find_copies(
    packed: NDArray[np.uint8],
    has_prints: NDArray[np.bool_],
    config: CopyConfig,
    progress: Callable[[int, int], None] | None = None,
) -> Pairs:
    """Find near copies and mirror images.

    Args:
        packed: (N, PRINT_BYTES) of `prints.make_prints`.
        has_prints: (N,) where a row counts; blank pictures are left out by themselves.
        config: What counts.
        progress: Is told how many images were searched, and of how many.

    Returns:
        Every pair within `sure_bits` that is confirmed, and every member of a clump with the image
        that stands for it.
    """
    seen = np.flatnonzero(has_prints & packed.any(axis=1)).astype(np.int64)
    clump, joined = gather(packed, seen)
    searched = seen[clump[seen] == seen]
    codes, likeness, num_looked_at = [joined.codes(len(packed))], [joined.likeness], 0
    with ThreadPoolExecutor(config.threads) as pool:
        for found in _proposed(packed, searched, config, pool, progress):
            num_looked_at += len(found)
            kept, alike = _confirm(packed, found, config, pool)
            codes.append(kept)
            likeness.append(alike)
    code, at = np.unique(np.concatenate(codes), return_index=True)
    first, second, is_flip = _decode(code, len(packed))
    return Pairs(first, second, is_flip, np.concatenate(likeness)[at], clump, num_looked_at)


def _decode(code: Places, num: int) -> tuple[Places, Places, NDArray[np.bool_]]:
    """A pair as one number is (first * N + second) * 2 + is_flip."""
    pair = code >> 1
    return pair // num, pair % num, (code & 1).astype(np.bool_)


def _proposed(
    packed: NDArray[np.uint8],
    searched: Places,
    config: CopyConfig,
    pool: ThreadPoolExecutor,
    progress: Callable[[int, int], None] | None,
) -> Iterator[Places]:
    """What the hashes propose, each pair once, in portions of bounded size."""
    bands = copies_search.tables(prints.hashes_of(packed[searched], 1)[:, 0], searched)
    blocks = [searched[start : start + _BLOCK] for start in range(0, len(searched), _BLOCK)]
    waiting, num_waiting, num_done = [], 0, 0
    for block, found in zip(
        blocks, ordered(pool, lambda rows: _near(packed, rows, bands, config), blocks), strict=True
    ):
        waiting.append(found)
        num_waiting += len(found)
        num_done += len(block)
        if num_waiting > _MAX_WAITING:
            yield np.unique(np.concatenate(waiting))
            waiting, num_waiting = [], 0
        if progress is not None:
            progress(num_done, len(searched))
    if waiting:
        yield np.unique(np.concatenate(waiting))


def _near(
    packed: NDArray[np.uint8], rows: Places, bands: list[copies_search.Band], config: CopyConfig
) -> Places:
    """Pairs of a block of images with all, as numbers."""
    hashes = prints.hashes_of(packed[rows])
    num_hashes = hashes.shape[1]
    found = []
    for is_flip in (False, True) if config.flips else (False,):
        asked = hashes.ravel() ^ (prints.mirror_mask() if is_flip else np.uint64(0))
        for at, other in copies_search.near(bands, asked, config.sure_bits, config.max_bits):
            own = rows[at // num_hashes]
            pair = np.minimum(own, other) * len(packed) + np.maximum(own, other)
            found.append((pair[own != other] << 1) + is_flip)
    return np.unique(np.concatenate(found))


def _confirm(
    packed: NDArray[np.uint8], codes: Places, config: CopyConfig, pool: ThreadPoolExecutor
) -> tuple[Places, NDArray[np.float32]]:
    """Those of the pairs that are copies, and how alike they are."""

    def alike(part: Places) -> NDArray[np.float32]:
        first, second, is_flip = _decode(part, len(packed))
        ours, theirs = (prints.thumbs_of(packed[side]) for side in (first, second))
        theirs[is_flip] = theirs[is_flip, :, ::-1]
        return likeness(ours, theirs, config.min_likeness)

    parts = [codes[start : start + _BLOCK] for start in range(0, len(codes), _BLOCK)]
    found = np.concatenate([np.empty(0, np.float32), *ordered(pool, alike, parts)])
    kept = found >= config.min_likeness
    return codes[kept], found[kept]
