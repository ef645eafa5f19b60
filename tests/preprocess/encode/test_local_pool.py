"""The pool outlives its workers, and its workers do not outlive it."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from multiprocessing import get_context
from pathlib import Path

import pytest
from tqdm import tqdm

from preprocess.common.errors import InputError, stop_on_signals
from preprocess.encode.local_pool import WorkerDied, run_local
from preprocess.encode.ray_pool import run_ray


def square(job, progress):
    progress(1.0)
    return job * job


def test_every_job_comes_back_with_any_number_of_workers():
    for num_workers in (1, 3, 9):
        heard = []
        results = dict(run_local(square, list(range(7)), num_workers, heard.append))
        assert results == {n: n * n for n in range(7)}
        assert sum(heard) == 7.0
    assert list(run_local(square, [], 2)) == []


def test_a_killed_worker_costs_its_job_one_more_try(tmp_path):
    def die_once(job, progress):
        progress(5.0)
        if job == 3 and not (tmp_path / "tried").exists():
            (tmp_path / "tried").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return job

    heard = []
    results = dict(run_local(die_once, list(range(6)), 2, heard.append))
    assert results == {n: n for n in range(6)}
    assert sum(heard) == 30.0, "what the dead try had said is taken back"


def test_a_job_that_always_kills_its_worker_is_reported_and_the_others_go_on(tmp_path):
    def die(job, progress):
        if job == 2:
            with open(tmp_path / "tries", "a") as file:
                file.write("x")
            os.kill(os.getpid(), signal.SIGKILL)
        return job

    results = dict(run_local(die, list(range(5)), 2))
    assert results == {0: 0, 1: 1, 2: WorkerDied("exit code -9"), 3: 3, 4: 4}
    assert (tmp_path / "tries").read_text() == "xx"


def test_a_worker_that_hangs_is_killed_and_the_others_go_on(tmp_path):
    def hang(job, progress):
        if job == 1:
            with open(tmp_path / "tries", "a") as file:
                file.write("x")
            time.sleep(600)
        for _ in range(4):  # longer than the silence allowed, but with signs of life
            time.sleep(2)
            progress(1.0)
        return job

    results = dict(run_local(hang, list(range(3)), 2, max_silence_sec=6))
    assert results == {0: 0, 1: WorkerDied("no sign of life for 6 s"), 2: 2}
    assert (tmp_path / "tries").read_text() == "xx"


def test_an_input_error_in_a_worker_ends_the_run_as_it_is():
    def refuse(job, progress):
        raise InputError("the disk", "no room", "some", "Free it.")

    with pytest.raises(InputError, match="the disk: found no room"):
        list(run_local(refuse, [1], 1))


def test_a_bug_in_a_worker_ends_the_run_with_its_traceback():
    def fail(job, progress):
        raise KeyError("the bug")

    with pytest.raises(RuntimeError, match=r"(?s)Traceback.*KeyError: 'the bug'"):
        list(run_local(fail, [1, 2], 2))


def alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_workers_die_with_their_parent(tmp_path):
    program = textwrap.dedent(
        """
        import os, sys, time
        from pathlib import Path
        from preprocess.encode.local_pool import run_local

        def work(job, progress):
            Path(sys.argv[1], str(os.getpid())).touch()
            time.sleep(600)

        list(run_local(work, [0, 1, 2], 2))
        """
    )
    parent = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)])
    while len(list(tmp_path.iterdir())) < 2:
        assert parent.poll() is None
        time.sleep(0.05)
    workers = [int(path.name) for path in tmp_path.iterdir()]
    assert len(workers) == 2
    assert all(alive(pid) for pid in workers)
    parent.kill()
    parent.wait()
    while any(alive(pid) for pid in workers):
        time.sleep(0.05)


def test_a_worker_has_none_of_its_parents_handlers():
    """It would end with a traceback where its parent says a line."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    stop_on_signals()
    try:
        work = lambda job, progress: (signal.getsignal(job), signal.pthread_sigmask(signal.SIG_BLOCK, []))  # noqa: E731
        found = dict(run_local(work, [signal.SIGINT, signal.SIGTERM], 1))
    finally:
        for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
            signal.signal(number, handler)
    assert found == {0: (signal.SIG_IGN, set()), 1: (signal.SIG_DFL, set())}


def test_a_process_killed_while_it_draws_a_bar_stops_no_other_bar():
    def die_holding_the_lock():
        tqdm.get_lock().acquire()
        os.kill(os.getpid(), signal.SIGKILL)

    tqdm.get_lock()
    process = get_context("fork").Process(target=die_holding_the_lock)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert tqdm.get_lock().acquire(blocking=False)  # else a bar of this process would wait for ever
    tqdm.get_lock().release()


def test_ray_is_asked_for_by_name_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"no Ray.*requirements-cluster\.txt"):
        list(run_ray(square, [1]))
