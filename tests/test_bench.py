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


@pytest.mark.long
def test_the_step_profile_shares_a_step_out_among_all_its_parts_and_its_matmuls_are_bf16(tmp_path):
    run_bench("profile_step.py", "--size", "small", "--max-tokens", "700", "--out", tmp_path)
    profile = json.loads((tmp_path / "profile.json").read_text())
    parts = {row["part"] for row in profile["parts"]}
    assert parts >= {"attention projections", "mlp", "audio mlp", "lora matmuls", "attention", "heads", "losses"}
    assert parts >= {"optimizer and reduction"}
    assert sum(row["share"] for row in profile["parts"]) == pytest.approx(1)
    slow = [call for call in profile["matmuls_and_attention"] if call["dtypes"][0] != "c10::BFloat16"]
    assert all(call["shapes"][0][-1] == 1 for call in slow), "only the RoPE frequencies, an outer product, are fp32"
    assert (tmp_path / "trace.json").stat().st_size > 0


SMALLEST = {
    "lora_linear.py": [
        "--hidden",
        "64",
        "--ffn",
        "96",
        "--key-value-width",
        "32",
        "--tokens",
        "50",
        "--repeats",
        "1",
    ],
    "memory.py": ["--max-tokens", "512", "--vocabulary", "1024", "9216"],
    "optimizer_step.py": ["--size", "small", "--max-tokens", "512", "--steps", "1"],
}


@pytest.mark.long
@pytest.mark.parametrize("script", SMALLEST)
def test_the_benches_of_parts_of_a_step_run_and_write_their_figures(script, tmp_path):
    run_bench(script, *SMALLEST[script], "--out", tmp_path / "result.json")
    assert json.loads((tmp_path / "result.json").read_text())["runs"]


def run_bench(script, *flags):
    command = [sys.executable, ROOT / "bench" / script, *flags]
    subprocess.run([str(part) for part in command], cwd=ROOT, env=environment(), check=True)
