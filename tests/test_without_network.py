"""Every command in a network namespace with nothing but the loopback: none asks anything outside for anything."""

import shlex
import subprocess
import sys

import pytest

from launch.demo.small_model import build_model
from tests.fixtures import launched
from tests.fixtures.native import build_native
from tests.fixtures.steps import ROOT
from tests.test_launch import DEMO

NAMESPACE = ["unshare", "-rn", "sh", "-c"]


def in_namespace(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*NAMESPACE, f"ip link set lo up && exec {shlex.join(command)}"],
        cwd=ROOT,
        env=launched.environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.long
def test_every_command_works_without_a_network(tmp_path, short_folder, model_folder, codec_folder, hubert_folder):
    probe = in_namespace(["true"])
    if probe.returncode:
        pytest.skip(f"no network namespace here: {probe.stderr.strip()}")
    shards, run, merged = (tmp_path / name for name in ("shards", "run", "merged"))
    codec = ["--audio-tokenizer", codec_folder, "--hubert", hubert_folder]
    manifest = ["--manifest", short_folder / "corpus.jsonl", "--model", model_folder]
    overrides = ["run.max_steps=2", "run.precision=fp32", "batch.max_tokens=1400"]
    speech = next(short_folder.rglob("*.wav"))
    dual = build_model(tmp_path / "dual", num_layers=2, dual_ffn_layers=(0, 1))
    commands = {
        "convert": [
            "--model",
            build_native(dual, tmp_path / "native"),
            "--format",
            "boson",
            "--out",
            tmp_path / "converted",
        ],
        "shard": [*manifest, *codec, "--out", shards, "--workers", "1"],
        "preview": [*manifest, "--dry-run"],
        "verify": [shards, "--model", model_folder, *codec, "--clips", "1", "--audio-root", short_folder],
        "show": [shards],
        "train": launched.train_command(1, DEMO, model_folder, shards, run, overrides),
        "merge": ["--checkpoint", run / "checkpoints" / "latest", "--out", merged],
        "generate": ["--model", merged, *codec, "--reference", speech, "--reference-text", "صباح", "--text", "نعم"],
        "stop": [run],
    }
    commands["generate"] += ["--out", tmp_path / "out.wav", "--max-new-tokens", "40", "--device", "cpu"]
    modules = {"shard": "preprocess.shard", "preview": "preprocess.shard", "verify": "preprocess.verify"}
    expected = {"stop": 2, "generate": None}  # the run has ended; a model of two steps may say nothing that is speech
    for name, words in commands.items():
        start = [] if name == "train" else [sys.executable, "-m", modules.get(name, f"launch.{name}")]
        done = in_namespace([str(word) for word in [*start, *words]])
        said = done.stdout + done.stderr
        assert expected.get(name, 0) in (None, done.returncode), f"{name}: {said[-3000:]}"
        for word in ("Traceback", "huggingface.co", "Max retries", "resolve"):
            assert word not in said, f"{name}: {said[-3000:]}"
