"""A pool of forked processes on this machine, which outlives workers that die.

Workers are forked from a parent that has loaded what they share. The job of a worker that dies or hangs is tried once
more; a job whose worker dies twice gives WorkerDied, and the other jobs go on (multiprocessing.Pool would hang,
ProcessPoolExecutor would refuse all further work). Workers die with their parent.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from typing import Any, TypeVar

from tqdm import tqdm

from preprocess.common.errors import InputError

Job = TypeVar("Job")
Result = TypeVar("Result")
# Forked processes share tqdm's own lock: a worker killed while it holds that lock would stop every bar for good.
tqdm.set_lock(threading.RLock())

TRIES = 2
_worker_number = 0
_MAX_SILENCE_SEC = 900.0  # a slow core needs half a minute for a clip of half a minute
_STOPS = {signal.SIGINT, signal.SIGTERM}


@dataclass(frozen=True)
class WorkerDied:
    """The outcome of a job whose worker died in every try. `how` says how the last worker ended."""

    how: str


@dataclass
class _Worker:
    number: int
    process: ForkProcess
    connection: Connection
    job: int | None = None
    progress: float = 0.0
    last_message_at: float = 0.0
    hung: bool = False


def run_local(
    work: Callable[[Job, Callable[[float], None]], Result],
    jobs: Sequence[Job],
    num_workers: int,
    on_progress: Callable[[float], None] = lambda amount: None,
    max_silence_sec: float = _MAX_SILENCE_SEC,
) -> Generator[tuple[int, Result | WorkerDied], None, None]:
    """(job's number, result of `work(job, progress)` or WorkerDied), in the order in which jobs end.

    Each amount that a worker passes to `progress` reaches `on_progress`; a negative amount takes back those of a try
    that died. A worker that sends nothing for `max_silence_sec` counts as hung and is killed. An InputError in `work`
    is raised here as it is; any other exception is a bug of ours: a RuntimeError with the worker's traceback.
    """
    num_workers = min(num_workers, len(jobs))
    lifeline, parent_end = os.pipe()
    waiting, tries = deque(range(len(jobs))), [0] * len(jobs)
    workers: list[_Worker] = []
    try:
        while waiting or any(worker.job is not None for worker in workers):
            while waiting and len(workers) < num_workers:
                number = min(set(range(num_workers)) - {worker.number for worker in workers})
                workers.append(_start(work, number, lifeline, parent_end))
            for worker in workers:
                if worker.job is None and waiting:
                    job = waiting.popleft()
                    tries[job] += 1
                    _give_job(worker, job, jobs[job])
            handles = [h for worker in workers for h in (worker.connection, worker.process.sentinel)]
            ready = wait(handles, timeout=max_silence_sec / 2)
            _kill_hung(workers, max_silence_sec)
            for worker in [w for w in workers if w.connection in ready or w.process.sentinel in ready]:
                yield from _read_messages(worker, on_progress)
                if worker.process.sentinel not in ready:
                    continue
                workers.remove(worker)
                worker.process.join()
                worker.connection.close()
                if worker.job is None:
                    continue
                on_progress(-worker.progress)
                if tries[worker.job] < TRIES:
                    waiting.appendleft(worker.job)
                else:
                    exit_code = f"exit code {worker.process.exitcode}"
                    how = f"no sign of life for {max_silence_sec:.0f} s" if worker.hung else exit_code
                    yield worker.job, WorkerDied(how)
    finally:
        for worker in workers:
            worker.process.kill()
            worker.process.join()
            worker.connection.close()
        os.close(lifeline)
        os.close(parent_end)


def _kill_hung(workers: list[_Worker], max_silence_sec: float) -> None:
    for worker in workers:
        silent = worker.job is not None and time.monotonic() - worker.last_message_at > max_silence_sec
        if silent and not worker.connection.poll():
            worker.hung = True
            worker.process.kill()


def worker_number() -> int:
    """This worker's number, from 0 to num_workers - 1; no two live workers have the same. 0 outside a pool."""
    return _worker_number


def _start(work: Callable[..., Any], number: int, lifeline: int, parent_end: int) -> _Worker:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(work, number, theirs, lifeline, parent_end), daemon=True)
    # The worker unblocks these once it has dropped the signal handlers that it inherits.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
    process.start()
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    theirs.close()  # else reading the pipe of a dead worker would wait for ever
    return _Worker(number, process, ours)


def _give_job(worker: _Worker, number: int, job: Any) -> None:
    worker.job, worker.progress, worker.last_message_at = number, 0.0, time.monotonic()
    with contextlib.suppress(BrokenPipeError):  # the worker died idle: its sentinel is ready, and the job goes back
        worker.connection.send(job)


def _read_messages(worker: _Worker, on_progress: Callable[[float], None]) -> Iterator[tuple[int, Any]]:
    """(job's number, result) of the messages that wait; they end with one that the worker's death cut off."""
    try:
        while worker.connection.poll():
            kind, value = worker.connection.recv()
            worker.last_message_at = time.monotonic()
            if kind == "progress":
                worker.progress += value
                on_progress(value)
            elif kind == "result":
                number, worker.job = worker.job, None
                assert number is not None
                yield number, value
            elif kind == "refused":
                raise value
            else:
                raise RuntimeError(f"a worker failed:\n{value}")
    except (EOFError, ConnectionResetError):
        return


def _serve(work: Callable[..., Any], number: int, connection: Connection, lifeline: int, parent_end: int) -> None:
    global _worker_number
    _worker_number = number
    os.close(parent_end)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and ends its workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)
    threading.Thread(target=_die_with_parent, args=(lifeline,), daemon=True).start()
    while True:
        job = connection.recv()
        try:
            connection.send(("result", work(job, lambda amount: connection.send(("progress", amount)))))
        except InputError as error:
            connection.send(("refused", error))
        except Exception:
            connection.send(("bug", traceback.format_exc()))


def _die_with_parent(lifeline: int) -> None:
    """Wait until the parent ends. Nobody writes to the lifeline: a read returns once the parent's end is closed."""
    os.read(lifeline, 1)
    os._exit(1)
