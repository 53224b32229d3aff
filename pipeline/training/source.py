"""Training faces out of shards, as global batches.

Those of an index are the same whatever the number of workers, and any step can be begun with. For
sets that no disk holds see `pipeline/training/stream.py`.
"""

import itertools
from collections.abc import Iterator
from functools import lru_cache, partial

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.images import ImageFault
from pipeline.training.data import DataConfig
from pipeline.training.faces import Batches, Candidate, FaceMaker, Faults, Jobs, OnFault, prepared
from pipeline.training.index import Index, build_index, list_shards
from pipeline.training.scores import ScoreTable, knows_none, open_scores
from pipeline.training.stream import StreamedSource, stored_faces
from vsp_model.randomness import generator_for
from vsp_model.train.batch import Batch, Parts

MAX_REPLACED = 1000  # more unusable records than that in a row are no accident
VALIDATION_SEED = 7
VALIDATION_EPOCH = -1


def open_source(
    config: DataConfig, seed: int, on_fault: OnFault | None = None
) -> tuple["FaceSource | StreamedSource", tuple[str, ...]]:
    """What the settings ask for, and a line for each broken shard and what the scores lack.

    Raises:
        UserError: If there is no usable face, a shard to train on is one to validate on, or the
            scores are those of other faces.
    """
    both = set(list_shards(config.train)) & set(list_shards(config.validation))
    if both:
        raise UserError(f"{min(both)}: in data.train and data.validation; take it out of one")
    scores = open_scores(config)
    if config.streamed:
        streamed = StreamedSource(config, seed, on_fault, scores)
        return streamed, (_streamed_line(scores),) if scores else ()
    index = build_index(config.train, config.cache, scores.of if scores else None)
    source = FaceSource(config, index, seed, on_fault, scores)
    return source, (*index.warnings, *_missed_lines(config, index))


def _streamed_line(scores: ScoreTable) -> str:
    return (
        f"data.scores {scores.folder}: {scores.known:,} faces of the shards have a score; how many "
        "have none nobody counts where shards are streamed"
    )


def _missed_lines(config: DataConfig, index: Index) -> tuple[str, ...]:
    """Say once that some faces have no score.

    Raises:
        UserError: If none has.
    """
    if index.qualities is None:
        return ()
    missed = int(np.isnan(index.qualities).sum())
    if missed == len(index):
        raise knows_none(config)
    if not missed:
        return ()
    line = f"data.scores {config.scores}: {missed:,} of {len(index):,} faces have no score"
    return (f"{line}; they train as of unknown quality",)


class FaceSource:
    """Faces in an order drawn anew for each epoch, over the whole set.

    The faces of global batch s are at places s * B ... s * B + B - 1 of the endless sequence of
    epochs 0, 1, 2, ..., each a permutation of the index. One that can't be used is replaced by the
    next in the index that can; the stream of random numbers stays that of the place.

    Attributes:
        faults: The records that can't be used, as far as this worker has met them.
        scores: What the faces' qualities are of, None without.
    """

    def __init__(
        self,
        config: DataConfig,
        index: Index,
        seed: int,
        on_fault: OnFault | None = None,
        scores: ScoreTable | None = None,
    ) -> None:
        """Look for a usable face.

        Args:
            config: Which faces.
            index: Where they lie.
            seed: Of the run.
            on_fault: Called with key and reason of a record that can't be used, once for each.
            scores: What the index was built with.

        Raises:
            UserError: If there is none among the first `MAX_REPLACED`.
        """
        self.scores = scores
        self.config = config
        self.index = index
        self.seed = seed
        self.faults = Faults(on_fault)
        self._maker = FaceMaker(config, seed, self.faults)
        self._order = lru_cache(2)(self._draw_order)
        self._maker.first_usable(self._candidates(0))

    def batches(self, parts: Parts, first_step: int) -> Batches:
        """For each step from `first_step` on, this worker's parts in order. Never ends; close it.

        Raises:
            UserError: If more than `MAX_REPLACED` records in a row can't be used.
        """
        return prepared(self.config, self.faults, self._steps(parts, first_step))

    def _steps(self, parts: Parts, first_step: int) -> Jobs:
        for step in itertools.count(first_step):
            yield [
                partial(self._maker.part, [self._place(p) for p in _places(parts, step, part)])
                for part in parts.own
            ]

    def _place(self, place: int) -> tuple[str, Iterator[Candidate]]:
        """Stream and records of a place of the endless sequence."""
        epoch, rest = divmod(place, len(self.index))
        number = int(self._order(epoch)[rest])
        return f"{number}@{epoch}", self._candidates(number)

    def _candidates(self, number: int) -> Iterator[Candidate]:
        count = len(self.index)
        for each in range(number, number + min(count, MAX_REPLACED)):
            yield Candidate(each % count, partial(self.index.read, each % count))

    def _draw_order(self, epoch: int) -> NDArray[np.uint32]:
        order = generator_for(self.seed, f"{epoch}", "order").permutation(len(self.index))
        return order.astype(np.uint32)


def _places(parts: Parts, step: int, part: int) -> range:
    """Places of a part in the endless sequence: record b of the batch belongs to part b mod P."""
    start = step * parts.batch_size
    return range(start + part, start + parts.batch_size, parts.count)


def validation_batches(
    config: DataConfig,
    part_size: int,
    on_fault: OnFault | None = None,
    scores: ScoreTable | None = None,
) -> list[Batch]:
    """The first `validation_faces` usable faces of the validation shards, degraded once.

    Degraded as for training but with a seed of their own, never flipped, never left clean. The
    shards are read from the first on, as far as need be.

    Args:
        config: Which faces.
        part_size: Faces a batch; the last one may hold fewer.
        on_fault: Called with key (or shard) and reason of what can't be used.
        scores: The training source's; read again if they are not at hand. Qualities are shares of
            the training faces.

    Returns:
        Nothing where there are no validation shards.

    Raises:
        UserError: If no face can be used.
    """
    if not config.validation:
        return []
    faults = Faults(on_fault)
    scores = scores or open_scores(config)
    degradation = config.degradation.model_copy(update={"flip_probability": 0.0})
    plain = config.model_copy(update={"degradation": degradation, "clean_fraction": 0.0})
    maker = FaceMaker(plain, VALIDATION_SEED, faults)
    places = list(itertools.islice(_usable(maker, scores), config.validation_faces))
    faults.tell()
    if not places:
        reason = next(iter(faults.reasons.values()), "they hold no image")
        raise UserError(f"{', '.join(config.validation)}: no usable face; {reason}")
    starts = range(0, len(places), part_size)
    return [maker.part(places[start : start + part_size]).batch() for start in starts]


def _usable(maker: FaceMaker, scores: ScoreTable | None) -> Iterator[tuple[str, list[Candidate]]]:
    """Stream and record of each usable validation face, by its number among all."""
    shards = enumerate(list_shards(maker.config.validation))
    for number, each in enumerate(stored_faces(shards, maker.faults, scores)):
        try:
            maker.decode(each.record)
        except ImageFault as fault:
            maker.faults.add(each.id, each.record.key, str(fault))
        else:
            yield f"{number}@{VALIDATION_EPOCH}", [each.candidate]
