"""The whole way by the product's own commands: a launched run, merged, speaks its targets code for code.

The base is in the form in which the hub's main holds the 3B since April 2026; others train one of Boson's.
"""

import json
import subprocess
import sys

import pytest

from tests.fixtures import gate, launched
from tests.fixtures.launched import environment
from tests.fixtures.native import build_native
from tests.fixtures.released import FILES, build_released
from tests.fixtures.steps import ROOT

DEMO = ROOT / "launch" / "recipes" / "demo.yaml"
# bf16, the recipes' precision; where the processor emulates it, minutes long, fp32 stands in for it in `make test`.
PRECISIONS = ["bf16"] if launched.FAST_PRECISION == "bf16" else ["fp32", pytest.param("bf16", marks=pytest.mark.long)]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_launched_training_merges_into_a_model_that_speaks_its_targets(
    precision, tmp_path, one_rank, telling, codec_folder, hubert_folder
):
    corpus, rows = telling
    base = build_native(build_released(tmp_path / "released"), tmp_path / "base", FILES)
    out = tmp_path / "run"
    overrides = ["run.max_steps=200", f"run.precision={precision}", "batch.max_tokens=4096"]
    done = launched.run(launched.train_command(2, DEMO, base, corpus, out, overrides))
    assert done.returncode == 0, done.stdout[-3000:]
    assert "auto" not in (out / "deepspeed.json").read_text()
    assert json.loads((out / "deepspeed.json").read_text())["bf16"]["enabled"] is (precision == "bf16")
    for layout in ("boson", "transformers"):
        merged = tmp_path / layout
        merge = [sys.executable, "-m", "launch.merge", "--checkpoint", out / "checkpoints" / "best", "--out", merged]
        subprocess.run([*merge, "--format", layout], cwd=ROOT, env=environment(), check=True)
        assert one_rank.run(gate.failures, merged, codec_folder, hubert_folder, rows)[0] == []
