"""Work that is done ahead in threads, and handed out in order."""

import queue
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import TypeVar

T = TypeVar("T")
_FAREWELL_S = 10.0  # a feeder that waits for an object store may outlive the run by its patience


def run_ahead(
    steps: Generator[Sequence[Callable[[], T]], None, None], threads: int, ahead: int
) -> Generator[list[T], None, None]:
    """Yield the results of each step's jobs, in order, with at most `ahead` steps begun before.

    `steps` is advanced in a thread of its own, and closed there. An exception of a job or of
    `steps` reaches the caller at the step it belongs to. Closing this generator ends the threads.

    Args:
        steps: The jobs of each step; they may run in any order and at once.
        threads: That run them.
        ahead: Bounds the memory.
    """
    room = threading.Semaphore(ahead)
    ready: queue.SimpleQueue[list[Future[T]] | BaseException | None] = queue.SimpleQueue()
    stop = threading.Event()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="vsp-faces")

    def feed() -> None:
        try:
            with closing(steps):
                while room.acquire() and not stop.is_set():
                    jobs = next(steps, None)
                    if jobs is None:
                        break
                    ready.put([pool.submit(job) for job in jobs])
            ready.put(None)
        except BaseException as error:
            ready.put(error)

    feeder = threading.Thread(target=feed, name="vsp-faces-feeder", daemon=True)
    feeder.start()
    try:
        while (futures := ready.get()) is not None:
            if isinstance(futures, BaseException):
                raise futures
            results = [future.result() for future in futures]
            room.release()
            yield results
    finally:
        stop.set()
        room.release()
        feeder.join(_FAREWELL_S)
        pool.shutdown(cancel_futures=True)
