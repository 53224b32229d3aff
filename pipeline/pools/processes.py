"""A pool of processes on this machine: several workers, or one that may die without the driver."""

import multiprocessing
import signal
import threading
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from pipeline.errors import one_line
from pipeline.pools.base import Died, Done, Event, PoolConfig, Ready
from pipeline.stage import StageFactory, Task
from pipeline.tracker import Traces, read_traces
from pipeline.worker import Report, Worker, WorkerConfig

CLOSE_S = 60.0


def _work(connection: Connection, factory: StageFactory, config: WorkerConfig) -> None:
    """What a process does: feed what it is sent, tell what becomes of it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the driver decides
    lock = threading.Lock()

    def send(message: Any) -> None:
        with lock:
            connection.send(message)

    worker = Worker(config, send)
    try:
        worker.setup(factory)
    except Exception as error:
        send(one_line(error))
        return
    send(None)
    while (task := connection.recv()) is not None:
        worker.feed(task)
        send(None)
    worker.close()


@dataclass(slots=True)
class _Process:
    process: BaseProcess
    connection: Connection
    tracker: Path
    was_ready: bool = False


class ProcessPool:
    """Spawned processes, each with a worker; they die with the driver."""

    def __init__(self, num_workers: int, config: PoolConfig, scratch: Path) -> None:
        """Plan the pool; `scratch` is a folder of this run."""
        self.num_workers = num_workers
        self._config, self._scratch = config, scratch
        self._context = multiprocessing.get_context("spawn")
        self._processes: dict[int, _Process] = {}
        self._num_started = 0

    def start(self, factory: StageFactory) -> None:
        """Start every process."""
        self._factory = factory
        for worker in range(self.num_workers):
            self._start(worker)

    def _start(self, worker: int) -> None:
        self._num_started += 1
        name = f"process-{worker}-{self._num_started}"
        config = self._config.worker(name, self._scratch, dies_with_parent=True)
        here, there = self._context.Pipe()
        process = self._context.Process(
            target=_work, args=(there, self._factory, config), name=f"vsp {name}", daemon=True
        )
        process.start()
        there.close()
        self._processes[worker] = _Process(process, here, config.tracker)

    def submit(self, worker: int, task: Task) -> None:
        """Send the task; a process that is dead will be told of by `wait`."""
        try:
            self._processes[worker].connection.send(task)
        except OSError:
            return

    def wait(self, timeout_s: float) -> list[Event]:
        """Read what the processes sent; one that ended without a word has died."""
        by_connection: dict[Any, int] = {p.connection: w for w, p in self._processes.items()}
        ready = wait(list(by_connection), timeout=timeout_s)
        return [self._receive(by_connection[connection]) for connection in ready]

    def _receive(self, worker: int) -> Event:
        there = self._processes[worker]
        try:
            message = there.connection.recv()
        except (EOFError, OSError):
            return self._bury(worker)
        if isinstance(message, Report):
            return Done(worker, message)
        if message is None:
            there.was_ready = True
            return Ready(worker)
        self._processes.pop(worker).process.join()
        return Died(worker, message, was_ready=False, is_hopeless=True)

    def _bury(self, worker: int) -> Died:
        there = self._processes.pop(worker)
        there.process.join()
        traces = read_traces(there.tracker)
        there.tracker.unlink(missing_ok=True)
        reason = f"exit code {there.process.exitcode}"
        return Died(worker, reason, traces, was_ready=there.was_ready)

    def traces(self, worker: int) -> Traces:
        """What a living worker has noted."""
        there = self._processes.get(worker)
        return read_traces(there.tracker) if there else Traces()

    def replace(self, worker: int) -> None:
        """Kill the process, if it lives, and start another."""
        there = self._processes.pop(worker, None)
        if there:
            there.process.kill()
            there.process.join()
            there.tracker.unlink(missing_ok=True)
        self._start(worker)

    def kill(self) -> None:
        """Kill all processes."""
        for there in self._processes.values():
            there.process.kill()
            there.process.join()
            there.tracker.unlink(missing_ok=True)
        self._processes = {}

    def close(self) -> None:
        """Tell the processes to end, then see to it."""
        for there in self._processes.values():
            if there.process.is_alive() and there.was_ready:
                there.connection.send(None)
        for there in self._processes.values():
            there.process.join(CLOSE_S if there.was_ready else 0)
        self.kill()
