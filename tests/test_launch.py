"""The product's training command as a user runs it: launches on two ranks, kills, resume, stops, refusals."""

import json
import subprocess
import sys

import pytest

from tests.fixtures import launched
from tests.fixtures.launched import environment
from tests.fixtures.steps import ROOT

DEMO = ROOT / "launch" / "recipes" / "demo.yaml"


def read_metrics(out, kind="train"):
    """{step: line of what a run logged}, without what depends on the clock; each step once."""
    clock = ("step_sec", "tokens_per_sec", "audio_sec_per_sec", "data_wait_share", "tflops_per_sec")
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    lines = [{name: v for name, v in line.items() if name not in clock} for line in lines if line["kind"] == kind]
    steps = [line["step"] for line in lines]
    assert len(steps) == len(set(steps)), f"a step stands twice in metrics.jsonl: {steps}"
    return dict(zip(steps, lines, strict=True))


def test_a_killed_run_resumes_to_the_same_losses_and_the_same_bytes(tmp_path, model_folder, random_corpus):
    overrides = ["run.max_steps=6", "run.save_every=3", "run.evaluate_every=3", "run.log_every=1"]
    overrides += [f"run.precision={launched.FAST_PRECISION}", "lora.dropout=0.1"]
    overrides += ["batch.max_tokens=1400"]
    straight, killed = tmp_path / "straight", tmp_path / "killed"

    def command(out):
        return launched.train_command(2, DEMO, model_folder, random_corpus.folder, out, overrides)

    done = launched.run(command(straight))
    assert done.returncode == 0, done.stdout[-3000:]
    log = tmp_path / "killed.log"
    pausing = launched.pause(after_step=4, until=tmp_path / "never")
    with launched.started(command(killed), log, pausing) as process:  # whose end is SIGKILL to the whole group
        launched.wait_for(process, killed / "metrics.jsonl", '"step": 4', log)
    assert (killed / "checkpoints" / "latest").resolve().name == "step-000003"
    assert max(read_metrics(killed)) == 4
    resumed = launched.run(command(killed))
    assert resumed.returncode == 0, resumed.stdout[-3000:]
    assert "resuming from" in resumed.stdout
    assert "step-000003" in resumed.stdout

    assert read_metrics(killed) == read_metrics(straight)
    assert sorted(read_metrics(straight)) == [1, 2, 3, 4, 5, 6]
    assert read_metrics(killed, "validation") == read_metrics(straight, "validation")
    assert sorted(read_metrics(straight, "validation")) == [3, 6]
    assert (killed / "checkpoints" / "best").resolve().name == (straight / "checkpoints" / "best").resolve().name
    for name in ("adapter_model.safetensors", "adapter_config.json", "optimizer.safetensors"):
        same = [(out / "checkpoints" / "step-000006" / name).read_bytes() for out in (straight, killed)]
        assert same[0] == same[1], name


def test_a_run_that_is_refused_exits_with_2_and_says_why_once(tmp_path, model_folder, random_corpus):
    command = launched.train_command(1, DEMO, model_folder, random_corpus.folder, tmp_path, ["lora.rnk=8"])
    script = command.index("launch/train.py")
    rank = {**environment(), "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    rank |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": command[command.index("--master_port") + 1]}
    done = subprocess.run(
        [sys.executable, *command[script:]], cwd=ROOT, env=rank, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.count("error: ") == 1
    assert "unknown key lora.rnk (nearest: lora.rank); expected only keys" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "where", "found", "expected", "action"),
    [
        (
            ["--model", "base", "--out", "runs/x"],
            "command line",
            "no --deepspeed, --recipe, --data",
            "all",
            "example",
        ),
        (
            [*["--deepspeed", "d", "--recipe", "r", "--model", "m", "--data", "d", "--out", "o"], "lr"],
            "command line",
            "lr",
            "group.key=value",
            "Correct",
        ),
    ],
)
def test_a_wrong_command_line_names_all_that_is_wrong_at_once(arguments, where, found, expected, action):
    from launch.train import parse_arguments
    from preprocess.common.errors import InputError

    with pytest.raises(InputError) as caught:
        parse_arguments(arguments)
    assert caught.value.where == where
    assert caught.value.found == found
    assert expected in caught.value.expected
    assert action in caught.value.action


@pytest.mark.long
def test_launch_stop_ends_a_run_with_a_checkpoint_and_exit_code_0(tmp_path, model_folder, random_corpus, capsys):
    from launch.stop import main as stop

    out, log = tmp_path / "run", tmp_path / "log"
    overrides = ["run.max_steps=100000", "run.epochs=100000", "run.log_every=1", "run.save_every=100000"]
    overrides += ["run.evaluate_every=100000"]
    command = launched.train_command(2, DEMO, model_folder, random_corpus.folder, out, overrides)
    with launched.started(command, log) as process:
        launched.wait_for(process, out / "metrics.jsonl", '"step": 2', log)
        assert stop([str(out), "--timeout-sec", "inf"]) == 0
        assert process.wait() == 0, log.read_text()[-3000:]
    assert "newest checkpoint" in capsys.readouterr().out
    step = int((out / "checkpoints" / "latest").resolve().name.removeprefix("step-"))
    assert step == max(read_metrics(out))
    assert f"stopped at step {step} of" in log.read_text()
