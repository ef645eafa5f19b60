"""Screening, silero-vad and Resemblyzer on human speech: Debian's prompts in five voices, and espeak-ng's voices.

    apt-get install asterisk-core-sounds-{en,es,fr,it,ru}-g722 asterisk-core-sounds-{en,es,fr,it,ru}, and ffmpeg
    python bench/human_speech.py [--prompts FOLDER] [--out FILE]

Measures which prompts the recipes drop, the spread of each figure, the similarity of clips of one voice and of
different voices, how many strangers among a speaker's clips are found, and the cost of the two networks in processor
time and memory. --prompts keeps the decoded WAV files for the next run.
"""

import argparse
import itertools
import json
import multiprocessing
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import torch
from machine import describe_machine
from tqdm import tqdm

from launch.demo.arabic_speech import build_arabic_corpus
from preprocess.audio.decode import Audio, decode
from preprocess.codec.load import resample_to_codec
from preprocess.common.errors import Rejected
from preprocess.corpus.text import normalise_text
from preprocess.encode.make_shard import load_screening_networks
from preprocess.finish.speaker_outliers import speaker_similarities
from preprocess.judges.figures import audio_figures, text_figures
from preprocess.judges.pace import length_warning
from preprocess.judges.speaker import embed_voice
from preprocess.judges.voice_activity import speech_share
from preprocess.plan.screening import Screening, load_screening, screen_figures
from tests.fixtures.asterisk import INSTALL, prompts, write_corpus

ROOT = Path(__file__).parents[1]
THRESHOLDS = (0.65, 0.7, 0.75, 0.8)
LENGTHS_SEC = (0.0, 0.5, 0.8, 1.2, 2.0, 4.0, 1e9)
DRAWS = 20  # groups of clips per pair of voices
FIGURES = ("duration_sec", "rms_dbfs", "silence_share", "bandwidth_hz", "letters_per_sec", "speech_share")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=Path, help="folder with the WAV files, or to keep them in")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "human_speech.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        human = arguments.prompts or Path(temporary) / "prompts"
        if not (human / "corpus.jsonl").is_file():
            chosen = prompts()
            if not chosen:
                raise SystemExit(f"no prompts: {INSTALL}")
            write_corpus(human, chosen)
        (espeak := Path(temporary) / "espeak").mkdir()
        build_arabic_corpus(espeak, voices=6, sentences=20)
        clips, costs = measure(read(human) + read(espeak))
    spoken = [clip for clip in clips if "_" in clip["speaker"]]
    result = {
        **describe_machine(torch.device("cpu")),
        "clips": Counter(clip["speaker"] for clip in clips),
        "costs": costs,
        "screening": {
            "default": screened(spoken, Screening()),
            "arabic, letters apart": screened(spoken, load_screening(ROOT / "launch/recipes/screening_arabic.yaml")),
        },
        "pace": pace(spoken),
        "figures_1_50_99": figures(clips),
        "speech_share_by_length": by_length(spoken),
        "similarity": similarity(clips),
        "strangers_found": strangers([clip for clip in spoken if clip["voice"]]),
    }
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def read(folder: Path) -> list[dict]:
    rows = map(json.loads, (folder / "corpus.jsonl").read_text(encoding="utf-8").splitlines())
    return [{**row, "path": folder / row["audio"]} for row in rows]


def measure(rows: list[dict]) -> tuple[list[dict], dict]:
    """(the rows with their figures and voice embeddings, processor time and memory of the networks)."""
    spent, clips = Counter(), []
    of_a_worker_mb = worker_memory_mb(decode(rows[0]["path"].parent / "demo-congrats.wav"))
    for row in tqdm(rows, desc="clips"):
        audio = decode(row["path"])
        clip = {**row, "duration_sec": audio.duration_sec}

        def timed(name: str, work, audio=audio):
            began = time.process_time()
            found = work(audio)
            spent[name] += time.process_time() - began
            return found

        clip |= timed("figures", audio_figures)
        silence_sec = clip["leading_silence_sec"] + clip["trailing_silence_sec"]
        clip |= text_figures(normalise_text(row["text"]), audio.duration_sec - silence_sec)
        clip["speech_share"] = timed("silero-vad", speech_share)
        clip["voice"] = timed("Resemblyzer", embed_voice)
        clips.append(clip)
    audio_sec = sum(clip["duration_sec"] for clip in clips)
    per_clip = {name: round(1000 * sec / len(clips), 2) for name, sec in spent.items()}
    per_sec = {name: round(1000 * sec / audio_sec, 2) for name, sec in spent.items()}
    return clips, {
        "audio_sec": round(audio_sec),
        "processor_ms_a_clip": per_clip,
        "processor_ms_a_second_of_audio": per_sec,
        "private_mb_of_a_worker": of_a_worker_mb,
    }


def worker_memory_mb(audio: Audio) -> dict[str, int]:
    """MB of private memory that each network adds to a process forked after both are loaded, on `audio`."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    resample_to_codec(audio.waveform, audio.sample_rate_hz, 24000)  # loads what a worker needs anyway
    load_screening_networks(Screening(min_speech_share=0.3, min_speaker_similarity=0.75))

    def work() -> None:
        before, gained = private_mb(), {}
        for name, use in (("silero-vad", speech_share), ("Resemblyzer", embed_voice)):
            use(audio)
            gained[name] = round(private_mb() - before - sum(gained.values()))
        theirs.send(gained)

    process = context.Process(target=work)
    process.start()
    gained = ours.recv()
    process.join()
    return gained


def private_mb() -> float:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def screened(clips: list[dict], recipe: Screening) -> dict:
    """How many prompts the recipe drops for each reason, with examples."""
    dropped = defaultdict(list)
    for clip in clips:
        known = {name: value for name, value in clip.items() if name != "arabic_share"}
        try:
            screen_figures(recipe, known, "")
        except Rejected as error:
            dropped[error.reason].append(f"{clip['audio']}: {clip['text'][:40]!r}: {error.found}")
    counts = {reason: len(found) for reason, found in dropped.items()}
    return {"of": len(clips), "dropped": counts, "examples": {reason: found[:8] for reason, found in dropped.items()}}


def pace(clips: list[dict]) -> dict:
    """Median seconds per letter of each voice, and the prompts that generation would warn of with this pace."""
    result = {}
    for speaker, own in grouped(clips):
        facts = {"sec_per_letter": float(np.median([1 / clip["letters_per_sec"] for clip in own]))}
        warned = [clip for clip in own if length_warning(facts, clip["text"], clip["duration_sec"])]
        texts = [f"{clip['text'][:50]} ({clip['duration_sec']:.1f} s)" for clip in warned]
        result[speaker] = {**facts, "warned": len(warned), "of": len(own), "examples": texts[:6]}
    return result


def grouped(clips: list[dict]) -> list[tuple[str, list[dict]]]:
    speakers = sorted({clip["speaker"] for clip in clips})
    return [(speaker, [clip for clip in clips if clip["speaker"] == speaker]) for speaker in speakers]


def figures(clips: list[dict]) -> dict:
    return {
        speaker: {
            name: np.percentile([clip[name] for clip in own], [1, 50, 99]).round(3).tolist() for name in FIGURES
        }
        for speaker, own in grouped(clips)
    }


def by_length(clips: list[dict]) -> dict:
    """By length of the prompts: how many have a share of speech below 0.3 by silero-vad, and the least share."""
    result = {}
    for low, high in itertools.pairwise(LENGTHS_SEC):
        shares = [clip["speech_share"] for clip in clips if low <= clip["duration_sec"] < high]
        below = sum(share < 0.3 for share in shares)
        result[f"from {low:g} s"] = {"clips": len(shares), "below 0.3": below, "least": min(shares)}
    return result


def similarity(clips: list[dict]) -> dict:
    """Similarities [min, 1 %, 5 %, median, 99 %] of a speaker's clips to one another, and of the clips of the most
    similar other speaker, each put among them alone.
    """
    result = {}
    voices = grouped([clip for clip in clips if clip["voice"]])
    for speaker, own in voices:
        rows = {str(n): clip for n, clip in enumerate(own)}

        def alone(clip: dict, rows=rows, speaker=speaker) -> float:
            return speaker_similarities({**rows, "x": {**clip, "speaker": speaker}}, 0.0)["x"]

        others = {other: spread(alone(clip) for clip in theirs[:60]) for other, theirs in voices if other != speaker}
        nearest = max(others, key=lambda other: others[other][3])
        own_spread = spread(speaker_similarities(rows, 0.0).values())
        result[speaker] = {"clips": len(own), "own": own_spread, "nearest": nearest, "of nearest": others[nearest]}
    return result


def spread(values) -> list[float]:
    return np.percentile(list(values), [0, 1, 5, 50, 99]).round(3).tolist()


def strangers(clips: list[dict]) -> dict:
    """Shares of a speaker's own clips and of strangers among them that are dropped, over many random draws.

    Pairs of English and Spanish are left out, because one woman speaks both.
    """
    rng, result = np.random.default_rng(0), {}
    for number, strange in ((5, 1), (10, 1), (20, 0), (20, 1), (20, 4), (20, 8)):
        for threshold in THRESHOLDS:
            dropped, seen = Counter(), Counter()
            for speaker, own in grouped(clips):
                for other, theirs in grouped(clips):
                    if other == speaker or {speaker[:2], other[:2]} == {"en", "es"}:
                        continue
                    sex = "same sex" if speaker.split("_")[2] == other.split("_")[2] else "other sex"
                    for _ in range(DRAWS):
                        drawn = [("own", clip) for clip in rng.choice(own, number - strange, replace=False)]
                        drawn += [(sex, clip) for clip in rng.choice(theirs, strange, replace=False)]
                        rows = {str(n): {**clip, "speaker": speaker} for n, (_, clip) in enumerate(drawn)}
                        for key, value in speaker_similarities(rows, threshold).items():
                            seen[drawn[int(key)][0]] += 1
                            dropped[drawn[int(key)][0]] += value < threshold
            shares = {who: round(dropped[who] / seen[who], 4) for who in seen}
            result[f"{strange} of {number}, threshold {threshold}"] = shares
    return result


if __name__ == "__main__":
    main()
