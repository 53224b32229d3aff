"""The inside of a worker: records in, results out in order; decode, compute and encode overlap.

    read -> [prepare] -> compose -> model -> [finish] -> write          [ ]: codec threads

Records travel in blocks of neighbours, so that a hand-over between threads is paid once for many.
Batches fill across blocks and shards; the pipe keeps running when a shard ends. What is in flight
is bounded, in bytes and in records.
"""

import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from pipeline.batches import Batch, Composer
from pipeline.errors import one_line
from pipeline.images import Pixels
from pipeline.replica import Replica
from pipeline.stage import Prepared, Stage
from pipeline.tracker import Tracker

IDLE_S = 0.02  # how long a batch that is not full waits for the next shard's first faces
BLOCK_BYTES = 4 * 2**20


@dataclass(frozen=True, slots=True)
class FlowConfig:
    """How much a worker does at once; none of it changes a result.

    Attributes:
        codec_threads: Threads that decode and encode.
        block_records: Records that travel together.
        budget_bytes: What all records in flight may hold; a single larger one passes alone.
    """

    codec_threads: int = 2
    block_records: int = 16
    budget_bytes: int = 256 * 2**20


class Budget:
    """Bytes and records in flight; who asks for more waits."""

    def __init__(self, max_bytes: int, max_records: int) -> None:
        """Bound both; one block may always pass."""
        self._max_bytes, self._max_records = max_bytes, max_records
        self._bytes = self._records = 0
        self.is_asked = False  # somebody waits for room
        self._changed = threading.Condition()

    def take(self, num_bytes: int, num_records: int) -> None:
        """Wait until there is room, and take it."""

        def has_room() -> bool:
            return not self._records or (
                self._bytes + num_bytes <= self._max_bytes
                and self._records + num_records <= self._max_records
            )

        with self._changed:
            self.is_asked = True
            self._changed.wait_for(has_room)
            self.is_asked = False
            self._bytes += num_bytes
            self._records += num_records

    def give(self, num_bytes: int, num_records: int) -> None:
        """Give room back."""
        with self._changed:
            self._bytes -= num_bytes
            self._records -= num_records
            self._changed.notify_all()

    def wait_empty(self) -> None:
        """Wait until nothing is in flight."""
        with self._changed:
            self._changed.wait_for(lambda: not self._records)


class Block:
    """Neighbouring records of one shard on their way through the worker."""

    def __init__(
        self, shard: str, records: Sequence[Any], num_bytes: int, decided: Mapping[int, Any]
    ) -> None:
        """Take the records; nothing is done with them yet.

        Args:
            shard: Their shard's name.
            records: The neighbours.
            num_bytes: What they hold together.
            decided: Results that are known already, by the record's index.
        """
        self.shard = shard
        self.decided = decided
        self.records = records
        self.num_bytes = num_bytes
        self.prepared: Future[list[Prepared]] = Future()
        self.results: Future[list[Any]] = Future()
        # Per record the places of its faces in batches.
        self.places: list[list[tuple[Batch, int]]] = []
        self._open = 1  # batches that still hold faces of this block, and the composing itself
        self._lock = threading.Lock()

    def hold(self) -> None:
        """One more batch holds faces of this block."""
        with self._lock:
            self._open += 1

    def let_go(self) -> bool:
        """One less; returns whether that was the last."""
        with self._lock:
            self._open -= 1
            return not self._open

    @property
    def indices(self) -> dict[str, list[int]]:
        """What the tracker is told."""
        return {self.shard: [record.index for record in self.records]}


@dataclass(frozen=True, slots=True)
class _Decided:
    """Stands for a record whose result is known without the model."""

    result: Any


class Flow:
    """Threads and queues around one stage; used by one feeding and one writing thread."""

    def __init__(
        self, stage: Stage, replica: Replica | None, tracker: Tracker, config: FlowConfig
    ) -> None:
        """Start the threads."""
        self._stage, self._replica, self._tracker = stage, replica, tracker
        self.block_records = config.block_records
        batch_size = replica.batch_size if replica else 0
        depth = 4 * (batch_size + config.block_records) + 2 * config.codec_threads
        self._budget = Budget(config.budget_bytes, depth)
        self._codecs = ThreadPoolExecutor(config.codec_threads, "codec")
        self._incoming: queue.SimpleQueue[Block | None] = queue.SimpleQueue()
        self._composer = (
            Composer(replica, tracker, self._codecs, self._end_block) if replica else None
        )
        self._feeding = False
        self._thread = threading.Thread(target=self._compose, name="compose", daemon=True)
        self._thread.start()

    @property
    def smallest_batch(self) -> int:
        """Faces in a run of the model: less than planned once memory ran out; 0 without a model."""
        return self._composer.limit if self._composer else 0

    def begin(self, max_batch: int = 0) -> None:
        """More records are coming; a batch that is not full waits for them."""
        self._feeding = True
        if self._composer:
            self._composer.limit = max_batch or self._composer.limit

    def end(self) -> None:
        """No more records for now."""
        self._feeding = False

    def put(self, block: Block) -> None:
        """Send a block on its way; waits while too much is in flight.

        Its `results` will hold one result a record.
        """
        self._budget.take(block.num_bytes, len(block.records))
        self._codecs.submit(self._prepare, block)
        self._incoming.put(block)

    def release(self, block: Block) -> None:
        """Say that a block's results were written and its memory is free."""
        self._budget.give(block.num_bytes, len(block.records))

    def drain(self) -> None:
        """Wait until everything put so far has been released; a batch not full is run."""
        feeding, self._feeding = self._feeding, False
        self._budget.wait_empty()
        self._feeding = feeding

    def close(self) -> None:
        """End the threads; what is in flight is finished first."""
        self.end()
        self._incoming.put(None)
        self._thread.join()
        if self._composer:
            self._composer.close()
        self._codecs.shutdown()

    def _prepare(self, block: Block) -> None:
        def prepare() -> list[Prepared]:
            return [self._prepare_one(record, block.decided) for record in block.records]

        self._work_on(block, prepare, block.prepared)

    def _work_on(self, block: Block, work: Callable[[], list[Any]], told: Future[Any]) -> None:
        """Do a part of a block's work with its records in hand, and tell what came of it."""
        error: BaseException | None = None
        results: list[Any] = []
        try:
            self._tracker.hold(block.indices)
            results = work()
        except BaseException as caught:
            error = caught
        # Before it is told: a suspect may be waiting for all hands to be empty.
        self._tracker.let_go()
        if error is None:
            told.set_result(results)
        else:
            told.set_exception(error)

    def _prepare_one(self, record: Any, decided: Mapping[int, Any]) -> Prepared:
        """Decode one record; an unexpected error is the record's own."""
        result = decided.get(record.index)
        if result is None:
            try:
                return self._stage.prepare(record)
            except Exception as error:
                reason = f"could not be decoded ({one_line(error)})"
                result = self._stage.reject(record, reason)
        return Prepared(record, state=_Decided(result))

    def _compose(self) -> None:
        """Put the faces of block after block into batches."""
        while True:
            try:
                block = self._incoming.get(timeout=IDLE_S)
            except queue.Empty:
                if self._composer and (self._budget.is_asked or not self._feeding):
                    self._composer.flush()  # no more faces can come before these are done
                continue
            if block is None:
                break
            self._place(block)
        if self._composer:
            self._composer.flush()

    def _place(self, block: Block) -> None:
        composer = self._composer
        try:
            for prepared in block.prepared.result():
                index = prepared.record.index
                assert composer or not prepared.faces, "faces, but no model"
                places = [composer.add(f, block, index) for f in prepared.faces] if composer else []
                block.places.append(places)
        except BaseException as error:
            block.results.set_exception(error)
            return
        self._end_block(block)

    def _end_block(self, block: Any) -> None:
        """One thing less that the block waits for; at the last its results are made."""
        if block.let_go() and not block.results.done():
            self._codecs.submit(self._finish, block)

    def _finish(self, block: Block) -> None:
        def finish() -> list[Any]:
            pairs = zip(block.prepared.result(), block.places, strict=True)
            results = [self._finish_one(prepared, places) for prepared, places in pairs]
            block.places.clear()
            return results

        self._work_on(block, finish, block.results)

    def _finish_one(self, prepared: Prepared, places: Sequence[tuple[Batch, int]]) -> Any:
        if isinstance(prepared.state, _Decided):
            return prepared.state.result
        faults = [fault for batch, slot in places if (fault := batch.fault(slot))]
        if faults:
            return self._stage.reject(prepared.record, faults[0])
        restored: list[Pixels | None] = [batch.pixels[slot] for batch, slot in places]
        try:
            return self._stage.finish(prepared, restored)
        except Exception as error:
            reason = f"could not be encoded ({one_line(error)})"
            return self._stage.reject(prepared.record, reason)
