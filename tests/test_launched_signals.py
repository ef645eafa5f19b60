"""Signals to the launcher's own processes: the run is saved, nothing of it lives on, the same command resumes."""

import os
import signal
import time

import pytest

from engine.checkpoint.checkpoint import find_problem
from tests.fixtures import launched
from tests.test_launch import DEMO, read_metrics

# To whom, what, the exit code of `deepspeed`: its runner handles no signals, launch.py ends with 1 when signalled.
CASES = {
    "the runner": (signal.SIGTERM, -signal.SIGTERM),
    "launch.py": (signal.SIGTERM, 1),
    "the process group": (signal.SIGINT, -signal.SIGINT),  # Ctrl-C
}


def send(number, whom, process, launch):
    if whom == "the process group":
        os.killpg(process.pid, number)
    else:
        os.kill(process.pid if whom == "the runner" else launch.pid, number)


@pytest.mark.long
def test_a_signal_to_the_launcher_saves_leaves_no_orphan_and_resumes(tmp_path, model_folder, random_corpus):
    overrides = ["run.max_steps=15", "run.save_every=15", "run.evaluate_every=15", "run.log_every=1"]
    overrides += [f"run.precision={launched.FAST_PRECISION}", "lora.dropout=0.1", "batch.max_tokens=1400"]
    overrides += ["forward=boson"]
    straight, out = tmp_path / "straight", tmp_path / "signalled"

    def command(folder):
        return launched.train_command(2, DEMO, model_folder, random_corpus.folder, folder, overrides)

    saved = 0
    for whom, (number, exit_code) in CASES.items():
        log, signalled = (tmp_path / f"{whom.replace(' ', '-')}.{name}" for name in ("log", "signalled"))
        with launched.started(command(out), log, launched.pause(saved + 2, until=signalled)) as process:
            launched.wait_for(process, out / "metrics.jsonl", f'"step": {saved + 2}', log)
            launch, *ranks = launched.family(process)
            assert "deepspeed.launcher.launch" in launch.cmdline()
            assert sum("launch/train.py" in rank.cmdline() for rank in ranks) >= 2
            send(number, whom, process, launch)
            begin = time.monotonic()
            if whom == "the runner":
                process.wait()  # the ranks are to find it gone at their next step
            signalled.touch()
            assert process.wait() == exit_code, log.read_text()[-3000:]
            runner_sec = time.monotonic() - begin
            launched.wait_until_gone([launch, *ranks])
            print(f"{whom}: runner ended after {runner_sec:.1f} s, all after {time.monotonic() - begin:.1f} s")
        said = log.read_text()
        if saved:
            assert f"resuming from {out / 'checkpoints'}/step-{saved:06d}" in said
        newest = (out / "checkpoints" / "latest").resolve()
        assert find_problem(newest) is None
        before, saved = saved, int(newest.name.removeprefix("step-"))
        assert before + 2 <= saved < 15, "signalled too late to prove a resume"
        assert max(read_metrics(out)) == saved
        assert f"stopped at step {saved} of 15" in said
        if whom == "the runner":  # launch.py lives on until its ranks have ended, and tells how
            assert said.count("exits successfully") == 2

    for folder in (out, straight):
        done = launched.run(command(folder))
        assert done.returncode == 0, done.stdout[-3000:]
        assert f"resuming from {out / 'checkpoints'}/step-{saved:06d}" in done.stdout or folder == straight
    assert read_metrics(out) == read_metrics(straight)
    for name in ("adapter_model.safetensors", "optimizer.safetensors"):
        same = [(folder / "checkpoints" / "step-000015" / name).read_bytes() for folder in (straight, out)]
        assert same[0] == same[1], name
