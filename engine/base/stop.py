"""Stopping on request: a signal to any rank ends the run on all ranks after the current step, with a checkpoint."""

import signal

import torch
import torch.distributed as dist

from engine.base.launcher import Launcher

# launch.stop sends SIGUSR1, a scheduler or the launcher SIGTERM, and Ctrl-C SIGINT to every rank.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopRequest:
    """Whether the run should stop: a rank received one of SIGNALS, or its launcher is gone.

    Replaces the handlers of SIGNALS until `close`.
    """

    def __init__(self, launcher: Launcher) -> None:
        self._asked = False
        self._launcher = launcher
        self._group = dist.new_group(backend="gloo")  # on CPU: asking at each step must not wait for the GPU
        self._old_handlers = {number: signal.signal(number, self._on_signal) for number in SIGNALS}

    def _on_signal(self, number: int, frame: object) -> None:
        self._asked = True

    def agreed(self) -> bool:
        """Whether any rank was asked to stop: a collective with the same result on every rank."""
        flag = torch.tensor(int(self._asked or self._launcher.is_gone()))
        dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self._group)
        return bool(flag)

    def close(self) -> None:
        """Restore the old signal handlers and destroy the process group."""
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        dist.destroy_process_group(self._group)


def ignore_signals(worker: int) -> None:
    """Ignore SIGNALS in a loader worker: a signal to the whole process group must not end it before its rank."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
