"""A rank that is stopped in a real launch: the run ends by itself and names it, and the same command resumes."""

import os
import signal

import pytest

from tests.fixtures import launched
from tests.test_launch import DEMO


@pytest.mark.long
@pytest.mark.parametrize("rank", [0])
def test_a_stopped_rank_is_named_all_processes_end_and_the_run_resumes(rank, tmp_path, model_folder, random_corpus):
    overrides = ["run.max_steps=12", "run.save_every=2", "run.evaluate_every=12", "run.log_every=1"]
    overrides += [f"run.precision={launched.FAST_PRECISION}", "batch.max_tokens=1400", "run.hang_timeout_sec=20"]
    out, log = tmp_path / "run", tmp_path / "log"
    command = launched.train_command(2, DEMO, model_folder, random_corpus.folder, out, overrides)
    with launched.started(command, log) as process:
        launched.wait_for(process, out / "metrics.jsonl", '"step": 4', log)
        launch, *others = family = launched.family(process)
        (stopped,) = [
            each for each in others if each.ppid() == launch.pid and f"--local_rank={rank}" in each.cmdline()
        ]
        os.kill(stopped.pid, signal.SIGSTOP)
        assert process.wait() == 1, log.read_text()[-3000:]
        launched.wait_until_gone(family)
    said = log.read_text()
    assert f"error: rank {rank}: found not running for 20 s, at " in said
    assert said.count("error: rank") == 1
    assert "The same command resumes from the newest checkpoint" in said
    assert "unbound_buffer" not in said
    done = launched.run(command)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "resuming from" in done.stdout
    assert "finished at step 12 of 12" in done.stdout
