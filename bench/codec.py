"""Speed of the offline stage's encoder on this machine's cores: Boson's encode, ours, and the core's limit.

    PYTHONPATH=. python bench/codec.py [--minutes 2] [--out bench/results/codec.json]

Both encode the same clips in the same process on one thread, alternating clip by clip, in rounds; CPU time counts.
The codec has the size of the released one and random weights. The limit is the number of the network's operations
(each encoder run once, counted in Boson's modules) divided by the core's best rate of fp32 matrix multiplication in
the same run.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from boson_multimodal.audio_processing import higgs_audio_tokenizer as boson
from plan import cpu_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import HubertConfig

from launch.demo.arabic_speech import SENTENCES, VOICES, save_speech
from launch.demo.small_codec import RELEASED_SIZE, build_codec, build_hubert
from preprocess.audio.decode import decode
from preprocess.codec.load import encode_waveform, hubert_from, load_codec
from preprocess.codec.precision import EncodeMode, check_mode
from preprocess.common.errors import InputError
from preprocess.encode.local_pool import run_local

CORPUS_HOURS, SERVER_CORES = 800, 128
ROUNDS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=2.0, help="of speech, in clips of 2 to 15 s (2)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="over all clips; medians are printed (3)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "codec.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), arguments.minutes, arguments.rounds)
    print(json.dumps(result, indent=2))
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")


def measure(folder: Path, minutes: float, rounds: int) -> dict:
    """The result of the benchmark, as its JSON has it."""
    list(run_local(build, [folder], 1))  # in another process, whose memory is freed
    paths = speech(folder, minutes)
    audio_sec = sum(soundfile.info(path).duration for path in paths)
    ours, facts = load_codec(folder / "codec", folder / "hubert")
    print(f"{audio_sec:.0f} s of speech in {len(paths)} clips", flush=True)
    both = side_by_side(folder, ours, paths, audio_sec, rounds)
    rate, gflop = both.matmul_gflops, both.gflop_per_audio_sec
    limit, theirs_x, ours_x = max(rate.values()) / gflop, both.boson_x, both.ours_x
    pool = pool_efficiency(ours, paths, audio_sec)
    server_x = SERVER_CORES * pool[-1]["times_real_time"] / pool[-1]["workers"]
    return {
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "torch": torch.__version__,
        "faster_forms": ours.faster_forms,
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "audio_min": round(audio_sec / 60, 2),
        "clip_sec": [round(f(soundfile.info(path).duration for path in paths), 1) for f in (min, max)],
        "rounds": rounds,
        "gflop_per_audio_sec": round(gflop, 2),
        "matmul_gflops": {name: round(value, 1) for name, value in rate.items()},
        "times_real_time_per_core": {
            "boson": round(theirs_x, 3),
            "ours": round(ours_x, 3),
            "limit": round(limit, 3),
            "limit_of_torch_mm": round(rate["torch.mm"] / gflop, 3),
        },
        "ours_over_boson": round(ours_x / theirs_x, 3),
        "share_of_limit": round(ours_x / limit, 3),
        "codes": {"compared": both.codes, "differing": both.codes_differing, "codebooks": facts.num_codebooks},
        "bf16": in_bf16(folder, ours, paths, audio_sec),
        "pool": pool,
        f"projection_of_{CORPUS_HOURS}_h_on_{SERVER_CORES}_such_cores_h": round(CORPUS_HOURS / server_x, 2),
    }


@dataclass(frozen=True)
class SideBySide:
    """Boson's encode and ours on the same clips, alternating: medians of the rounds, and how many codes differ."""

    boson_x: float
    ours_x: float
    matmul_gflops: dict[str, float]
    gflop_per_audio_sec: float
    codes: int
    codes_differing: int


def side_by_side(
    folder: Path, ours: boson.HiggsAudioTokenizer, paths: list[Path], audio_sec: float, rounds: int
) -> SideBySide:
    """The comparison. Boson's own tokenizer is only in memory during this call."""
    with hubert_from(folder / "hubert"):
        theirs = boson.load_higgs_audio_tokenizer(str(folder / "codec"), device="cpu")
    gflop = gflop_per_audio_sec(theirs)
    their_sec, our_sec, rates, differing, num_codes = [], [], [], 0, 0
    for _ in range(rounds):
        rates.append(matmul_gflops())
        their_sec.append(0.0)
        our_sec.append(0.0)
        for path in paths:
            expected = timed(lambda path=path: theirs.encode(str(path)).numpy(), their_sec)
            codes = timed(lambda path=path: encode_file(ours, path), our_sec)
            differing += int((codes != expected).sum())
            num_codes += codes.size
        print(f"one round: Boson {audio_sec / their_sec[-1]:.2f}x, ours {audio_sec / our_sec[-1]:.2f}x", flush=True)
    rate = {name: statistics.median(rate[name] for rate in rates) for name in rates[0]}
    boson_x, ours_x = (audio_sec / statistics.median(seconds) for seconds in (their_sec, our_sec))
    return SideBySide(boson_x, ours_x, rate, gflop, num_codes, differing)


def in_bf16(folder: Path, ours: boson.HiggsAudioTokenizer, paths: list[Path], audio_sec: float) -> dict | None:
    """Speed of --precision bf16 and the share of codes equal to those of fp32; None on a processor without bf16."""
    mode = EncodeMode("cpu", "bf16")
    try:
        check_mode(mode)
    except InputError:
        return None
    codec, _ = load_codec(folder / "codec", folder / "hubert", mode)
    seconds, equal = [0.0], []
    for path in paths:
        codes = timed(lambda path=path: encode_file(codec, path), seconds)
        equal.append(codes == encode_file(ours, path))
    return {
        "times_real_time_per_core": round(audio_sec / seconds[0], 3),
        "equal_share_of_codebooks": [round(float(share), 4) for share in np.concatenate(equal, axis=1).mean(axis=1)],
    }


def build(folder: Path, progress: Callable) -> None:
    """Save a codec of the released size and its HuBERT."""
    build_hubert(folder / "hubert", config=HubertConfig())
    build_codec(folder / "codec", folder / "hubert", **RELEASED_SIZE)


def speech(folder: Path, minutes: float) -> list[Path]:
    """Paths of new WAV files of 2 to 15 s, in several voices, paces and pitches."""
    rng = np.random.default_rng(0)
    paths, total_sec = [], 0.0
    while total_sec < minutes * 60:
        number = len(paths)
        _, voice, pace, pitch = VOICES[number % len(VOICES)]
        text = " ".join(SENTENCES[i] for i in rng.integers(len(SENTENCES), size=1 + number % 4))
        paths.append(folder / f"{number:04d}.wav")
        pitch = int(np.clip(pitch + rng.integers(-12, 13), 0, 99))
        save_speech([(str(paths[-1]), text, voice, pace + int(rng.integers(-15, 16)), pitch)])
        total_sec += soundfile.info(paths[-1]).duration
    return paths


def encode_file(tokenizer: boson.HiggsAudioTokenizer, path: Path) -> np.ndarray:
    audio = decode(path)
    return encode_waveform(tokenizer, audio.waveform, audio.sample_rate_hz)


def timed(work: Callable[[], np.ndarray], seconds: list[float]) -> np.ndarray:
    """The result of `work`, whose CPU time is added to the last of `seconds`."""
    start = time.process_time()
    result = work()
    seconds[-1] += time.process_time() - start
    return result


@torch.no_grad()
def gflop_per_audio_sec(tokenizer: boson.HiggsAudioTokenizer, seconds: int = 8) -> float:
    """10^9 operations per second of audio in convolutions, linear layers and attention, each encoder run once."""
    wave = torch.zeros(1, 1, seconds * tokenizer.sample_rate)
    with FlopCounterMode(display=False) as counter:
        semantic = tokenizer.encoder_semantic(tokenizer.get_regress_target(wave).transpose(1, 2))
        acoustic = tokenizer.encoder(wave)
        frames = min(semantic.shape[-1], acoustic.shape[-1])
        both = torch.cat([acoustic[..., :frames], semantic[..., :frames]], dim=1)
        tokenizer.quantizer(tokenizer.fc_prior(both.mT).mT, tokenizer.frame_rate, None)
    return counter.get_total_flops() / seconds / 1e9


def matmul_gflops(size: int = 1024) -> dict[str, float]:
    """fp32 GFLOP/s of torch's own matrix multiplication (MKL) and of oneDNN's with packed weights."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    packed = torch.ops.mkldnn._reorder_linear_weight(b, size)
    modes = {
        "torch.mm": lambda: torch.mm(a, b),
        "onednn": lambda: torch.ops.mkldnn._linear_pointwise(a, packed, None, "none", [], ""),
    }
    rates = {}
    for name, mode in modes.items():
        seconds = []
        for _ in range(15):
            start = time.process_time()
            mode()
            seconds.append(time.process_time() - start)
        rates[name] = 2 * size**3 / statistics.median(seconds[3:]) / 1e9
    return rates


def pool_efficiency(tokenizer: boson.HiggsAudioTokenizer, paths: list[Path], audio_sec: float) -> list[dict]:
    """Throughput of the offline stage's own pool with 1, 2, ... processes up to all cores; a worker's own memory."""

    def work(path: Path, progress: Callable) -> int:
        encode_file(tokenizer, path)
        return private_bytes()

    rows = []
    paths = sorted(paths, key=lambda path: -path.stat().st_size)  # so that no worker ends with a long file alone
    for workers in range(1, len(os.sched_getaffinity(0)) + 1):
        start = time.perf_counter()
        private = max(value for _, value in run_local(work, paths, workers))
        speed = audio_sec / (time.perf_counter() - start)
        rows.append({"workers": workers, "times_real_time": round(speed, 3), "private_mb": round(private / 1e6)})
    for row in rows:
        row["efficiency"] = round(row["times_real_time"] / (row["workers"] * rows[0]["times_real_time"]), 3)
    return rows


def private_bytes() -> int:
    """Bytes of memory that this process shares with no other (Linux)."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))


if __name__ == "__main__":
    main()
