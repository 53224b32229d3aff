"""A pool of Ray actors, each holding one stage. The only file that knows Ray.

Ray's own retries stay off: they charge every queued call, lose the order and tell the actor no
attempt number. Paths go in and plain dicts come out, so nothing large passes the object store.
"""

import logging
import os
import secrets
from typing import Any

from pipeline.errors import RunError
from pipeline.pools.base import Outcome, one_line, process
from pipeline.stage import StageFactory, Task

ENVIRONMENT = {
    # Anyone who reaches Ray's ports may run code: the Ray we start gets a secret of its own.
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
    # Else Ray replaces a loopback address by the machine's own and listens on every interface;
    # off, it keeps to 127.0.0.1, as it does by default on other systems than Linux.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # no second environment for the workers
    "RAY_worker_niceness": "0",  # the work is the point of the run, not a background job
}
os.environ.update(ENVIRONMENT)

import ray  # noqa: E402 - reads these variables while it is imported

STARTUP_S = 180.0
OBJECT_STORE_BYTES = 128 * 2**20
INIT_TRIES = 2  # a loaded machine may miss Ray's start-up deadline once


class Worker:
    """What an actor is: one stage, and nothing raised across the process border."""

    def setup(self, factory: StageFactory) -> str:
        """Make the stage and set it up; returns why that failed, or ""."""
        try:
            self._stage = factory()
            self._stage.setup()
        except Exception as error:  # an exception that does not unpickle would lose its text
            return one_line(error)
        return ""

    def process(self, task: Task) -> dict[str, Any]:
        """Do one shard."""
        return process(self._stage, task)

    def close(self) -> None:
        """Close the stage."""
        self._stage.close()


def start_embedded(num_workers: int) -> bool:
    """Start a Ray of our own on loopback, unless this process has one already.

    Returns:
        Whether it was started here, and so is ours to shut down.

    Raises:
        RunError: If Ray does not come up.
    """
    if ray.is_initialized():
        return False
    fault = ""
    for _ in range(INIT_TRIES):
        try:
            ray.init(
                address="local",
                num_cpus=num_workers,  # a slot per worker; its threads are the stage's own affair
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                object_store_memory=OBJECT_STORE_BYTES,
                _node_ip_address="127.0.0.1",
            )
        except Exception as error:  # Ray raises bare Exception here
            fault = one_line(error)
            ray.shutdown()
        else:
            return True
    raise RunError(f"Ray did not start ({fault}); try again, or use --pool local")


class RayPool:
    """Actors on an embedded Ray; it is started by `start` and ended by `close`."""

    def __init__(self, num_workers: int = 1) -> None:
        """Plan the pool; nothing is started yet."""
        self._num_workers = num_workers
        self._ours = False
        self._free: list[Any] = []
        self._busy: dict[Any, tuple[Any, Task]] = {}

    def start(self, factory: StageFactory) -> None:
        """Start Ray and the actors, and set every stage up."""
        self._ours = start_embedded(self._num_workers)
        actor = ray.remote(num_cpus=1, max_restarts=0, max_task_retries=0)(Worker)
        self._free = [actor.remote() for _ in range(self._num_workers)]
        ready = [worker.setup.remote(factory) for worker in self._free]
        try:
            faults = ray.get(ready, timeout=STARTUP_S)
        except (ray.exceptions.RayError, TimeoutError) as error:
            raise RunError(f"a worker did not start: {one_line(error)}") from None
        for fault in filter(None, faults):
            raise RunError(f"a worker did not start: {fault}")

    @property
    def num_free(self) -> int:
        """Actors that wait for a task."""
        return len(self._free)

    @property
    def num_busy(self) -> int:
        """Tasks that run in an actor."""
        return len(self._busy)

    def submit(self, task: Task) -> None:
        """Hand a task to a free actor: one call in flight per actor, so a death costs one shard."""
        worker = self._free.pop()
        self._busy[worker.process.remote(task)] = (worker, task)

    def wait(self, timeout_s: float) -> list[Outcome]:
        """Report the tasks that ended; a dead actor leaves the pool."""
        if not self._busy:
            return []
        ended, _ = ray.wait(list(self._busy), num_returns=1, timeout=timeout_s)
        return [self._collect(ref) for ref in ended]

    def _collect(self, ref: Any) -> Outcome:
        worker, task = self._busy.pop(ref)
        try:
            report = ray.get(ref)
        except ray.exceptions.RayError as error:
            return Outcome(task.shard, error=f"worker died: {one_line(error)}", died=True)
        self._free.append(worker)
        return Outcome(task.shard, **report)

    def kill(self) -> None:
        """Kill the actors, then Ray if it is ours."""
        for worker in [*self._free, *(worker for worker, _ in self._busy.values())]:
            ray.kill(worker)
        self._free, self._busy = [], {}
        self._shut_down()

    def close(self) -> None:
        """Close the stages, end the actors, then Ray if it is ours."""
        if ray.is_initialized() and self._free:
            closing = [worker.close.remote() for worker in self._free]
            ray.wait(closing, num_returns=len(closing), timeout=STARTUP_S)
        self.kill()

    def _shut_down(self) -> None:
        if self._ours:
            ray.shutdown()
            self._ours = False
