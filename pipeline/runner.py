"""The driver's loop: hand out shards, hear what became of them, decide what to do again."""

import os
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from pipeline.cases import Case
from pipeline.errors import RunError
from pipeline.ledger import Ledger
from pipeline.plan import Plan, Unit
from pipeline.pools.base import IN_HAND, Died, Done, Event, Pool, Ready
from pipeline.sidecar import BAD_STATUSES
from pipeline.stage import StageFactory
from pipeline.storage import StoreTrouble
from pipeline.watch import Watch, stop_on_signals
from pipeline.worker import Report

EXIT_DONE, EXIT_FAILED, EXIT_USAGE, EXIT_BAD_RECORDS, EXIT_STOPPED = 0, 1, 2, 3, 75
SAME_ERROR = 3  # shards that fail of one error before it is called a bug
START_DEATHS = 4  # deaths before a worker was ever ready
MAX_PAUSE_S = 60.0


@dataclass(frozen=True, slots=True)
class RunnerConfig:
    """How patient a run is; none of it changes a result.

    Attributes:
        poll_s: How often progress is looked at.
        stall_s: A worker that writes nothing for so long is replaced.
        patience_s: How long a full disk or a silent store is waited for.
        start_s: How long a worker may take until it is ready.
        drain_s: After a signal, how long the shards in hand may take to end.
    """

    poll_s: float = 0.5
    stall_s: float = 900.0
    patience_s: float = 600.0
    start_s: float = 600.0
    drain_s: float = 20.0


@dataclass(slots=True)
class Summary:
    """What a run has come to; it grows while the run goes on.

    Attributes:
        plan: What is to be done.
        num_skipped: Shards that an earlier run had finished.
        num_done: Shards this run has finished.
        counts: Records by status, over the skipped and the done.
        reasons: The commonest reasons in the rows, after the status.
        errors: One line per shard that could not be done.
        notes: What a person should know of: deaths, condemned records, waits.
        num_live: Records that living workers have written, committed or not.
        share_live: Part of this run's work that is done, 0 to 1, as near as can be told.
        start_s: Seconds until the first worker was ready.
        began_s: Monotonic time of that; 0 before.
        num_deaths: Workers that died.
        stopped: A signal ended the run.
        abandoned: Work was left unfinished in threads of this process.
    """

    plan: Plan
    num_skipped: int = 0
    num_done: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    num_live: int = 0
    share_live: float = 0.0
    start_s: float = 0.0
    began_s: float = 0.0
    num_deaths: int = 0
    stopped: bool = False
    abandoned: bool = False

    @property
    def num_shards(self) -> int:
        """Shards of the input."""
        return len(self.plan.units)

    @property
    def num_bad(self) -> int:
        """Records that were refused, failed, or lost with the end of a shard."""
        return sum(self.counts[status] for status in BAD_STATUSES)

    @property
    def exit_code(self) -> int:
        """The code of a command: 0 done, 1 failed, 3 some records bad, 75 stopped."""
        if self.stopped:
            return EXIT_STOPPED
        if self.errors or self.num_skipped + self.num_done < self.num_shards:
            return EXIT_FAILED
        return EXIT_BAD_RECORDS if self.num_bad else EXIT_DONE


Progress = Callable[[Summary], None]


def run(
    factory: StageFactory,
    ledger: Ledger,
    plan: Plan,
    todo: Sequence[Unit],
    pool: Pool,
    config: RunnerConfig = RunnerConfig(),
    on_progress: Progress = lambda summary: None,
    suspects: Mapping[str, Set[int]] | None = None,
) -> Summary:
    """Do the units of `todo`; the pool is started and closed here.

    Args:
        factory: Makes the stage, in each worker.
        ledger: The output folder's; its lock is held by the caller.
        plan: What the units belong to.
        todo: Those to do; the plan's others count as finished.
        pool: Where the stage runs.
        config: Patience.
        on_progress: Called every `poll_s` and after every event.
        suspects: For each shard the records that were in hand when an earlier driver died.

    Returns:
        The summary; a shard that failed is in its errors, not raised.

    Raises:
        RunError: If the run cannot go on.
    """
    summary = Summary(plan, num_skipped=len(plan.units) - len(todo))
    todo_names = {unit.shard for unit in todo}
    finished = [unit.shard for unit in plan.units if unit.shard not in todo_names]
    for record in ledger.commits(plan, finished):
        summary.counts.update(record["counts"])
        summary.reasons.update(record["reasons"])
    if not todo:
        return summary
    condemned = ledger.condemned(plan)
    cases = [
        Case(unit, condemned=dict(condemned.get(unit.shard, {})),
             suspects=set((suspects or {}).get(unit.shard, ())))
        for unit in todo
    ]  # fmt: skip
    driver = _Driver(ledger, pool, cases, summary, config, on_progress)
    try:
        with stop_on_signals(driver.stop):
            pool.start(factory)
            with stop_on_signals(driver.stop):  # again: Ray installs handlers of its own
                driver.drive()
    except BaseException:
        pool.kill()
        raise
    finally:
        pool.close()
        if not summary.abandoned:
            ledger.recover(plan, discard=True)
    return summary


class _Driver:
    """The state of one run."""

    def __init__(
        self,
        ledger: Ledger,
        pool: Pool,
        cases: Sequence[Case],
        summary: Summary,
        config: RunnerConfig,
        on_progress: Progress,
    ) -> None:
        self._ledger, self._pool, self._config = ledger, pool, config
        self._summary, self._on_progress = summary, on_progress
        self._out, self._plan = ledger.store.url, summary.plan
        self._queue = deque(cases)
        self._hands: dict[int, dict[str, Case]] = {w: {} for w in range(pool.num_workers)}
        self._ready: set[int] = set()
        self._watch = {worker: Watch() for worker in self._hands}
        self._errors: dict[str, set[str]] = {}
        self._start_deaths = 0
        self._trouble_since_s = 0.0
        self._paused_until_s = 0.0
        self._num_troubles = 0
        self._stopping_since_s = 0.0
        self._started_s = time.monotonic()
        self._unwritten: deque[tuple[str, dict[str, Any]]] = deque()
        self._weight = max(1, sum(case.unit.weight for case in cases))
        self._weight_done = self._records_done = 0

    def stop(self) -> None:
        """Hand out nothing more; called by a signal's handler."""
        if self._stopping_since_s:
            os._exit(EXIT_STOPPED)  # asked twice: at once; a rerun finds everything in order
        self._stopping_since_s = time.monotonic()

    def drive(self) -> None:
        """Run until nothing is left to do, or a signal says stop."""
        while self._queue or self._num_in_hand:
            if self._stopping_since_s and self._is_drained():
                break
            self._hand_out()
            for event in self._pool.wait(self._config.poll_s):
                self._handle(event)
            self._look_after_workers()
            self._on_progress(self._summary)
        self._summary.stopped = bool(self._stopping_since_s) and bool(
            self._queue or self._num_in_hand
        )
        if self._num_in_hand:
            self._summary.abandoned = True
            self._pool.kill()

    @property
    def _num_in_hand(self) -> int:
        return sum(map(len, self._hands.values()))

    def _is_drained(self) -> bool:
        waited_s = time.monotonic() - self._stopping_since_s
        return not self._num_in_hand or waited_s > self._config.drain_s

    def _hand_out(self) -> None:
        if self._stopping_since_s or time.monotonic() < self._paused_until_s:
            return
        for worker in sorted(self._ready, key=lambda worker: len(self._hands[worker])):
            idle = sum(not hand for hand in self._hands.values())
            hand = self._hands[worker]
            # The last shards go to who has nothing to do, not to who could begin a second.
            if not self._queue or len(hand) >= IN_HAND or (hand and len(self._queue) < idle):
                continue
            case = self._queue.popleft()
            task = case.task(self._out, self._plan.id)
            self._note("begun", shard=task.shard, attempt=task.attempt, worker=worker)
            hand[task.attempt] = case
            self._ready.discard(worker)
            self._watch[worker].touch()
            self._pool.submit(worker, task)

    def _handle(self, event: Event) -> None:
        if isinstance(event, Ready):
            self._start_deaths = 0
            self._ready.add(event.worker)
            self._watch[event.worker].is_up = True
            if not self._summary.began_s:
                self._summary.began_s = time.monotonic()
                self._summary.start_s = self._summary.began_s - self._started_s
        elif isinstance(event, Done):
            self._end(event.worker, event.report)
        else:
            self._bury(event)

    def _end(self, worker: int, report: Report) -> None:
        case = self._hands[worker].pop(report.attempt)
        if not report.error:
            self._summary.num_done += 1
            self._summary.counts.update(report.counts)
            self._summary.reasons.update(report.reasons)
            self._weight_done += case.unit.weight
            self._records_done += sum(report.counts.values())
            self._trouble_since_s = self._num_troubles = 0
        elif report.is_trouble:
            self._queue.appendleft(case)
            self._pause(report.error)
        else:
            self._charge(case, report.error)

    def _charge(self, case: Case, error: str) -> None:
        shards = self._errors.setdefault(error, set())
        shards.add(case.unit.shard)
        self._note("failed", shard=case.unit.shard, error=error)
        if len(shards) == SAME_ERROR:
            names = ", ".join(sorted(shards))
            raise RunError(f"{error}: the same in shards {names}; this is no fault of the input")
        case.after_error(error)
        # Others first: what fails them alike is found out before any shard is given up.
        self._again(case, self._queue.append)

    def _again(self, case: Case, put: Callable[[Case], None]) -> None:
        """Back into the queue, unless not even failed rows could be written."""
        if case.is_lost:
            self._summary.errors.append(f"{case.unit.shard}: {case.last_error}")
        else:
            put(case)

    def _bury(self, event: Died) -> None:
        """A worker is gone: charge what it had in hand, start another."""
        if event.is_hopeless:
            raise RunError(f"a worker did not start: {event.reason}")
        if not event.was_ready:
            self._start_deaths += 1
            if self._start_deaths == START_DEATHS:
                raise RunError(f"workers die before they are ready: {event.reason}")
        self._summary.num_deaths += 1
        hand, self._hands[event.worker] = self._hands[event.worker], {}
        self._ready.discard(event.worker)
        in_hand = {shard: sorted(indices) for shard, indices in event.traces.in_hand.items()}
        self._note("died", worker=event.worker, reason=event.reason, in_hand=in_hand)
        planned = self._plan.settings.get("batch_size", 0)
        for case in hand.values():
            condemned = case.after_death(event.reason, event.traces, planned)
            for index, reason in condemned.items():
                self._note("condemned", shard=case.unit.shard, index=index, reason=reason)
                self._tell(f"{case.unit.shard}: record {index} {reason}; it is left out")
            self._again(case, self._queue.appendleft)
        if not self._stopping_since_s:
            self._replace(event.worker)

    def _replace(self, worker: int) -> None:
        self._pool.replace(worker)
        self._watch[worker] = Watch()

    def _pause(self, error: str) -> None:
        """Wait with everything: a full disk or a silent store fails every shard alike."""
        now_s = time.monotonic()
        self._trouble_since_s = self._trouble_since_s or now_s
        self._num_troubles += 1
        left_s = self._config.patience_s - (now_s - self._trouble_since_s)
        if left_s <= 0:
            raise RunError(f"{error}; free space or see to the store, then run it again")
        pause_s = min(MAX_PAUSE_S, left_s, 2.0 ** min(self._num_troubles, 6))
        self._paused_until_s = max(self._paused_until_s, now_s + pause_s)
        self._tell(f"{error}; waiting, {left_s:.0f} s at most")

    def _look_after_workers(self) -> None:
        """See how far workers have come; replace one that has stopped moving."""
        num_live = num_bytes = 0
        # One without a place, as where a node was lost, is no harm while others work.
        is_any_up = any(watch.is_up for watch in self._watch.values())
        for worker, watch in self._watch.items():
            counts = self._pool.traces(worker).counts
            watch.see(counts.get("done", 0))
            num_live += watch.num_done
            num_bytes += counts.get("bytes", 0)
            if self._hands[worker] and watch.idle_s > self._config.stall_s:
                traces = self._pool.traces(worker)
                self._bury(Died(worker, f"nothing written for {watch.idle_s:.0f} s", traces))
            elif not is_any_up and watch.idle_s > self._config.start_s:
                raise RunError(f"a worker was not ready after {watch.idle_s:.0f} s; "
                               "see that the machine or cluster has room for it")  # fmt: skip
        self._summary.num_live = max(num_live, self._records_done)
        self._summary.share_live = min(1.0, self._live_weight(num_bytes) / self._weight)

    def _live_weight(self, num_bytes: int) -> float:
        """What is done, in the unit of the plan's weights: as finished shards go, else by bytes."""
        if self._records_done:
            per_record = self._weight_done / self._records_done
            return self._summary.num_live * per_record
        files = sum(bool(unit.files) for unit in self._summary.plan.units)
        return self._summary.num_live if files else num_bytes

    def _tell(self, line: str) -> None:
        self._summary.notes.append(line)

    def _note(self, event: str, **facts: Any) -> None:
        """Add to the journal; while the store cannot take it, keep it and hand out nothing."""
        self._unwritten.append((event, facts))
        try:
            while self._unwritten:
                event, facts = self._unwritten[0]
                self._ledger.note(event, plan=self._plan.id, **facts)
                self._unwritten.popleft()
        except StoreTrouble as error:
            self._pause(str(error))
