"""Read the next items in threads while one is in use: decoding and resampling release Python's lock."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def read_ahead(read: Callable[[T], R], items: Sequence[T], num_threads: int) -> Iterator[Callable[[], R]]:
    """For each item, in order, a function that returns or raises what `read(item)` does.

    Threads read an item, and up to twice their number of the items after it, before its function is called. Without
    threads (0) the function reads the item itself.
    """
    if num_threads == 0:
        yield from (partial(read, item) for item in items)
        return
    with ThreadPoolExecutor(num_threads) as pool:
        begun: deque[Future[R]] = deque()
        for item in items:
            begun.append(pool.submit(read, item))
            if len(begun) > 2 * num_threads:
                yield begun.popleft().result
        while begun:
            yield begun.popleft().result
