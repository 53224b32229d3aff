"""A worker: one stage in one process, shard after shard, whatever pool it belongs to."""

import ctypes
import gc
import queue
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.errors import one_line
from pipeline.flow import BLOCK_BYTES, Block, Flow, FlowConfig
from pipeline.locks import hold_shared
from pipeline.sidecar import Row, warm
from pipeline.stage import Output, Record, Stage, StageFactory, Task
from pipeline.storage import StoreTrouble
from pipeline.tracker import Tracker

PR_SET_PDEATHSIG = 1
MAX_REASONS = 8  # the commonest, for the run's summary; all stand in the rows


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """What a worker needs to know of the machine it runs on; none of it changes a result.

    Attributes:
        tracker: The file in which it notes what it has in hand.
        lock: A file that it holds locked for its life, so that nobody takes it for gone; or None.
        dies_with_parent: Whether the system is to kill it when its parent dies.
        flow: Threads and memory.
    """

    tracker: Path
    lock: Path | None = None
    dies_with_parent: bool = False
    flow: FlowConfig = field(default_factory=FlowConfig)


@dataclass(frozen=True, slots=True)
class Report:
    """How one task ended.

    Attributes:
        shard: The task's shard.
        attempt: The task's attempt.
        counts: Number of records by status, where the shard was committed.
        error: One line why it was not, or "".
        is_trouble: The disk or object store is to blame, not the shard.
        seconds: From the first record read to the commit.
        reasons: The commonest reasons in the rows, after the status.
    """

    shard: str
    attempt: str
    counts: Mapping[str, int] = field(default_factory=dict)
    error: str = ""
    is_trouble: bool = False
    seconds: float = 0.0
    reasons: Mapping[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class _Run:
    """One task in the worker."""

    task: Task
    start_s: float = field(default_factory=time.monotonic)
    began: float = field(default_factory=time.time)
    num_read: int = 0
    num_written: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    output: Output | None = None
    error: BaseException | None = None


class Worker:
    """Feeds tasks through a `Flow` and commits them; reports through a callback."""

    def __init__(self, config: WorkerConfig, report: Callable[[Report], None]) -> None:
        """Plan the worker; `report` is called from a thread of its own, once a task."""
        self._config, self._report = config, report
        self._flow: Flow | None = None
        self._lock: BinaryIO | None = None
        self._written: queue.SimpleQueue[tuple[_Run, Block | None] | None] = queue.SimpleQueue()
        self._num_done = self._num_bytes = 0

    def setup(self, factory: StageFactory) -> None:
        """Make the stage, set it up, start the threads."""
        config = self._config
        if config.dies_with_parent:
            die_with_parent()
        self._lock = hold_shared(config.lock) if config.lock else None
        warm()
        self._stage: Stage = factory()
        self._replica = self._stage.setup()
        if self._replica:
            self._replica.warm()
        self._tracker = Tracker(config.tracker)
        self._flow = Flow(self._stage, self._replica, self._tracker, config.flow)
        self._writer = threading.Thread(target=self._write, name="write", daemon=True)
        self._writer.start()
        gc.collect()
        gc.freeze()  # the model's objects live as long as the worker: not to be walked again

    def feed(self, task: Task) -> None:
        """Read a task's records into the flow; returns when all have entered it.

        The next task may be fed then: its first records fill the batch that this one's last left
        open. The report comes when the shard is committed.
        """
        assert self._flow, "not set up"
        run = _Run(task)
        self._flow.begin(task.max_batch)
        try:
            self._feed(run, self._flow)
        except Exception as error:
            run.error = run.error or error
        self._flow.end()
        self._written.put((run, None))

    def close(self) -> None:
        """Finish what was fed, end the threads, give the model back."""
        if self._flow is not None:
            self._written.put(None)
            self._writer.join()
            self._flow.close()
            self._tracker.close()
            self._config.tracker.unlink(missing_ok=True)  # nothing is in hand: nothing to tell
            self._stage.close()
            self._flow = None
            gc.unfreeze()
        if self._lock is not None:  # also where the stage could not be set up
            self._lock.close()
            self._lock = None

    def _feed(self, run: _Run, flow: Flow) -> None:
        task = run.task
        records: list[Any] = []
        num_bytes = 0
        known = self._known(task)
        for record in islice(self._stage.read(task), task.limit or None):
            run.num_read += 1
            alone = record.index in task.suspects
            full = len(records) == flow.block_records or num_bytes + record.num_bytes > BLOCK_BYTES
            if records and (alone or full):
                self._put(run, flow, records, known)
                records, num_bytes = [], 0
            if alone:
                flow.drain()
                self._put(run, flow, [record], known)
                flow.drain()
                continue
            records.append(record)
            num_bytes += record.num_bytes
            if run.error:  # the writer met it: the rest would be for nothing
                return
        if records:
            self._put(run, flow, records, known)

    def _known(self, task: Task) -> Callable[[Record], Any]:
        """For each record of a task, asked in order: its result if that is known already."""
        carried = iter(self._stage.carried(task)) if task.redo else iter(())
        waiting = next(carried, None)

        def known(record: Record) -> Any:
            nonlocal waiting
            if waiting is not None and waiting.row.index == record.index:
                result, waiting = waiting, next(carried, None)
                return result
            reason = task.given_up or task.condemned.get(record.index, "")
            return self._stage.reject(record, reason) if reason else None

        return known

    def _put(
        self, run: _Run, flow: Flow, records: list[Any], known: Callable[[Record], Any]
    ) -> None:
        decided = {r.index: result for r in records if (result := known(r)) is not None}
        num_bytes = sum(record.num_bytes for record in records)
        block = Block(run.task.shard, records, num_bytes, decided)
        self._written.put((run, block))
        flow.put(block)

    def _write(self) -> None:
        """Write block after block in order; commit a shard after its last."""
        assert self._flow
        while (item := self._written.get()) is not None:
            run, block = item
            if block is None:
                self._report(self._end(run))
                continue
            try:
                self._write_block(run, block)
            except Exception as error:
                run.error = run.error or error
            self._flow.release(block)

    def _write_block(self, run: _Run, block: Block) -> None:
        results = block.results.result()
        if run.error:
            return
        if run.output is None:
            run.output = self._stage.open(run.task).__enter__()
        for result in results:
            run.output.add(result)
            if result.row.reason:
                run.reasons[f"{result.row.status}: {without_name(result.row)}"] += 1
        run.num_written += len(results)
        self._num_done += len(results)
        self._num_bytes += block.num_bytes
        self._tracker.count({"done": self._num_done, "bytes": self._num_bytes})

    def _end(self, run: _Run) -> Report:
        task, record = run.task, dict[str, Any]()
        try:
            if run.error is None:
                if run.output is None:  # a shard without a record
                    run.output = self._stage.open(task).__enter__()
                assert run.num_written == run.num_read, "a record was lost on its way"
                record = dict(run.output.commit(self._facts(run)))
        except Exception as error:
            run.error = error
        if run.output is not None:
            run.output.__exit__(None, None, None)
        return Report(
            shard=task.shard,
            attempt=task.attempt,
            counts=record.get("counts", {}),
            reasons=record.get("reasons", {}),
            error=one_line(run.error) if run.error else "",
            is_trouble=isinstance(run.error, StoreTrouble),
            seconds=time.monotonic() - run.start_s,
        )

    def _facts(self, run: _Run) -> dict[str, Any]:
        assert self._flow
        planned = self._replica.batch_size if self._replica else 0
        return {
            "began": run.began,
            "seconds": time.monotonic() - run.start_s,
            "batch": {"planned": planned, "smallest": self._flow.smallest_batch},
            "reasons": dict(run.reasons.most_common(MAX_REASONS)),
        }


def without_name(row: Row) -> str:
    """A row's reason without the name of its file, so that equal reasons can be counted."""
    return row.reason.removeprefix(f"{row.member}: ")


def die_with_parent() -> None:
    """Have the system kill this process when its parent dies (Linux; nothing elsewhere)."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
