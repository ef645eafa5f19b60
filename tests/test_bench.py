"""Benchmarks run: at small dimensions, with the losses that their speeds stand beside."""

import json
import subprocess
import sys

import pytest

from tests.fixtures.launched import environment
from tests.fixtures.steps import ROOT


@pytest.mark.long
def test_both_forwards_of_the_step_benchmark_have_one_loss_and_gradient_norm(tmp_path):
    out = tmp_path / "result.json"
    flags = ["--size", "small", "--max-tokens", "1024", "--steps", "1", "--out", out]
    command = [sys.executable, ROOT / "bench" / "train_step.py", *flags]
    subprocess.run([str(part) for part in command], cwd=ROOT, env=environment(), check=True)
    boson, packed = json.loads(out.read_text())["runs"]
    assert (boson["forward"], packed["forward"]) == ("boson", "packed")
    assert packed["loss"] == pytest.approx(boson["loss"], rel=1e-3)
    assert packed["grad_norm"] == pytest.approx(boson["grad_norm"], rel=1e-2)
    assert packed["grad_norm"] > 0
