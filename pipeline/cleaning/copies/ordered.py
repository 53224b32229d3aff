"""Work over several threads whose results come in order, with few of them held at a time."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Given = TypeVar("Given")
Result = TypeVar("Result")
_AHEAD = 4


def ordered(
    pool: ThreadPoolExecutor, work: Callable[[Given], Result], items: Sequence[Given]
) -> Iterator[Result]:
    """Like `map`, but no more than a few results wait to be fetched."""
    running: deque[Future[Result]] = deque()
    for item in items:
        running.append(pool.submit(work, item))
        if len(running) > _AHEAD:
            yield running.popleft().result()
    while running:
        yield running.popleft().result()
