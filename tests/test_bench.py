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


@pytest.mark.long
def test_boson_and_packed_forward_train_along_one_curve(tmp_path):
    out, plot = tmp_path / "result.json", tmp_path / "curves.svg"
    command = [sys.executable, ROOT / "bench" / "curves.py", "forward", "--steps", "6", "--out", out, "--plot", plot]
    subprocess.run(
        [str(part) for part in command], cwd=ROOT, env={**environment(), "PYTHONPATH": str(ROOT)}, check=True
    )
    result = json.loads(out.read_text())
    boson, packed = (result["runs"][name] for name in ("boson", "packed"))
    assert packed["loss_audio"] == pytest.approx(boson["loss_audio"], rel=1e-5)
    assert packed["loss_text"] == pytest.approx(boson["loss_text"], rel=1e-5)
    assert packed["grad_norm"] == pytest.approx(boson["grad_norm"], rel=1e-4)
    assert packed["loss_audio"][-1] < packed["loss_audio"][0]
    assert plot.read_text().count("<path") > 4
