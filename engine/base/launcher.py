"""Whether the processes that started this rank are alive: without them nobody controls the rank any more.

DeepSpeed starts a rank as `deepspeed` (the runner) -> launch.py -> rank. The runner of a single node handles no
signals: when it is killed, launch.py and the ranks live on, and train unseen.
"""

import os
from pathlib import Path

_RUNNERS = {"deepspeed", "deepspeed.pt", "ds", "deepspeed.launcher.runner"}


class Launcher:
    """This rank's parent process and, if DeepSpeed started it, the runner above the parent.

    Create it as early as possible: a process that died before is not noticed. Processes further up (a shell, a
    scheduler) are not watched: a login shell that ends is no reason to stop.
    """

    def __init__(self) -> None:
        self._parent = os.getppid()
        runner = _parent_of(self._parent)
        self._runner = runner if _is_runner(runner) else None

    def is_gone(self) -> bool:
        """Whether one of them died: the kernel then gives its child another parent, so a reused id does no harm."""
        if os.getppid() != self._parent:
            return True
        return self._runner is not None and _parent_of(self._parent) != self._runner


def _parent_of(pid: int) -> int | None:
    """Id of the parent of process `pid`; None if it is not visible, as the parent of a container's first process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(stat.rpartition(")")[2].split()[1])  # state and parent follow the name, which may hold spaces


def _is_runner(pid: int | None) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return False
    # `python [options] .../bin/deepspeed ...` or `python -m deepspeed.launcher.runner ...`
    return any(Path(os.fsdecode(word)).name in _RUNNERS for word in words[:4])
