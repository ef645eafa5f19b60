"""The stages of the demo: make the inputs, then run each command as the README shows it, in the repository."""

import json
import os
import shlex
import socket
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import soundfile
import torch

from launch.demo.arabic_speech import build_arabic_corpus
from launch.demo.family import run_family
from launch.demo.folder import Folder
from launch.demo.small_codec import build_codec, build_hubert
from launch.demo.small_model import build_model
from preprocess.common.errors import InputError
from preprocess.common.say import say, say_lines

NUM_VOICES, NUM_SENTENCES, NUM_CODES = 4, 20, 64
HELD_OUT_TEXT = "مساء الخير، متى يبدأ الفيلم؟"  # not in the corpus
DEFAULT_PORT = 29500  # of the deepspeed launcher


def run_stages(demo: Folder) -> None:
    """Run every stage, then print what was done and what was written. Raises InputError if a stage fails."""
    num_gpus = torch.cuda.device_count()
    num_ranks = min(num_gpus, 2) or 2
    start = time.monotonic()
    with _stage("1/5  recordings, and a small random model, codec and HuBERT"):
        _make_inputs(demo)
    with _stage("2/5  recordings -> shards"):
        _run(shard_command(demo))
    with _stage(f"3/5  shards -> LoRA adapter, ranks on {'GPU' if num_gpus else 'CPU'}: {num_ranks}"):
        settings = {} if num_gpus else {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
        _run(train_command(demo, num_ranks, _port()), settings)
    with _stage("4/5  adapter + base -> merged model"):
        _run(merge_command(demo))
    with _stage("5/5  merged model -> speech, in a voice and with a text that training never saw"):
        output = _run(generate_command(demo, _held_out_row(demo)), capture=True)
    _print_report(demo, time.monotonic() - start, stopped="started and stopped by itself" in output)


def _make_inputs(demo: Folder) -> None:
    say(f"{demo.corpus}: espeak-ng speaks {NUM_SENTENCES} Arabic sentences in each of {NUM_VOICES} voices")
    build_arabic_corpus(demo.corpus, voices=NUM_VOICES, sentences=NUM_SENTENCES)
    codec = f"Boson's codec class, random weights, 8 codebooks of {NUM_CODES} codes"
    say(f"{demo.codec}, {demo.hubert}: {codec}")
    build_hubert(demo.hubert)
    build_codec(demo.codec, demo.hubert, codebook_size=NUM_CODES)
    say(f"{demo.base}: Boson's model class, 4 layers, random weights, and a small tokenizer")
    build_model(demo.base, codebook_size=NUM_CODES)


def shard_command(demo: Folder) -> list[str]:
    """The command that makes shards from the recordings."""
    flags = {"manifest": demo.corpus / "corpus.jsonl", "model": demo.base, "audio-tokenizer": demo.codec}
    return ["python", "-m", "preprocess.shard", *_flags({**flags, "hubert": demo.hubert, "out": demo.shards})]


def train_command(demo: Folder, num_ranks: int, port: int = DEFAULT_PORT) -> list[str]:
    """The command that trains on the shards."""
    other_port = [] if port == DEFAULT_PORT else ["--master_port", str(port)]
    launcher = ["deepspeed", "--num_accelerators", str(num_ranks), *other_port, "launch/train.py"]
    flags = {"deepspeed": "ds_configs/zero2.json", "recipe": "launch/recipes/demo.yaml"}
    return launcher + _flags({**flags, "model": demo.base, "data": demo.shards, "out": demo.run})


def merge_command(demo: Folder) -> list[str]:
    """The command that merges the best checkpoint into the base."""
    flags = {"checkpoint": demo.run / "checkpoints" / "best", "out": demo.merged}
    return ["python", "-m", "launch.merge", *_flags(flags)]


def generate_command(demo: Folder, reference: dict[str, str]) -> list[str]:
    """The command that generates speech in the voice of `reference`, a row of the manifest."""
    flags = {
        "model": demo.merged,
        "audio-tokenizer": demo.codec,
        "hubert": demo.hubert,
        "reference": demo.corpus / reference["audio"],
        "reference-text": reference["text"],
        "text": HELD_OUT_TEXT,
        "out": demo.speech,
    }
    return ["python", "-m", "launch.generate", *_flags(flags), "--greedy"]


def _flags(values: Mapping[str, object]) -> list[str]:
    return [part for name, value in values.items() for part in (f"--{name}", str(value))]


def _held_out_row(demo: Folder) -> dict[str, str]:
    """The first row of the manifest whose speaker is in the validation split."""
    index = pq.read_table(demo.shards / "index.parquet", columns=["speaker", "split"]).to_pylist()
    held_out = {row["speaker"] for row in index if row["split"] == "val"}
    lines = (demo.corpus / "corpus.jsonl").read_text(encoding="utf-8").splitlines()
    return next(row for row in map(json.loads, lines) if row["speaker"] in held_out)


def _port() -> int:
    """The launcher's default port, or a free one if that is taken."""
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", DEFAULT_PORT)) != 0:
            return DEFAULT_PORT
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _run(command: list[str], settings: dict[str, str] | None = None, capture: bool = False) -> str:
    """Print the command and run it in this Python's environment; its standard output, "" unless captured."""
    words = [shlex.quote(word) if word.isascii() else f'"{word}"' for word in command]
    say("$ " + " ".join([f"{name}={value}" for name, value in (settings or {}).items()] + words))
    programs = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", **(settings or {})}
    code, output = run_family([programs / command[0], *command[1:]], environment, capture)
    say_lines(output.removesuffix("\n"))
    if code:
        raise InputError(
            " ".join(command[:3]),
            f"exit code {code}",
            "0",
            "The demo stops here; the command's message is above. A new `make demo` starts from the beginning.",
        )
    return output


@contextmanager
def _stage(title: str) -> Iterator[None]:
    say_lines(f"\n=== {title}")
    start = time.monotonic()
    yield
    say(f"({time.monotonic() - start:.0f} s)")


def _print_report(demo: Folder, elapsed_sec: float, stopped: bool) -> None:
    """Print what was done, what each file and folder is, and what the demo does not show."""
    minutes = 60 * json.loads((demo.shards / "corpus.json").read_text(encoding="utf-8"))["hours"]
    metrics = [json.loads(line) for line in (demo.run / "metrics.jsonl").read_text().splitlines()]
    first, *_, last = [line for line in metrics if line["kind"] == "train"]
    duration_sec = soundfile.info(demo.speech).duration
    end = "stopped by itself" if stopped else "did NOT stop by itself: it was cut at the limit of tokens"
    done = (
        f"What was done. {NUM_VOICES * NUM_SENTENCES} Arabic recordings in {NUM_VOICES} voices became codec codes; "
        f"two voices were held out. A LoRA adapter was trained for {last['step']} steps on a small random model: the "
        f"text loss, which is starting and stopping, fell from {first['loss_text']:.2f} to {last['loss_text']:.4f}, "
        f"the audio loss from {first['loss_audio']:.2f} to {last['loss_audio']:.2f}. The adapter was merged into "
        "the model. Boson's own serve engine, given a recording of a held-out voice and a new text, started to "
        f"speak without being forced to, spoke for {duration_sec:.1f} s and {end}."
    )
    artefacts = {
        f"{demo.corpus}/": "the recordings, and their manifest corpus.jsonl",
        f"{demo.base}/": "the small random model and its tokenizer",
        f"{demo.codec}/, {demo.hubert}/": "the codec that encodes the speech, small and random too",
        f"{demo.shards}/": f"{minutes:.1f} minutes of speech as codes: WebDataset tar, index, corpus.json",
        f"{demo.run}/": "the run: checkpoints, metrics.jsonl, TensorBoard logs, all settings in full",
        f"{demo.merged}/": "the merged model, as Boson's loaders open it",
        f"{demo.speech}": "the speech at the end",
    }
    caveat = (
        f"What it does not show. {demo.speech} is noise, because model and codec are tiny and random: the demo shows "
        "the plumbing, not a voice. A voice takes the released models and GPUs: see README, From the demo to 8 GPUs."
    )
    say_lines(f"\n=== done in {elapsed_sec / 60:.1f} minutes\n\n{textwrap.fill(done, 110)}\n\nWhat there is now:")
    for name, meaning in artefacts.items():
        say(f"  {name:26}{meaning}")
    say_lines(f"\n{textwrap.fill(caveat, 110)}")
