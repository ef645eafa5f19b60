"""One rank's loader on real shards: samples/s, tokens/s and MB/s by number of workers, against an H200 rank's need.

    PYTHONPATH=. python bench/loader.py [--num-clips 3000] [--index-clips 500000] [--out bench/results/loader.json]

Writes a corpus of random codes, Arabic texts and FLAC of noise with speech-like lengths, plans an epoch and loads all
its packs. cpu_ms_per_sample is the processor time of loader and workers together: with more workers than cores it is
the figure to compare. Also measures time and memory of opening a corpus of --index-clips clips.
"""

import argparse
import io
import json
import os
import platform
import resource
import tempfile
import time
from multiprocessing import set_start_method
from pathlib import Path

import numpy as np
import soundfile
import torch
from plan import cpu_model, in_fresh_process, peak_memory_mb

from engine.batch.loader import PackReader, load_packs
from engine.batch.sample import layout_cost
from engine.plan.corpora import Corpora
from engine.plan.plan import Plan
from launch.demo.small_model import build_model
from preprocess.common.files import sha256_file
from preprocess.corpus.base_model import read_base_model
from preprocess.corpus.dialogue import DEFAULT_SYSTEM_TEXT
from preprocess.corpus.shards import INDEX_SCHEMA, Clip, Corpus, write_corpus, write_shard
from preprocess.corpus.text import NORMALISER_VERSION, tokenizer_fingerprint
from tests.fixtures.corpus import WORDS

FRAME_RATE_HZ, RATE_HZ, NUM_CODEBOOKS, CODEBOOK_SIZE = 25, 16000, 8, 1024
NUM_SPEAKERS, CLIPS_PER_SHARD = 50, 200  # some 0.5 h per shard
TARGET_SAMPLES_PER_SEC = 84.0  # an H200 at 50 % MFU, by count of operations
TARGET_MB_PER_SEC = 23.0  # the 16 kHz waveforms of these samples, in 16 bits
NUM_WORKERS = (0, 1, 2, 4)
REST = {
    "language": "ar",
    "split": "train",
    "draws_reference": True,
    "dialogues": [],
    "use": True,
    "reason": None,
    "waveform_samples": 0,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-clips", type=int, default=3000)
    parser.add_argument("--index-clips", type=int, default=500_000)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "loader.json")
    arguments = parser.parse_args()
    result = {
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "num_clips": arguments.num_clips,
        "lengths": "lognormal, median 7 s, sigma 0.7, clipped to 1-30 s; 5 text tokens per second",
        "target_samples_per_sec": TARGET_SAMPLES_PER_SEC,
        "target_waveform_mb_per_sec": TARGET_MB_PER_SEC,
        "runs": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        model, corpus = build_model(Path(folder) / "model"), Path(folder) / "corpus"
        write_clips(corpus, model, arguments.num_clips)
        for num_workers in NUM_WORKERS:
            result["runs"].append(in_fresh_process(measure, corpus, model, num_workers))
            print(json.dumps(result["runs"][-1]), flush=True)
        result["waveforms"] = in_fresh_process(measure_waveforms, corpus)
        print(json.dumps(result["waveforms"]), flush=True)
        vast = Path(folder) / "vast"
        in_fresh_process(write_vast_corpus, vast, arguments.index_clips)
        result["opening"] = {"num_clips": arguments.index_clips, **in_fresh_process(measure_opening, vast)}
        print(json.dumps(result["opening"]), flush=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")


def write_clips(folder: Path, model: Path, num_clips: int) -> None:
    """Write a corpus of noise as preprocess.shard would."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    tokenizer = read_base_model(model).tokenizer
    noise = (rng.standard_normal(RATE_HZ * 31) * 0.1).astype(np.float32)
    duration_sec = np.clip(rng.lognormal(np.log(7), 0.7, num_clips), 1, 30)
    rows, shards = [], []
    for first in range(0, num_clips, CLIPS_PER_SHARD):
        clips, facts = [], []
        for number in range(first, min(first + CLIPS_PER_SHARD, num_clips)):
            seconds, text = float(duration_sec[number]), ""
            while len(tokens := tokenizer.encode(text, add_special_tokens=False)) < 5 * seconds:
                text = f"{text} {rng.choice(WORDS)}".strip()
            codes = rng.integers(CODEBOOK_SIZE, size=(NUM_CODEBOOKS, int(seconds * FRAME_RATE_HZ)), dtype=np.uint16)
            flac = io.BytesIO()
            soundfile.write(flac, noise[: int(seconds * RATE_HZ)], RATE_HZ, format="FLAC")
            meta = {"text": text, "text_normalised": text, "dialogues": [], "duration_sec": seconds}
            clips.append(Clip(f"clip-{number:07d}", meta, codes, flac.getvalue()))
            speaker = f"speaker{number * NUM_SPEAKERS // num_clips}"
            counts = {"text_tokens": len(tokens), "waveform_samples": int(seconds * RATE_HZ)}
            facts.append({**REST, **counts, "duration_sec": seconds, "speaker": speaker})
        path = folder / f"shard-{len(shards):06d}.tar"
        for place, clip, fact in zip(write_shard(path, clips), clips, facts, strict=True):
            rows.append({**place, "frames": clip.codes.shape[1], **fact})
        shards.append({"name": path.name, "bytes": path.stat().st_size, "sha256": sha256_file(path)})
    write_corpus(folder, rows, corpus_info(shards, tokenizer_fingerprint(tokenizer)))


def corpus_info(shards: list[dict], tokenizer: str) -> dict:
    """The part of corpus.json that reading needs."""
    return {
        "shards": shards,
        "codec": {
            "num_codebooks": NUM_CODEBOOKS,
            "codebook_size": CODEBOOK_SIZE,
            "frame_rate_hz": FRAME_RATE_HZ,
            "sample_rate_hz": 24_000,
            "fingerprint": "random codes",
        },
        "text_tokenizer": {"fingerprint": tokenizer},
        "layout": {"system_text": DEFAULT_SYSTEM_TEXT, "normaliser_version": NORMALISER_VERSION},
    }


def measure(folder: Path, model: Path, num_workers: int) -> dict:
    """Speed of loading one epoch; the clock starts after the first pack, when all workers have started."""
    set_start_method("fork", force=True)  # as in training; this process itself was spawned
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # as launch/train.py sets it
    torch.set_num_threads(1)
    reader = PackReader(Corpora([folder]), model, "packed")
    cost = layout_cost(reader.tokenizer, reader.config, reader.system_text)
    plan = Plan(reader.corpora.index, split="train", cost=cost, packs_per_step=8, max_tokens=8192, seed=0)
    epoch = plan.epoch(0)
    packs = [pack for step in range(epoch.num_steps) for pack in epoch.step(step).packs]
    loaded = load_packs(reader, packs, num_workers, pin_memory=False)
    next(loaded)
    before, start = cpu_sec(), time.perf_counter()
    num_bytes = sum(tensor_bytes(pack.batch) for pack in loaded)
    seconds = time.perf_counter() - start
    # Workers have ended, so their processor time is known; some 2 % of it was before the first pack.
    busy_sec = cpu_sec() - before
    num_samples = sum(len(pack.samples) for pack in packs[1:])
    samples_per_sec = num_samples / seconds
    return {
        "num_workers": num_workers,
        "samples_per_sec": round(samples_per_sec, 1),
        "times_an_h200_rank": round(samples_per_sec / TARGET_SAMPLES_PER_SEC, 1),
        "tokens_per_sec": round(sum(pack.num_tokens for pack in packs[1:]) / seconds),
        "mb_per_sec": round(num_bytes / seconds / 1e6, 1),
        "cpu_ms_per_sample": round(busy_sec / num_samples * 1000, 3),
        "samples_per_core_sec": round(num_samples / busy_sec, 1),
    }


def cpu_sec() -> float:
    """Processor seconds of this process and its ended children."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def tensor_bytes(batch) -> int:
    return sum(value.nbytes for value in vars(batch).values() if hasattr(value, "nbytes"))


def measure_waveforms(folder: Path) -> dict:
    """Speed of reading and decoding all waveforms in random order, on one core with a warm page cache."""
    corpus = Corpus(folder)
    num_bytes, start = 0, time.perf_counter()
    for row in np.random.default_rng(0).permutation(corpus.index.num_rows).tolist():
        clip = corpus.clip(row, waveform=True)
        samples, _ = soundfile.read(io.BytesIO(clip.flac), dtype="float32")
        num_bytes += 2 * len(samples)
    mb_per_sec = num_bytes / (time.perf_counter() - start) / 1e6
    return {"mb_per_sec": round(mb_per_sec, 1), "times_an_h200_rank": round(mb_per_sec / TARGET_MB_PER_SEC, 1)}


def write_vast_corpus(folder: Path, num_clips: int) -> None:
    """Write an index of `num_clips` clips in 1,600 shards, which are sparse files of the right size."""
    folder.mkdir()
    per_shard, shard_bytes = -(-num_clips // 1600), 32_000_000
    rng = np.random.default_rng(0)
    places = {
        name: rng.integers(2**31, size=num_clips).tolist()
        for name in INDEX_SCHEMA.names
        if name.endswith(("_offset", "_bytes", "_crc32"))
    }
    rows = [
        {
            "key": f"recording-{number:012x}-{number * 2654435761 % 2**48:012x}",
            "shard": f"shard-{number // per_shard:06d}.tar",
            **{name: values[number] for name, values in places.items()},
            "frames": 175,
            "text_tokens": 35,
            "duration_sec": 7.0,
            "speaker": f"speaker{number // 250}",
            **REST,
        }
        for number in range(num_clips)
    ]
    names = sorted({row["shard"] for row in rows})
    for name in names:
        with open(folder / name, "wb") as file:
            file.truncate(shard_bytes)
    write_corpus(
        folder, rows, corpus_info([{"name": n, "bytes": shard_bytes, "sha256": "0" * 64} for n in names], "")
    )


def measure_opening(folder: Path) -> dict:
    """Seconds and resident memory that opening a corpus for training adds to a process."""
    before, start = peak_memory_mb(), time.perf_counter()
    info = Corpora([folder]).info
    return {
        "shards": len(info["shards"]),
        "index_file_mb": round(info["index"]["bytes"] / 1e6, 1),
        "sec": round(time.perf_counter() - start, 3),
        "added_mb": round(peak_memory_mb() - before),
    }


if __name__ == "__main__":
    main()
