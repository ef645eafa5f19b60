"""The whole way by the product's own commands: a launched bf16 run, merged, speaks its targets code for code."""

import json
import subprocess
import sys

from tests.fixtures import gate, launched
from tests.fixtures.launched import environment
from tests.fixtures.steps import ROOT

DEMO = ROOT / "launch" / "recipes" / "demo.yaml"


def test_launched_bf16_training_merges_into_a_model_that_speaks_its_targets(
    tmp_path, one_rank, model_folder, telling, codec_folder, hubert_folder
):
    corpus, rows = telling
    out, merged = tmp_path / "run", tmp_path / "merged"
    overrides = ["run.max_steps=120", "run.precision=bf16", "batch.max_tokens=4096"]
    done = launched.run(launched.train_command(2, DEMO, model_folder, corpus, out, overrides))
    assert done.returncode == 0, done.stdout[-3000:]
    assert "auto" not in (out / "deepspeed.json").read_text()
    assert json.loads((out / "deepspeed.json").read_text())["bf16"]["enabled"] is True
    merge = [sys.executable, "-m", "launch.merge", "--checkpoint", out / "checkpoints" / "best", "--out", merged]
    subprocess.run(merge, cwd=ROOT, env=environment(), check=True)
    assert one_rank.run(gate.failures, merged, codec_folder, hubert_folder, rows)[0] == []
