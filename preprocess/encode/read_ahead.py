"""Work on the next items while one is waited for: decoding and resampling leave Python's lock to other threads."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def read_ahead(read: Callable[[T], R], items: Sequence[T], num_threads: int) -> Iterator[Callable[[], R]]:
    """A call for each item, in order, that returns or raises what `read(item)` does.

    Threads are at work on it, and on twice their number of items after it, before it is called. Without threads
    the call does the work itself.
    """
    if num_threads == 0:
        yield from (partial(read, item) for item in items)
        return
    with ThreadPoolExecutor(num_threads) as pool:
        begun = deque()
        for item in items:
            begun.append(pool.submit(read, item))
            if len(begun) > 2 * num_threads:
                yield begun.popleft().result
        while begun:
            yield begun.popleft().result
