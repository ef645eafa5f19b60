"""The watchdog: a rank that hangs is named and all end; a rank that works for long is left alone."""

import os
import signal
import socket
import subprocess
import sys

import pytest

from engine.base.watchdog import _State, describe_slow
from tests.fixtures.steps import ROOT


def run_two(scenario):
    """[(exit code, stdout, stderr)] of two ranks; one that is stopped is killed once the other has ended."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    usual = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.fixtures.watched", scenario]
    ranks = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env={**usual, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    if scenario.startswith("stopped"):
        stopped = int(scenario[-1])
        other = ranks[1 - stopped]
        out = other.communicate()
        ranks[stopped].send_signal(signal.SIGKILL)
        rest = ranks[stopped].communicate()
        found = {1 - stopped: (other.returncode, *out), stopped: (ranks[stopped].returncode, *rest)}
        return [found[0], found[1]]
    outputs = [rank.communicate() for rank in ranks]
    return [(rank.returncode, *output) for rank, output in zip(ranks, outputs, strict=True)]


@pytest.mark.parametrize("scenario", ["computes", "writes", "has a worker that writes", "slow"])
def test_a_rank_that_goes_on_is_left_alone_however_long_it_takes(scenario):
    for rank, (exit_code, out, err) in enumerate(run_two(scenario)):
        assert exit_code == 0, err
        assert f"rank {rank} is done" in out
        assert "error" not in err


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("how", ["stopped", "sleeping"])
def test_a_rank_that_hangs_is_named_with_its_step_pack_and_clips_and_all_end(how, rank):
    found = run_two(f"{how} {rank}")
    reporter = 1 - rank if how == "stopped" else 0
    assert found[reporter][0] == 1
    err = found[reporter][2]
    state = "not running" if how == "stopped" else "not going on"
    assert f"error: rank {rank}: found {state} for 4 s, at step 4, pack {rank} (clips clip-{rank})" in err
    assert "The same command resumes" in err
    assert sum(text.count("error: ") for _, _, text in found) == 1, "one rank reports"
    assert found[1 - reporter][0] == (-signal.SIGKILL if how == "stopped" else 1)


def test_where_datagrams_are_lost_there_is_no_watchdog_and_it_says_so():
    (code, out, err), (other_code, other_out, _) = run_two("unheard")
    assert (code, other_code) == (0, 0), err
    assert "warning: rank 0 hears nothing of rank 1: UDP between their machines is blocked" in out
    assert "warning" not in other_out


def test_a_save_that_hangs_is_named():
    (code, _, err), (other_code, _, _) = run_two("sleeps")
    assert (code, other_code) == (1, 1)
    assert "found not going on for 4 s, at the save after step 3" in err


@pytest.mark.parametrize(
    ("times", "slowest"),
    [
        ([0.1, 0.1, 1.2], 2),
        ([2.0, 0.1], 0),
        ([0.1, 0.9], None),
        ([0.0, 0.4], None),
        ([5.0], None),
        ([5.0, 5.0], None),
    ],
)
def test_a_rank_ten_times_slower_than_the_others_is_warned_of(times, slowest):
    said = describe_slow([_State(own_sec=seconds) for seconds in times])
    assert (
        said.startswith(f"warning: rank {slowest} took {times[slowest]:.1f} s") if slowest is not None else said == ""
    )
