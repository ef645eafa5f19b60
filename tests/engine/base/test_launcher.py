"""A rank knows when those who started it are gone, and mistakes nobody else's end for theirs."""

import os
import signal
import subprocess
import sys

import pytest

from tests.fixtures.steps import ROOT

# A rank: says its parent's id, then on each line it reads whether its launcher is gone.
RANK = """
import os, sys
from engine.base.launcher import Launcher
launcher = Launcher()
print(os.getppid(), flush=True)
for _ in sys.stdin:
    print(launcher.is_gone(), flush=True)
"""
# A process that starts the rest of its command line and waits for it, as the runner and launch.py do.
STARTER = "import subprocess, sys\nsubprocess.run(sys.argv[1:])\n"


def ask(process):
    process.stdin.write("?\n")
    process.stdin.flush()
    return listen(process)


def listen(process):
    return process.stdout.readline().strip()


@pytest.mark.parametrize(
    ("top", "killed", "gone"),
    [("deepspeed", "top", True), ("scheduler", "top", False), ("deepspeed", "parent", True)],
)
def test_a_rank_misses_its_parent_and_deepspeeds_runner_alone(top, killed, gone, tmp_path):
    for name in (top, "launch.py"):
        (tmp_path / name).write_text(STARTER)
    command = [sys.executable, tmp_path / top, sys.executable, tmp_path / "launch.py", sys.executable, "-c", RANK]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    try:
        parent = int(listen(process))
        assert ask(process) == "False"
        os.kill(process.pid if killed == "top" else parent, signal.SIGKILL)
        process.wait()
        assert ask(process) == str(gone)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
