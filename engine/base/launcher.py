"""The processes that started this rank: when one of them is gone, nobody watches over the rank any more.

DeepSpeed starts a rank as `deepspeed` (the runner) -> launch.py -> rank. The runner of a single node handles no
signals: when it is killed, launch.py and the ranks live on, and nobody sees them train.
"""

import os
from pathlib import Path

_RUNNERS = {"deepspeed", "deepspeed.pt", "ds", "deepspeed.launcher.runner"}


class Launcher:
    """This rank's parent and, where that is DeepSpeed's, the runner above it.

    Made as early as a rank can: what has died before is not missed. Other processes further up (a shell, a
    scheduler) may come and go: a login shell that ends is no reason to stop.
    """

    def __init__(self) -> None:
        self._parent = os.getppid()
        runner = _parent_of(self._parent)
        self._runner = runner if _is_runner(runner) else None

    def is_gone(self) -> bool:
        """Whether one of them died: the kernel then gives its child another parent (no id is reused meanwhile)."""
        if os.getppid() != self._parent:
            return True
        return self._runner is not None and _parent_of(self._parent) != self._runner


def _parent_of(pid: int) -> int | None:
    """The parent of a process; None where there is no such process to be seen (in a container: its first)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(stat.rpartition(")")[2].split()[1])  # after the name, which may hold anything: state, parent


def _is_runner(pid: int | None) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return False
    # `python [options] .../bin/deepspeed ...` or `python -m deepspeed.launcher.runner ...`
    return any(Path(os.fsdecode(word)).name in _RUNNERS for word in words[:4])
