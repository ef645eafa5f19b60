"""Stop a run: it saves after its current global step, or in the middle of an evaluation, and exits.

The command that started the run resumes it.

python -m launch.stop runs/first
"""

import argparse
import os
import signal
import socket
import time
from pathlib import Path

from engine.base.run_record import RUN_FILE, read_run
from preprocess.common.errors import InputError, exit_on_input_error
from preprocess.common.say import say

_POLL_SEC = 0.2
EXAMPLE = "python -m launch.stop runs/first"


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m launch.stop",
        description="Ask a training run to save after its current global step, or in the middle of an evaluation, "
        "and to exit with code 0. Ctrl-C or SIGTERM to `deepspeed` saves too; this command also waits for the end.",
        epilog=f"example: {EXAMPLE}",
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="the run folder, --out of launch/train.py")
    parser.add_argument(
        "--timeout-sec", metavar="N", type=float, default=600, help="how long to wait for the run to end (600)"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Signal rank 0 of the run and wait until it has ended."""
    arguments = parse_arguments(argv)
    pid = _find_rank0(arguments.run)
    os.kill(pid, signal.SIGUSR1)
    say(f"asked rank 0 (process {pid}) to stop; waiting for its checkpoint")
    deadline = time.monotonic() + arguments.timeout_sec
    while _is_training(pid):
        if time.monotonic() > deadline:
            found = f"still running after {arguments.timeout_sec:.0f} s"
            expected = "its end soon after the current global step"
            action = "Wait longer with --timeout-sec, or check the run's output."
            raise InputError(f"process {pid}", found, expected, action)
        time.sleep(_POLL_SEC)
    latest = arguments.run / "checkpoints" / "latest"
    say(f"stopped; newest checkpoint: {latest.resolve() if latest.exists() else 'none yet'}")
    return 0


def _find_rank0(run: Path) -> int:
    """Process id of the run's rank 0. Raises InputError if the run is not running on this machine."""
    facts = read_run(run)
    path, pid = run / RUN_FILE, int(facts["rank0_pid"])
    if facts["host"] != socket.gethostname():
        expected = f"this host, {socket.gethostname()}"
        raise InputError(str(path), f"host {facts['host']}", expected, "Run launch.stop there.")
    if not _is_training(pid):
        found = f"process {pid}, which is no longer a training run"
        raise InputError(str(path), found, "a run that is running", "Nothing to do: the run has ended.")
    return pid


def _is_training(pid: int) -> bool:
    try:
        return b"launch/train.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


if __name__ == "__main__":
    exit_on_input_error(main)
