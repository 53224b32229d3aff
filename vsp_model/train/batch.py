"""What a training stage is fed: parts of a global batch, each a function of (seed, step) alone.

A global batch is cut into parts that are the same whatever the number of workers: record b of the
batch belongs to part b mod P. Everything that mixes records (batch norm, minibatch deviation, the
mean of a loss) happens within a part, so W workers with P / W parts each compute what one worker
with P parts does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor


class Batch(NamedTuple):
    """One part of a global batch, B records."""

    keys: tuple[str, ...]
    """Names of the records."""
    streams: tuple[str, ...]
    """What noise is drawn from: a name of record and epoch, no two alike in a run."""
    lq: Tensor
    """Degraded faces, (B, 3, S, S) float32 in [-1, 1], channels_last."""
    hq: Tensor
    """True faces, alike."""
    points: Tensor
    """Eyes, nose, mouth corners as (x, y) in pixels of ``hq``, (B, 5, 2); NaN where unknown."""
    quality: Tensor
    """Score of ``hq`` as it stands in the table of scores, (B,); NaN where unknown."""

    def to(self, device: str) -> Batch:
        """The same values on another device."""
        tensors = (t.to(device, non_blocking=True) for t in self[2:])
        return Batch(self.keys, self.streams, *tensors)


@dataclass(frozen=True)
class Parts:
    """Which parts of the global batch a worker computes: those p with p mod world = rank."""

    batch_size: int
    part_size: int
    rank: int = 0
    world: int = 1

    @property
    def count(self) -> int:
        """Parts of the global batch."""
        return self.batch_size // self.part_size

    @property
    def own(self) -> range:
        """This worker's parts."""
        return range(self.rank, self.count, self.world)


class BatchSource(Protocol):
    """Where batches come from; a list of random tensors in a test, shards in earnest."""

    def batches(self, parts: Parts, first_step: int) -> Iterator[list[Batch]]:
        """For each step from ``first_step`` on, this worker's parts in order. Never ends."""
