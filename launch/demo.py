"""Demo: the whole way in small, from audio files to a model that speaks, on a laptop's CPU or on GPUs.

    make demo

Boson's model, codec and tokenizer are made here, small and random; then the three commands of the product run as
anyone would type them. All of it lands in demo/ and replaces what an earlier demo left there.
"""

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from preprocess.common.errors import InputError, exit_on_input_error

ROOT = Path(__file__).resolve().parents[1]
OUT = Path("demo")  # commands run in ROOT, so that what is printed can be typed
CORPUS, BASE, CODEC, HUBERT = OUT / "corpus", OUT / "base", OUT / "codec", OUT / "hubert"
SHARDS, RUN, MERGED, SPEECH = OUT / "shards", OUT / "run", OUT / "merged", OUT / "speech.wav"
NUM_VOICES, NUM_SENTENCES, NUM_CODES = 4, 20, 64
HELD_OUT_TEXT = "مساء الخير، متى يبدأ الفيلم؟"  # no voice of the corpus says it
DEFAULT_PORT = 29500  # of the deepspeed launcher


def main() -> int:
    """Run every stage, and say at the end what there is. Raises InputError where a stage fails."""
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))  # the small models are those of the tests
    import torch

    num_gpus = torch.cuda.device_count()
    start = time.monotonic()
    _remove_earlier_demo()
    with _stage("1/5  recordings, and a small random model, codec and HuBERT"):
        _make_inputs()
    with _stage("2/5  recordings -> shards"):
        _run([*_python("preprocess.shard"), *_flags(_sources()), "--out", str(SHARDS)])
    num_ranks = min(num_gpus, 2) or 2
    with _stage(f"3/5  shards -> LoRA adapter, ranks on {'GPU' if num_gpus else 'CPU'}: {num_ranks}"):
        _run(_train_command(num_ranks), {} if num_gpus else {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"})
    with _stage("4/5  adapter + base -> merged model"):
        _run([*_python("launch.merge"), "--checkpoint", f"{RUN}/checkpoints/best", "--out", str(MERGED)])
    with _stage("5/5  merged model -> speech, in a voice and of a text that training never saw"):
        said = _run([*_python("launch.generate"), *_flags(_prompt()), "--greedy"], capture=True)
    _report(time.monotonic() - start, stopped="started and stopped by itself" in said)
    return 0


def _remove_earlier_demo() -> None:
    for folder in (CORPUS, BASE, CODEC, HUBERT, SHARDS, RUN, MERGED):
        shutil.rmtree(folder, ignore_errors=True)
    SPEECH.unlink(missing_ok=True)


def _make_inputs() -> None:
    from tests.fixtures.codec import build_codec, build_hubert
    from tests.fixtures.model import build_model
    from tests.fixtures.speech import arabic_corpus

    print(f"{CORPUS}: espeak-ng speaks {NUM_SENTENCES} Arabic sentences in each of {NUM_VOICES} voices", flush=True)
    arabic_corpus(CORPUS, voices=NUM_VOICES, sentences=NUM_SENTENCES)
    print(f"{CODEC}, {HUBERT}: Boson's codec class, random weights, 8 codebooks of {NUM_CODES} codes", flush=True)
    build_hubert(HUBERT)
    build_codec(CODEC, HUBERT, codebook_size=NUM_CODES)
    print(f"{BASE}: Boson's model class, 4 layers, random weights, and a small tokenizer", flush=True)
    build_model(BASE, codebook_size=NUM_CODES)


def _python(module: str) -> list[str]:
    return ["python", "-m", module]


def _flags(values: dict[str, object]) -> list[str]:
    return [part for name, value in values.items() for part in (f"--{name}", str(value))]


def _sources() -> dict[str, object]:
    """What preprocess.shard reads."""
    return {"manifest": CORPUS / "corpus.jsonl", "model": BASE, "audio-tokenizer": CODEC, "hubert": HUBERT}


def _train_command(num_ranks: int) -> list[str]:
    port = [] if _is_free(DEFAULT_PORT) else ["--master_port", str(_free_port())]
    launcher = ["deepspeed", "--num_accelerators", str(num_ranks), *port, "launch/train.py"]
    flags = {"deepspeed": "ds_configs/zero2.json", "recipe": "launch/recipes/demo.yaml"}
    return launcher + _flags({**flags, "model": BASE, "data": SHARDS, "out": RUN})


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _prompt() -> dict[str, object]:
    """What launch.generate is asked: a recording of the voice that the index holds out, and a new text."""
    import pyarrow.parquet as pq

    index = pq.read_table(SHARDS / "index.parquet", columns=["speaker", "split"]).to_pylist()
    held_out = {row["speaker"] for row in index if row["split"] == "val"}
    rows = [json.loads(line) for line in (CORPUS / "corpus.jsonl").read_text(encoding="utf-8").splitlines()]
    reference = next(row for row in rows if row["speaker"] in held_out)
    return {
        "model": MERGED,
        "audio-tokenizer": CODEC,
        "hubert": HUBERT,
        "reference": CORPUS / reference["audio"],
        "reference-text": reference["text"],
        "text": HELD_OUT_TEXT,
        "out": SPEECH,
    }


def _run(command: list[str], settings: dict[str, str] | None = None, capture: bool = False) -> str:
    """Show the command and run it in this Python's environment; its standard output where it is captured."""
    words = [shlex.quote(word) if word.isascii() else f'"{word}"' for word in command]
    print("$ " + " ".join([f"{name}={value}" for name, value in (settings or {}).items()] + words), flush=True)
    programs = Path(sys.executable).parent
    environment = {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        **(settings or {}),
    }
    output = subprocess.PIPE if capture else None
    command_line = [programs / command[0], *command[1:]]
    done = subprocess.run(command_line, env=environment, stdout=output, text=True, check=False)
    print(done.stdout or "", end="", flush=True)
    if done.returncode:
        raise InputError(
            " ".join(command[:3]),
            f"exit code {done.returncode}",
            "0",
            "The demo stops here: its message is above. A new `make demo` starts from the beginning.",
        )
    return done.stdout or ""


@contextmanager
def _stage(title: str) -> Iterator[None]:
    print(f"\n=== {title}", flush=True)
    start = time.monotonic()
    yield
    print(f"({time.monotonic() - start:.0f} s)", flush=True)


def _report(elapsed_sec: float, stopped: bool) -> None:
    """What was done, what each artefact is, and what it does not show."""
    import soundfile

    corpus = json.loads((SHARDS / "corpus.json").read_text(encoding="utf-8"))
    metrics = [json.loads(line) for line in (RUN / "metrics.jsonl").read_text().splitlines()]
    first, *_, last = [line for line in metrics if line["kind"] == "train"]
    duration_sec = soundfile.info(SPEECH).duration
    end = "stopped by itself" if stopped else "did NOT stop by itself: it was cut at the limit of tokens"
    done = (
        f"What was done. {NUM_VOICES * NUM_SENTENCES} Arabic recordings in {NUM_VOICES} voices became codec codes; "
        f"one voice was held out. A LoRA adapter was trained for {last['step']} steps on a small random model: the "
        f"text loss, which is starting and stopping, fell from {first['loss_text']:.2f} to {last['loss_text']:.4f}, "
        f"the audio loss from {first['loss_audio']:.2f} to {last['loss_audio']:.2f}. The adapter was merged into "
        "the model. Boson's own serve engine, given a recording of the held-out voice and a new text, started to "
        f"speak with nothing forcing it, spoke for {duration_sec:.1f} s and {end}."
    )
    artefacts = {
        f"{CORPUS}/": "the recordings, and their manifest corpus.jsonl",
        f"{BASE}/": "the small random model and its tokenizer",
        f"{CODEC}/, {HUBERT}/": "what speech is encoded with, small and random too",
        f"{SHARDS}/": f"{corpus['hours'] * 60:.1f} minutes of speech as codes: WebDataset tar, index, corpus.json",
        f"{RUN}/": "the run: checkpoints, metrics.jsonl, TensorBoard logs, all settings in full",
        f"{MERGED}/": "the merged model, as Boson's loaders open it",
        f"{SPEECH}": "what it said",
    }
    caveat = (
        f"What it does not show. {SPEECH} is noise, because model and codec are tiny and random: the demo shows the "
        "plumbing, not a voice. A voice takes the released models and GPUs: see README, From the demo to 8 GPUs."
    )
    print(f"\n=== done in {elapsed_sec / 60:.1f} minutes\n\n{textwrap.fill(done, 110)}\n\nWhat there is now:")
    for name, meaning in artefacts.items():
        print(f"  {name:26}{meaning}")
    print(f"\n{textwrap.fill(caveat, 110)}")


if __name__ == "__main__":
    exit_on_input_error(main)
