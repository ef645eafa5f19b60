"""Stopping when asked: a signal to any rank ends the run on all ranks at the next global step, with a checkpoint."""

import signal

import torch
import torch.distributed as dist

from engine.base.launcher import Launcher

# SIGUSR1 is what launch.stop sends; SIGTERM what a scheduler or the launcher sends; SIGINT what Ctrl-C sends to all.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopRequest:
    """Hears SIGNALS on this rank, and sees whether the launcher is gone; `agreed` asks all ranks.

    Of the signal handlers it replaces, `close` puts back the old ones.
    """

    def __init__(self, launcher: Launcher) -> None:
        self._asked = False
        self._launcher = launcher
        self._group = dist.new_group(backend="gloo")  # on CPU: a question a step must not wait for the GPU
        self._before = {number: signal.signal(number, self._hear) for number in SIGNALS}

    def _hear(self, number: int, frame: object) -> None:
        self._asked = True

    def agreed(self) -> bool:
        """Whether any rank was asked to stop; a collective, the same answer on every rank."""
        flag = torch.tensor(int(self._asked or self._launcher.is_gone()))
        dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self._group)
        return bool(flag)

    def close(self) -> None:
        """Put the old handlers back and leave the group."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        dist.destroy_process_group(self._group)


def ignore_signals(worker: int) -> None:
    """For loader workers: a signal to the whole process group must not take them from a rank that wants to save."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
