"""Where work runs: a pool of forked processes on this machine.

Workers are forked from a parent that has loaded what they share. One that dies costs its job one more try; a
job that kills its worker twice comes back as WorkerDied and the others go on (multiprocessing.Pool would hang,
ProcessPoolExecutor would break for good). Workers die with their parent.
"""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

_TRIES = 2


@dataclass(frozen=True)
class WorkerDied:
    """A job killed its worker in every try. `exit_code` as Process has it: -9 is SIGKILL."""

    exit_code: int


@dataclass
class _Worker:
    process: multiprocessing.Process
    connection: multiprocessing.connection.Connection
    job: int | None = None
    progress: float = 0.0


def run_local(
    work: Callable[[Any, Callable[[float], None]], Any],
    jobs: Sequence[Any],
    num_workers: int,
    on_progress: Callable[[float], None] = lambda amount: None,
) -> Iterator[tuple[int, Any]]:
    """(job's number, result of `work(job, progress)` or WorkerDied), as they come.

    What workers say by `progress(amount)` reaches `on_progress`; a try that died is taken back by a negative
    amount. An exception in `work` is a bug of ours: it ends the run with the worker's traceback.
    """
    num_workers = min(num_workers, len(jobs))
    lifeline, parent_end = os.pipe()
    waiting, tries = deque(range(len(jobs))), [0] * len(jobs)
    workers: list[_Worker] = []
    try:
        while waiting or any(worker.job is not None for worker in workers):
            while waiting and len(workers) < num_workers:
                workers.append(_start(work, lifeline, parent_end))
            for worker in workers:
                if worker.job is None and waiting:
                    _give(worker, waiting.popleft(), jobs, tries)
            handles = [h for worker in workers for h in (worker.connection, worker.process.sentinel)]
            ready = multiprocessing.connection.wait(handles)
            for worker in [w for w in workers if w.connection in ready or w.process.sentinel in ready]:
                yield from _hear(worker, on_progress)
                if worker.process.sentinel not in ready:
                    continue
                workers.remove(worker)
                worker.process.join()
                worker.connection.close()
                if worker.job is None:
                    continue
                on_progress(-worker.progress)
                if tries[worker.job] < _TRIES:
                    waiting.appendleft(worker.job)
                else:
                    yield worker.job, WorkerDied(worker.process.exitcode)
    finally:
        for worker in workers:
            worker.process.kill()
            worker.process.join()
            worker.connection.close()
        os.close(lifeline)
        os.close(parent_end)


def _start(work: Callable, lifeline: int, parent_end: int) -> _Worker:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(work, theirs, lifeline, parent_end), daemon=True)
    process.start()
    theirs.close()  # or a dead worker's pipe would never end
    return _Worker(process, ours)


def _give(worker: _Worker, job: int, jobs: Sequence[Any], tries: list[int]) -> None:
    worker.job, worker.progress = job, 0.0
    tries[job] += 1
    with contextlib.suppress(BrokenPipeError):  # it died idle: its sentinel says so, and the job is given again
        worker.connection.send(jobs[job])


def _hear(worker: _Worker, on_progress: Callable[[float], None]) -> Iterator[tuple[int, Any]]:
    """Everything the worker has said; a message cut off by its death ends the listening."""
    try:
        while worker.connection.poll():
            kind, value = worker.connection.recv()
            if kind == "progress":
                worker.progress += value
                on_progress(value)
            elif kind == "result":
                job, worker.job = worker.job, None
                yield job, value
            else:
                raise RuntimeError(f"a worker failed:\n{value}")
    except (EOFError, ConnectionResetError):
        return


def _serve(work: Callable, connection: multiprocessing.connection.Connection, lifeline: int, parent_end: int) -> None:
    os.close(parent_end)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it too, and ends its workers
    threading.Thread(target=_die_with_parent, args=(lifeline,), daemon=True).start()
    while True:
        job = connection.recv()
        try:
            connection.send(("result", work(job, lambda amount: connection.send(("progress", amount)))))
        except Exception:
            connection.send(("bug", traceback.format_exc()))


def _die_with_parent(lifeline: int) -> None:
    """Nobody writes to the lifeline: reading it ends when the parent, its only holder, is gone."""
    os.read(lifeline, 1)
    os._exit(1)
