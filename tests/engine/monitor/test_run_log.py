"""A log that can't be written is said once a minute, ends no run, and has every line once it can be written again."""

import json
import os
import resource
import signal
from unittest import mock

from engine.monitor import metrics
from engine.monitor.metrics import RunLog


def write_with_faults(out):
    """Steps 1 to 6; steps 3 and 4 find no room, for 5 the file is a folder. What was printed."""
    out.mkdir()
    said = []
    with mock.patch.object(metrics, "print_rank0", said.append):
        log = RunLog(out, 0, [])
        for step in range(1, 7):
            path = out / "metrics.jsonl"
            if step in (3, 4):
                limit = path.stat().st_size + 10  # a part of the line fits
                before = resource.getrlimit(resource.RLIMIT_FSIZE)
                old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
            elif step == 5:
                path.rename(out / "aside")
                path.mkdir()
            log.write(step, {"loss": 1.0 / step}, "train")
            if step in (3, 4):
                resource.setrlimit(resource.RLIMIT_FSIZE, before)
                signal.signal(signal.SIGXFSZ, old)
            elif step == 5:
                path.rmdir()
                os.replace(out / "aside", path)
    return said


def test_no_line_is_lost_or_torn_and_the_run_goes_on(tmp_path, one_rank):
    (said,) = one_rank.run(write_with_faults, tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert len(said) == 1, "once a minute"
    assert said[0].startswith(f"warning: {tmp_path / 'run' / 'metrics.jsonl'} can't be written (")
    assert said[0].endswith("its lines are kept until it can); the training goes on")


def write_to_a_broken_monitor(out):
    out.mkdir()
    said = []
    with mock.patch.object(metrics, "print_rank0", said.append):
        log = RunLog(out, 0, ["csv_monitor"])
        (out / "logs").chmod(0o500)
        log._monitor.csv_monitor.log_dir = str(out / "metrics.jsonl")  # no folder
        for step in (1, 2):
            log.write(step, {"loss": 1.0}, "train")
    return said


def test_a_monitor_that_fails_ends_no_run(tmp_path, one_rank):
    (said,) = one_rank.run(write_to_a_broken_monitor, tmp_path / "run")
    assert len(said) == 1
    assert said[0].startswith("warning: a monitor of run.monitors can't be written (")
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2
