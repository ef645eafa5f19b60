"""Processor time of the whole offline command against another checkout of this code.

    PYTHONPATH=. python bench/offline.py --against ../before [--minutes 1] [--out bench/results/offline.json]

Both run `python -m preprocess.shard --workers 1` on the same clips (WAV, FLAC, MP3 and Ogg in turn) with a codec of
the released size and random weights, alternating: the ratio of each pair counts user and system time of the command
and its workers. The codes of both are compared.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import soundfile
from codec import build, speech
from plan import cpu_model

from launch.demo.small_model import build_model
from preprocess.corpus.shards import Corpus
from preprocess.encode.local_pool import run_local

SUFFIXES = ("wav", "flac", "mp3", "ogg")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, required=True, help="the other checkout: its time is 1")
    parser.add_argument("--minutes", type=float, default=1.0, help="of speech (1)")
    parser.add_argument("--rounds", type=int, default=3, help="pairs of runs (3)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "offline.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), arguments.against.resolve(), arguments.minutes, arguments.rounds)
    print(json.dumps(result, indent=2))
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")


def measure(folder: Path, other: Path, minutes: float, rounds: int) -> dict:
    """The result of the benchmark, as its JSON has it."""
    list(run_local(build, [folder], 1))
    build_model(folder / "base")
    audio_sec, num_clips = write_corpus(folder, minutes)
    checkouts = {"ours": Path(__file__).resolve().parents[1], "other": other}
    cpu_sec: dict[str, list[float]] = {name: [] for name in checkouts}
    for number in range(rounds + 1):
        order = list(checkouts.items())
        for name, checkout in order if number % 2 else order[::-1]:
            cpu_sec[name].append(run(checkout, folder, folder / f"{name}-{number}"))
        print(f"round {number}: " + ", ".join(f"{name} {sec[-1]:.1f} s" for name, sec in cpu_sec.items()), flush=True)
    ratios = [ours / theirs for ours, theirs in zip(cpu_sec["ours"][1:], cpu_sec["other"][1:], strict=True)]
    return {
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "audio_min": round(audio_sec / 60, 2),
        "clips": num_clips,
        "formats": SUFFIXES,
        "cpu_sec": {name: [round(sec, 2) for sec in times[1:]] for name, times in cpu_sec.items()},
        "ours_over_other": [round(ratio, 4) for ratio in ratios],
        "median_ours_over_other": round(statistics.median(ratios), 4),
        "differing_codes": differing_codes(folder / "ours-0", folder / "other-0"),
    }


def write_corpus(folder: Path, minutes: float) -> tuple[float, int]:
    """(seconds of audio, number of clips) of a manifest with clips of each format."""
    rows, audio_sec = [], 0.0
    for number, path in enumerate(speech(folder, minutes)):
        samples, rate_hz = soundfile.read(path)
        target = folder / f"clip{number}.{SUFFIXES[number % len(SUFFIXES)]}"
        soundfile.write(target, samples, rate_hz)
        audio_sec += len(samples) / rate_hz
        rows.append({"audio": target.name, "text": "صباح الخير", "speaker": f"voice{number % 3}"})
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "corpus.jsonl").write_text(lines, encoding="utf-8")
    return audio_sec, len(rows)


def run(checkout: Path, folder: Path, out: Path) -> float:
    """Seconds of processor time of preprocess.shard and its workers."""
    flags = {
        "manifest": folder / "corpus.jsonl",
        "model": folder / "base",
        "audio-tokenizer": folder / "codec",
        "hubert": folder / "hubert",
        "out": out,
        "workers": 1,
    }
    command = [sys.executable, "-m", "preprocess.shard", *(f"--{name}={value}" for name, value in flags.items())]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    subprocess.run(command, cwd=checkout, env=environment, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def differing_codes(one: Path, other: Path) -> int:
    """How many codes differ between two corpora of the same clips."""
    codes = []
    for corpus in (Corpus(one), Corpus(other)):
        clips = [corpus.clip(row) for row in range(corpus.index.num_rows)]
        codes.append({clip.key: clip.codes for clip in clips})
    assert codes[0].keys() == codes[1].keys()
    return sum(int((codes[0][key] != codes[1][key]).sum()) for key in codes[0])


if __name__ == "__main__":
    main()
