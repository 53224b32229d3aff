"""A pool of Ray actors, each holding one stage. The only file that knows Ray.

Ray's own retries stay off: they charge every queued call, lose the order and tell the actor no
attempt number. Paths go in and plain dicts come out, so nothing large passes the object store.
"""

import contextlib
import logging
import os
import queue
import secrets
import socket
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import RunError, UserError, one_line
from pipeline.pools.base import Died, Done, Event, PoolConfig, Ready
from pipeline.stage import StageFactory, Task
from pipeline.tracker import Traces, read_traces
from pipeline.worker import Report, Worker, WorkerConfig

# Ray reads these while it is imported, so it is imported only once they are set.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # no second environment for the workers
}
# Only for a Ray of our own: a cluster that we join has its own token and addresses.
EMBEDDED = {
    # Anyone who reaches Ray's ports may run code: the Ray we start gets a secret of its own.
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
    # Else Ray replaces a loopback address by the machine's own and listens on every interface;
    # off, it keeps to 127.0.0.1, as it does by default on other systems than Linux.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_worker_niceness": "0",  # the work is the point of the run, not a background job
}

OBJECT_STORE_BYTES = 128 * 2**20
INIT_TRIES = 2  # a loaded machine may miss Ray's start-up deadline once
CONNECT_S = 5.0
CLOSE_S = 60.0
MAX_CALLS = 4  # of one actor at a time: feed, next_report, traces, close
LOOK_S = 5.0  # how often an idle driver asks whether its node lives
FETCH_S = 10.0  # for a node to tell what a dead actor had in hand
QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}


class Actor:
    """What an actor is: one worker, and nothing raised across the process border.

    Calls run in threads of their own: `feed`, and `next_report`, which waits, go on side by side.
    """

    def __init__(self) -> None:
        """Make the place where reports wait to be fetched."""
        self._reports: queue.SimpleQueue[Report] = queue.SimpleQueue()
        self._meters: Any = None

    def setup(self, factory: StageFactory, config: WorkerConfig) -> tuple[str, str]:
        """Set a worker up; returns why that failed, or "", and the node it is on."""
        import ray

        node = ray.get_runtime_context().get_node_id()
        self._tracker = config.tracker
        self._worker = Worker(config, self._tell)
        try:
            self._worker.setup(factory)
        except Exception as error:  # an exception that does not unpickle would lose its text
            return one_line(error), node
        self._meters = _Meters()
        return "", node

    def _tell(self, report: Report) -> None:
        self._meters.update(report)
        self._reports.put(report)

    def feed(self, task: Task) -> None:
        """Feed one task."""
        self._worker.feed(task)

    def next_report(self) -> Report:
        """Wait for the next report."""
        return self._reports.get()

    def traces(self) -> Traces:
        """What the worker has in hand, for a driver that does not see its file."""
        return read_traces(self._tracker)

    def close(self) -> None:
        """Close the worker."""
        self._worker.close()


def _take_traces(path: Path) -> Traces:
    """Read and remove a dead actor's file, on its node."""
    traces = read_traces(path)
    path.unlink(missing_ok=True)
    return traces


class _Meters:
    """Counters for whoever scrapes Ray; the truth is in the commit records."""

    def __init__(self) -> None:
        from ray.util.metrics import Counter, Histogram

        self._records = Counter("vsp_records", "Records done, by status.", ("status",))
        self._shards = Counter("vsp_shards", "Shards that ended, by outcome.", ("outcome",))
        bounds = [0.1, 1.0, 10.0, 60.0, 600.0, 3600.0]
        self._seconds = Histogram("vsp_shard_seconds", "From first record to commit.", bounds)

    def update(self, report: Report) -> None:
        for status, count in report.counts.items():
            self._records.inc(count, {"status": status})
        self._shards.inc(1, {"outcome": "failed" if report.error else "committed"})
        self._seconds.observe(report.seconds)


def start_embedded(num_workers: int) -> bool:
    """Start a Ray of our own on loopback, unless this process has one already.

    Returns:
        Whether it was started here, and so is ours to shut down.

    Raises:
        RunError: If Ray does not come up.
    """
    os.environ.update(ENVIRONMENT | EMBEDDED)
    import ray

    if ray.is_initialized():
        return False
    fault = ""
    for _ in range(INIT_TRIES):
        try:
            ray.init(
                address="local",
                num_cpus=num_workers,  # a slot per worker; its threads are the stage's own affair
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                _node_ip_address="127.0.0.1",
                **QUIET,
            )
        except Exception as error:  # Ray raises bare Exception here
            fault = one_line(error)
            ray.shutdown()
        else:
            return True
    raise RunError(f"Ray did not start ({fault}); try again, or use --pool local")


def join_cluster(address: str) -> bool:
    """Connect to a running cluster, unless this process is connected already.

    The token is the user's: RAY_AUTH_MODE and RAY_AUTH_TOKEN (or its file) stay as they are.

    Raises:
        UserError: If nothing answers there: Ray itself would try for minutes.
        RunError: If what answers does not let us in.
    """
    os.environ.update(ENVIRONMENT)
    import ray

    if ray.is_initialized():
        return False
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address != "auto" and port.isdigit():
        try:
            socket.create_connection((host, int(port)), CONNECT_S).close()
        except OSError as error:
            reason = error.strerror or str(error)
            raise UserError(
                f"--ray-address {address}: {reason}; start a cluster with `ray start --head`"
            ) from None
    try:
        ray.init(address=address, **QUIET)
    except Exception as error:
        hint = "if it has a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN to it"
        raise RunError(f"Ray at {address}: {one_line(error)}; {hint}") from None
    return True


@dataclass(frozen=True, slots=True)
class Placement:
    """What an actor asks of the cluster.

    Attributes:
        num_cpus: Cores, for Ray's bookkeeping.
        num_gpus: GPUs; a fraction shares one.
        address: A running cluster; "" for one of our own.
    """

    num_cpus: float = 1
    num_gpus: float = 0
    address: str = ""


@dataclass(slots=True)
class _Handle:
    """An actor and its calls in flight."""

    actor: Any
    tracker: Path
    setup: Any
    refs: set[Any] = field(default_factory=set)
    reports: Any = None
    asked: Any = None
    told: Traces = field(default_factory=Traces)
    node: str = ""
    was_ready: bool = False


class RayPool:
    """Actors that hold a worker each, on an embedded Ray or in a cluster."""

    def __init__(self, num_workers: int, config: PoolConfig, placement: Placement) -> None:
        """Plan the pool; nothing is started yet."""
        self.num_workers = num_workers
        self._config, self._placement = config, placement
        self._ours = False
        self._handles: dict[int, _Handle] = {}
        self._num_started = 0
        self._lost_nodes: set[str] = set()
        self._looked_s = 0.0
        # Whether the actors' files can be seen from here: on this machine, or shared by all.
        self._is_near = bool(config.folder) or not placement.address

    def start(self, factory: StageFactory) -> None:
        """Start or join Ray, and begin to start the actors."""
        self._factory = factory
        if self._placement.address:
            self._ours = join_cluster(self._placement.address)
        else:
            self._ours = start_embedded(self.num_workers)
        import ray  # not before the environment is set

        self._ray: Any = ray
        for worker in range(self.num_workers):
            self._start(worker)

    def _start(self, worker: int) -> None:
        self._num_started += 1
        # A cluster outlives us, and an actor's parent there is no business of ours.
        embedded = not self._placement.address
        name = f"actor-{worker}-{self._num_started}-{secrets.token_hex(3)}"
        config = self._config.worker(name, Path(tempfile.gettempdir()) / "vsp", embedded)
        options = {
            "num_cpus": self._placement.num_cpus,
            "num_gpus": self._placement.num_gpus,
            "max_restarts": 0,
            "max_task_retries": 0,
            "max_concurrency": MAX_CALLS,
            "scheduling_strategy": "SPREAD",
        }
        actor = self._ray.remote(Actor).options(**options).remote()
        setup = actor.setup.remote(self._factory, config)
        self._handles[worker] = _Handle(actor, config.tracker, setup, {setup})

    def submit(self, worker: int, task: Task) -> None:
        """Call the actor; one task is fed at a time."""
        there = self._handles[worker]
        there.refs.add(there.actor.feed.remote(task))

    def wait(self, timeout_s: float) -> list[Event]:
        """Collect the calls that ended.

        Raises:
            RunError: If no actor can ever run again.
        """
        owners = {ref: worker for worker, there in self._handles.items() for ref in there.refs}
        if not owners:
            return []
        ended, _ = self._ray.wait(list(owners), num_returns=1, timeout=timeout_s)
        if not ended:
            self._check_node()
        more, _ = self._ray.wait(list(owners), num_returns=len(owners), timeout=0)
        events = []
        for ref in dict.fromkeys([*ended, *more]):
            if owners[ref] in self._handles:  # else it died a moment ago
                events.append(self._collect(owners[ref], ref))
        return events

    def _check_node(self) -> None:
        """A Ray of our own has one node; without it, actors would be waited for in vain."""
        now_s = time.monotonic()
        if self._placement.address or now_s < self._looked_s + LOOK_S:
            return
        self._looked_s = now_s
        if not any(node["Alive"] for node in self._ray.nodes()):
            raise RunError("the node of the embedded Ray died; run the same command again")

    def _collect(self, worker: int, ref: Any) -> Event:
        there = self._handles[worker]
        there.refs.discard(ref)
        try:
            value = self._ray.get(ref)
        except self._ray.exceptions.RayError as error:
            return self._bury(worker, one_line(error))
        if ref == there.setup:
            fault, there.node = value
            if fault:
                self._handles.pop(worker)
                self._ray.kill(there.actor)
                return Died(worker, fault, was_ready=False, is_hopeless=True)
            there.was_ready = True
            self._lost_nodes.discard(there.node)
        if ref in (there.setup, there.reports):
            there.reports = there.actor.next_report.remote()
            there.refs.add(there.reports)
        return Done(worker, value) if isinstance(value, Report) else Ready(worker)

    def _bury(self, worker: int, reason: str) -> Died:
        there = self._handles.pop(worker)
        traces = _take_traces(there.tracker) if self._is_near else self._fetch(there)
        return Died(worker, reason, traces, was_ready=there.was_ready)

    def _fetch(self, there: _Handle) -> Traces:
        """What a dead actor left on its node; nothing where the node is gone with it."""
        if not there.node or there.node in self._lost_nodes:
            return Traces()
        ref = self._take(there)
        try:
            traces: Traces = self._ray.get(ref, timeout=FETCH_S)
        except self._ray.exceptions.RayError:
            self._lost_nodes.add(there.node)  # its other actors are not waited for
            return Traces()
        return traces

    def _take(self, there: _Handle) -> Any:
        """Have the node of an actor read and remove its file."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        on_its_node = NodeAffinitySchedulingStrategy(there.node, soft=False)
        take = self._ray.remote(_take_traces)
        options = {"num_cpus": 0, "max_retries": 0, "scheduling_strategy": on_its_node}
        return take.options(**options).remote(there.tracker)

    def traces(self, worker: int) -> Traces:
        """What a living actor has noted; a moment ago, where its file is on another machine."""
        there = self._handles.get(worker)
        if there is None:
            return Traces()
        return read_traces(there.tracker) if self._is_near else self._ask(there)

    def _ask(self, there: _Handle) -> Traces:
        """What an actor elsewhere told last; asks it again, and waits for nothing."""
        if there.asked is not None:
            ended, _ = self._ray.wait([there.asked], timeout=0)
            if not ended:
                return there.told
            with contextlib.suppress(self._ray.exceptions.RayError):  # `wait` tells of its death
                there.told = self._ray.get(there.asked)
        if there.was_ready:
            there.asked = there.actor.traces.remote()
        return there.told

    def replace(self, worker: int) -> None:
        """Kill the actor, if it lives, and start another."""
        there = self._handles.pop(worker, None)
        if there:
            self._end(there)
        self._start(worker)

    def _end(self, there: _Handle) -> None:
        self._ray.kill(there.actor)
        if self._is_near:
            there.tracker.unlink(missing_ok=True)
        elif there.node:
            self._take(there)

    def kill(self) -> None:
        """Kill the actors, then Ray if it is ours."""
        for there in self._handles.values():
            self._end(there)
        self._handles = {}
        if self._ours:
            self._ray.shutdown()
            self._ours = False

    def close(self) -> None:
        """Close the workers, end the actors, then Ray if it is ours."""
        closing = [t.actor.close.remote() for t in self._handles.values() if t.was_ready]
        if closing:
            self._ray.wait(closing, num_returns=len(closing), timeout=CLOSE_S)
        self.kill()
