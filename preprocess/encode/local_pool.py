"""Where work runs: a pool of forked processes on this machine.

Workers are forked from a parent that has loaded what they share. One that dies, or hangs, costs its job one more
try; a job that ends its worker twice comes back as WorkerDied and the others go on (multiprocessing.Pool would
hang, ProcessPoolExecutor would break for good). Workers die with their parent.
"""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from preprocess.common.errors import InputError

# Forked processes share tqdm's own lock: one that is killed while it holds it would stop every bar for good.
tqdm.set_lock(threading.RLock())

TRIES = 2
_place = 0
# A clip of half a minute takes a slow core half a minute.
_MAX_SILENCE_SEC = 900.0
_STOPS = {signal.SIGINT, signal.SIGTERM}


@dataclass(frozen=True)
class WorkerDied:
    """A job ended its worker in every try. `how` says how the last one ended."""

    how: str


@dataclass
class _Worker:
    place: int
    process: multiprocessing.Process
    connection: multiprocessing.connection.Connection
    job: int | None = None
    progress: float = 0.0
    heard_at: float = 0.0
    hung: bool = False


def run_local(
    work: Callable[[Any, Callable[[float], None]], Any],
    jobs: Sequence[Any],
    num_workers: int,
    on_progress: Callable[[float], None] = lambda amount: None,
    max_silence_sec: float = _MAX_SILENCE_SEC,
) -> Iterator[tuple[int, Any]]:
    """(job's number, result of `work(job, progress)` or WorkerDied), as they come.

    What workers say by `progress(amount)` reaches `on_progress`; a try that died is taken back by a negative
    amount. A worker that says nothing for `max_silence_sec` hangs and is killed. An InputError in `work` ends the
    run as it is; any other exception is a bug of ours and ends it with the worker's traceback.
    """
    num_workers = min(num_workers, len(jobs))
    lifeline, parent_end = os.pipe()
    waiting, tries = deque(range(len(jobs))), [0] * len(jobs)
    workers: list[_Worker] = []
    try:
        while waiting or any(worker.job is not None for worker in workers):
            while waiting and len(workers) < num_workers:
                place = min(set(range(num_workers)) - {worker.place for worker in workers})
                workers.append(_start(work, place, lifeline, parent_end))
            for worker in workers:
                if worker.job is None and waiting:
                    _give(worker, waiting.popleft(), jobs, tries)
            handles = [h for worker in workers for h in (worker.connection, worker.process.sentinel)]
            ready = multiprocessing.connection.wait(handles, timeout=max_silence_sec / 2)
            _kill_silent(workers, max_silence_sec)
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
                    yield worker.job, WorkerDied(_how_it_ended(worker, max_silence_sec))
    finally:
        for worker in workers:
            worker.process.kill()
            worker.process.join()
            worker.connection.close()
        os.close(lifeline)
        os.close(parent_end)


def _kill_silent(workers: list[_Worker], max_silence_sec: float) -> None:
    for worker in workers:
        silent = worker.job is not None and time.monotonic() - worker.heard_at > max_silence_sec
        if silent and not worker.connection.poll():
            worker.hung = True
            worker.process.kill()


def _how_it_ended(worker: _Worker, max_silence_sec: float) -> str:
    return f"no sign of life for {max_silence_sec:.0f} s" if worker.hung else f"exit code {worker.process.exitcode}"


def worker_number() -> int:
    """This worker's number: below the number of workers, and no other worker's that is alive. 0 outside a pool."""
    return _place


def _start(work: Callable, place: int, lifeline: int, parent_end: int) -> _Worker:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(work, place, theirs, lifeline, parent_end), daemon=True)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)  # until the worker no longer has its parent's handlers
    process.start()
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    theirs.close()  # or a dead worker's pipe would never end
    return _Worker(place, process, ours)


def _give(worker: _Worker, job: int, jobs: Sequence[Any], tries: list[int]) -> None:
    worker.job, worker.progress, worker.heard_at = job, 0.0, time.monotonic()
    tries[job] += 1
    with contextlib.suppress(BrokenPipeError):  # it died idle: its sentinel says so, and the job is given again
        worker.connection.send(jobs[job])


def _read_messages(worker: _Worker, on_progress: Callable[[float], None]) -> Iterator[tuple[int, Any]]:
    """Everything the worker has said; a message cut off by its death ends the listening."""
    try:
        while worker.connection.poll():
            kind, value = worker.connection.recv()
            worker.heard_at = time.monotonic()
            if kind == "progress":
                worker.progress += value
                on_progress(value)
            elif kind == "result":
                job, worker.job = worker.job, None
                yield job, value
            elif kind == "refused":
                raise value
            else:
                raise RuntimeError(f"a worker failed:\n{value}")
    except (EOFError, ConnectionResetError):
        return


def _serve(
    work: Callable, place: int, connection: multiprocessing.connection.Connection, lifeline: int, parent_end: int
) -> None:
    global _place
    _place = place
    os.close(parent_end)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it too, and ends its workers
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
    """Nobody writes to the lifeline: reading it ends when the parent, its only holder, is gone."""
    os.read(lifeline, 1)
    os._exit(1)
