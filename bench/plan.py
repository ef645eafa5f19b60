"""Planning of a synthetic corpus on one core: time, memory, fill of the packs, and how mixed the steps are.

    python bench/plan.py [--num-clips 1000000] [--out bench/results/plan.json]

Baselines on the same samples: packing by best-fit decreasing in windows, packing by next-fit (as a loader does that
takes samples in order), and steps of samples picked at random.
"""

import argparse
import hashlib
import json
import os
import pickle  # noqa: S403 - only to measure how long an epoch is as spawned workers get it
import platform
import statistics
import tempfile
import time
from bisect import bisect_left, insort
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from engine.plan.corpora import Corpora
from engine.plan.plan import Plan, describe_plan
from engine.plan.samples import LayoutCost
from preprocess.common.record import write_record
from preprocess.corpus.shards import CORPUS_FILE, FORMAT_VERSION, INDEX_FILE, INDEX_SCHEMA

# About the cost of Boson's layout with 8 codebooks.
COST = LayoutCost(tokens_base=30, tokens_per_reference=10, columns_extra=9, text_labels=3)
FRAME_RATE_HZ = 25
REPEATS = 3
WINDOW_SAMPLES = 2048
CLIPS_PER_SHARD, SHARD_BYTES = 500, 1 << 22


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-clips", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "plan.json")
    arguments = parser.parse_args()
    result = {
        "cpu": cpu_model(),
        "cores_used": 1,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "num_clips": arguments.num_clips,
        "durations": "lognormal, median 7 s, sigma 0.7, clipped to 1-30 s; 2,000 speakers of unequal size",
        "runs": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        in_fresh_process(write_corpus, Path(folder), arguments.num_clips)
        for max_tokens in (8192, 16384):
            run = in_fresh_process(measure, Path(folder), max_tokens)
            print(json.dumps(run, indent=2))
            result["runs"].append(run)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")


def in_fresh_process(function, *arguments):
    """The result of `function`, run in a new process so that memory of one run does not count in the next."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def write_corpus(folder: Path, num_clips: int) -> None:
    """Write a corpus whose shards are holes of their size: only its index is read."""
    write_index(folder / INDEX_FILE, num_clips)
    data = (folder / INDEX_FILE).read_bytes()
    shards = [f"shard-{number:06d}.tar" for number in range(-(-num_clips // CLIPS_PER_SHARD))]
    for shard in shards:
        (folder / shard).touch()
        os.truncate(folder / shard, SHARD_BYTES)
    codec = {"num_codebooks": 8, "codebook_size": 1024, "frame_rate_hz": 25.0, "sample_rate_hz": 24000}
    info = {
        "format_version": FORMAT_VERSION,
        "index": {"name": INDEX_FILE, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()},
        "shards": [{"name": shard, "bytes": SHARD_BYTES, "sha256": "0" * 64} for shard in shards],
        "codec": {**codec, "fingerprint": ""},
        "text_tokenizer": {"fingerprint": ""},
        "layout": {"system_text": "", "normaliser_version": 0},
    }
    write_record(folder / CORPUS_FILE, info)


def write_index(path: Path, num_clips: int) -> None:
    """Write a full index, sorted by speaker as preprocess.shard sorts it."""
    rng = np.random.default_rng(0)
    duration_sec = np.clip(rng.lognormal(np.log(7), 0.7, num_clips), 1, 30)
    speaker = np.sort((2000 * rng.random(num_clips) ** 2).astype(int))
    columns = {
        field.name: pa.array(np.zeros(num_clips), type=field.type) for field in INDEX_SCHEMA if _is_number(field)
    }
    columns |= {
        "key": pa.array([f"speaker{s:04d}_{number:07d}" for number, s in enumerate(speaker)]),
        "shard": pa.array([f"shard-{number // CLIPS_PER_SHARD:06d}.tar" for number in range(num_clips)]),
        "json_bytes": pa.array(np.full(num_clips, 500)),
        "codes_bytes": pa.array(np.full(num_clips, 128)),
        "frames": pa.array((duration_sec * FRAME_RATE_HZ).astype(np.int32)),
        "text_tokens": pa.array((duration_sec * 5).astype(np.int32)),
        "system_tokens": pa.nulls(num_clips, pa.int32()),
        "duration_sec": pa.array(duration_sec),
        "speaker": pa.array([f"speaker{s:04d}" for s in speaker]),
        "language": pa.array(["ar"] * num_clips),
        "split": pa.array(["train"] * num_clips),
        "draws_reference": pa.array(np.ones(num_clips, dtype=bool)),
        "derived_from": pa.nulls(num_clips, pa.string()),
        "dialogues": pa.nulls(num_clips, INDEX_SCHEMA.field("dialogues").type),
        "use": pa.array(np.ones(num_clips, dtype=bool)),
        "reason": pa.nulls(num_clips, pa.string()),
    }
    pq.write_table(pa.table(columns, schema=INDEX_SCHEMA), path, compression="zstd")


def measure(folder: Path, max_tokens: int) -> dict:
    """Figures of opening the corpus as training does and of planning it REPEATS times on one core."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    pa.set_cpu_count(1)
    imports_mb, start = peak_memory_mb(), time.perf_counter()
    index = Corpora([folder]).index
    open_sec = time.perf_counter() - start
    index_mb = peak_memory_mb()
    seconds = []
    for seed in range(REPEATS):
        start = time.perf_counter()
        plan = Plan(index, split="train", cost=COST, packs_per_step=8, max_tokens=max_tokens, seed=seed)
        epoch = plan.epoch(0)
        seconds.append(time.perf_counter() - start)
        if seed == 0:
            planned_mb = peak_memory_mb()
    numbers = np.random.default_rng(0).integers(epoch.num_steps, size=1000)
    start = time.perf_counter()
    for number in numbers:
        epoch.step(int(number))
    step_ms = (time.perf_counter() - start) / len(numbers) * 1000

    summary = plan.summary()
    print(describe_plan(summary))
    tokens = epoch.drawn.tokens[epoch.order]
    samples_per_step = epoch.num_samples
    at_random = np.random.default_rng(1).permutation(len(tokens))
    speakers = (
        index.column("speaker")
        .combine_chunks()
        .dictionary_encode()
        .indices.to_numpy()[epoch.samples.target[epoch.ordered_samples]]
    )
    # The baselines pack the samples in a random order, as the plan does.
    waiting = tokens[np.random.default_rng(2).permutation(len(tokens))]
    return {
        "max_tokens": max_tokens,
        "open_sec": round(open_sec, 3),
        "plan_sec": [round(value, 3) for value in seconds],
        "plan_sec_median": round(statistics.median(seconds), 3),
        "peak_memory_mb": {
            "process_without_index": round(imports_mb),
            "process_with_index": round(index_mb),
            "added_by_planning": round(planned_mb - index_mb),
            "process": round(planned_mb),
        },
        "step_ms": round(step_ms, 3),
        "pickled_epoch_mb": round(len(pickle.dumps(epoch)) / 1e6, 1),
        "steps": epoch.num_steps,
        "fill": round(summary["fill"], 5),
        "samples_per_step": summary["samples_per_step"],
        "tokens_per_sample": round(float(tokens.mean()), 1),
        "speakers_per_step": {
            "plan": round(distinct_per_step(speakers, samples_per_step), 2),
            "samples_at_random": round(distinct_per_step(speakers[at_random], samples_per_step), 2),
        },
        "length_correlation_in_step": {
            "plan": round(length_correlation(tokens, samples_per_step), 5),
            "samples_at_random": round(length_correlation(tokens[at_random], samples_per_step), 5),
        },
        "packing_baselines": {
            "best_fit_decreasing": packing_baseline(best_fit_decreasing, waiting, max_tokens),
            "next_fit": packing_baseline(next_fit, waiting, max_tokens),
        },
    }


def distinct_per_step(speakers: np.ndarray, samples_per_step: np.ndarray) -> float:
    """Mean number of distinct speakers per step."""
    step = np.repeat(np.arange(len(samples_per_step)), samples_per_step)
    return len(np.unique(step * (int(speakers.max()) + 1) + speakers)) / len(samples_per_step)


def length_correlation(tokens: np.ndarray, samples_per_group: np.ndarray) -> float:
    """Intraclass correlation of the lengths of samples in one group (one-way analysis of variance): 0 at random."""
    groups, total = len(samples_per_group), len(tokens)
    group = np.repeat(np.arange(groups), samples_per_group)
    means = np.bincount(group, tokens) / samples_per_group
    between = (samples_per_group * (means - tokens.mean()) ** 2).sum() / (groups - 1)
    within = ((tokens - means[group]) ** 2).sum() / (total - groups)
    size = (total - (samples_per_group.astype(float) ** 2).sum() / total) / (groups - 1)
    return float((between - within) / (between + (size - 1) * within))


def packing_baseline(pack, tokens: np.ndarray, max_tokens: int) -> dict:
    """Fill and seconds of a packing, and the length correlation in steps of 8 packs in random order."""
    start = time.perf_counter()
    packs = pack(tokens.tolist(), max_tokens)
    seconds = time.perf_counter() - start
    np.random.default_rng(3).shuffle(packs)
    packs = packs[: len(packs) // 8 * 8]
    lengths = np.concatenate([np.array(pack) for pack in packs])
    samples_per_step = np.array([len(pack) for pack in packs]).reshape(-1, 8).sum(axis=1)
    return {
        "fill": round(float(lengths.sum() / (len(packs) * max_tokens)), 5),
        "sec": round(seconds, 3),
        "length_correlation_in_step": round(length_correlation(lengths, samples_per_step), 5),
    }


def best_fit_decreasing(tokens: list[int], max_tokens: int) -> list[list[int]]:
    """Packs (lists of lengths): in each window, longest sample first, each into the fullest pack with enough room."""
    packs: list[list[int]] = []
    for begin in range(0, len(tokens), WINDOW_SAMPLES):
        rooms: list[tuple[int, int]] = []
        for length in sorted(tokens[begin : begin + WINDOW_SAMPLES], reverse=True):
            found = bisect_left(rooms, (length, 0))
            if found == len(rooms):
                packs.append([])
                room, pack = max_tokens, len(packs) - 1
            else:
                room, pack = rooms.pop(found)
            packs[pack].append(length)
            insort(rooms, (room - length, pack))
    return packs


def next_fit(tokens: list[int], max_tokens: int) -> list[list[int]]:
    """Packs (lists of lengths) of the samples in order; a pack ends when the next sample does not fit."""
    packs, room = [], 0
    for length in tokens:
        if length > room:
            packs.append([])
            room = max_tokens
        packs[-1].append(length)
        room -= length
    return packs


def peak_memory_mb() -> float:
    """Highest resident memory of this process so far, in 10^6 bytes (Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6


def cpu_model() -> str:
    """Name of the processor (Linux)."""
    return Path("/proc/cpuinfo").read_text().split("model name")[1].split(":")[1].split("\n")[0].strip()


def _is_number(field: pa.Field) -> bool:
    return pa.types.is_integer(field.type) or pa.types.is_floating(field.type)


if __name__ == "__main__":
    main()
