"""Training faces out of shards that are read one after the other: for sets that no disk holds."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

from pipeline.errors import UserError
from pipeline.plan import shard_name
from pipeline.shards import read_shard
from pipeline.training.data import DataConfig
from pipeline.training.faces import (
    Batches,
    Candidate,
    FaceMaker,
    Faults,
    Jobs,
    OnFault,
    Part,
    prepared,
)
from pipeline.training.index import Record, list_shards, record_of
from pipeline.training.scores import ScoreTable
from vsp_model.randomness import generator_for
from vsp_model.train.batch import Parts

_EMPTY_EPOCHS = 8  # a worker's share may be empty by chance, but not again and again


class Stored(NamedTuple):
    """A face as it comes out of its shard."""

    id: str
    """Number of the shard, and of the record in it."""
    record: Record

    @property
    def candidate(self) -> Candidate:
        """What may fill a place."""
        return Candidate(self.id, lambda: self.record)


def stored_faces(
    shards: Iterable[tuple[int, str]], faults: Faults, scores: ScoreTable | None = None
) -> Iterator[Stored]:
    """The faces of some numbered shards in stored order; a shard that breaks is told too."""
    for number, shard in shards:
        for sample in read_shard(shard):
            if sample.truncated:
                reason = f"{sample.fault}; the faces before it are used"
                faults.add(number, shard_name(shard), reason)
            elif record := record_of(sample):
                if scores:
                    record = record._replace(quality=float(scores.of(shard, [record.key])[0]))
                yield Stored(f"{number}/{sample.index}", record)


class StreamedSource:
    """Faces of shards that are read one after the other; nothing is kept on the disk.

    In each epoch the shards are shuffled, worker r of W reads every W-th of them from the r-th on,
    and draws each face from a buffer of `shuffle_buffer`. A face comes once in an epoch; but
    batches depend on the number of workers, workers end an epoch at their own time, and
    neighbours in a shard stay near each other. To go on from a step, all that was read before it
    is read again, though not decoded. A face that can't be used is replaced by the next of its
    part that can.
    """

    def __init__(
        self,
        config: DataConfig,
        seed: int,
        on_fault: OnFault | None = None,
        scores: ScoreTable | None = None,
    ) -> None:
        """List the shards.

        Args:
            config: Which faces.
            seed: Of the run.
            on_fault: Called with key (or shard) and reason of what can't be used, once for each.
            scores: Tells the faces' qualities.

        Raises:
            UserError: If there is no shard.
        """
        self.config = config
        self.seed = seed
        self.scores = scores
        self.shards = list_shards(config.train)
        self.faults = Faults(on_fault)
        self._maker = FaceMaker(config, seed, self.faults)
        if not self.shards:
            raise UserError("data.train is empty; give shards of faces, make some: `vsp pack`")

    def batches(self, parts: Parts, first_step: int) -> Batches:
        """For each step from `first_step` on, this worker's parts in order. Never ends; close it.

        Raises:
            UserError: If a part holds no usable face, or there are fewer shards than workers.
        """
        if len(self.shards) < parts.world:
            raise UserError(
                f"{len(self.shards)} shards for {parts.world} workers that stream them; "
                "take fewer workers, or cut the shards smaller with `vsp pack`"
            )
        return prepared(self.config, self.faults, self._steps(parts, first_step))

    def _steps(self, parts: Parts, first_step: int) -> Jobs:
        skipped = first_step * len(parts.own) * parts.part_size
        places = itertools.islice(self._shuffled(parts), skipped, None)
        while True:
            yield [
                partial(self._part, list(itertools.islice(places, parts.part_size)))
                for _ in parts.own
            ]

    def _part(self, places: Sequence[tuple[str, Candidate]]) -> Part:
        """Make a part; a place that can't be filled takes the next one's face, in a circle."""
        candidates = [candidate for _, candidate in places]
        return self._maker.part(
            [
                (stream, candidates[slot:] + candidates[:slot])
                for slot, (stream, _) in enumerate(places)
            ]
        )

    def _shuffled(self, parts: Parts) -> Iterator[tuple[str, Candidate]]:
        """Stream and record of this worker's places, one epoch after the other."""
        num_empty = 0
        for epoch in itertools.count():
            num_empty += 1
            for face in self._epoch(parts, epoch):
                num_empty = 0
                yield f"{face.id}@{epoch}", face.candidate
            if num_empty >= _EMPTY_EPOCHS:
                where = ", ".join(self.config.train)
                raise UserError(
                    f"{where}: no face in {len(self.shards)} shards; `vsp pack` makes some"
                )

    def _epoch(self, parts: Parts, epoch: int) -> Iterator[Stored]:
        """Draw the next face from the buffer and fill its place from the shards."""
        order = generator_for(self.seed, f"{epoch}", "shards").permutation(len(self.shards))
        shards = [(n, self.shards[n]) for n in order[parts.rank :: parts.world].tolist()]
        draw = generator_for(self.seed, f"{epoch}/{parts.rank}/{parts.world}", "buffer")
        buffer: list[Stored] = []
        for face in stored_faces(shards, self.faults, self.scores):
            if len(buffer) < self.config.shuffle_buffer:
                buffer.append(face)
                continue
            place = int(draw.integers(len(buffer)))
            yield buffer[place]
            buffer[place] = face
        for place in draw.permutation(len(buffer)):
            yield buffer[place]
