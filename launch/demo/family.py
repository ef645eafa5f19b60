"""Processes that end together: after the demo is stopped, by whatever signal, nothing of it is still running.

The demo is two processes. The first one waits and passes signals on. The second one does the work, and Linux sends it
SIGTERM when the first one dies, even by SIGKILL. Each command of the demo runs in its own process group, so that the
second process can end the command with all its descendants.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

from preprocess.common.errors import exit_on_input_error, stop_on_signals

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h


def run_in_own_process(work: Callable[[], None]) -> int:
    """Run `work` in a child process and return its exit code.

    The child gets SIGINT and SIGTERM from this process, and SIGTERM if this process dies.
    """
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        os.setsid()  # Ctrl-C in the terminal then reaches the parent alone, which passes it on once
        stop_on_signals()
        prctl = ctypes.CDLL(None).prctl
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        prctl(_PR_SET_CHILD_SUBREAPER, 1)  # orphaned descendants become children of this process
        if os.getppid() != parent:  # the parent died before prctl
            os.kill(os.getpid(), signal.SIGTERM)
        exit_on_input_error(work)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: os.kill(child, number))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code if code >= 0 else 128 - code


def run_family(command: list[str | Path], environment: dict[str, str], capture: bool) -> tuple[int, str]:
    """(exit code, standard output, "" unless captured) of a command; kills all its descendants at the end."""
    output = subprocess.PIPE if capture else None
    process = subprocess.Popen(command, env=environment, stdout=output, text=True, process_group=0)
    try:
        text, _ = process.communicate()
    finally:
        _end_group(process.pid)
    return process.returncode, text or ""


def _end_group(group: int) -> None:
    """Kill the remaining processes of a group, and wait until each has ended."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-group, 0)
