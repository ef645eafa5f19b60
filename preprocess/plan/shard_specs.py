"""Planning: read headers, deal clips into shards. It sees the whole manifest and no audio.

The plan depends on manifest, files and settings alone: not on workers, working directory or hash seed.
"""

import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tqdm import tqdm

from preprocess.audio.decode import NO_SUCH_FILE, Header
from preprocess.codec.precision import EncodeMode
from preprocess.common.errors import Rejected
from preprocess.plan.clips import ClipPlan, ClipTable
from preprocess.plan.respelled_names import find_respelled
from preprocess.plan.screening import Screening
from preprocess.plan.settings import Settings

GPU_READERS = 4


@dataclass(frozen=True)
class ShardSpec:
    """One shard's work. `identity` names all that its bytes depend on but folders: a finished shard keeps it.

    culprits: clips, by key, that are left out because a worker died over each of them in this run.
    num_readers: threads of the worker that decode and resample ahead of the encoder.
    """

    name: str
    clips: tuple[ClipPlan, ...]
    out: Path
    model: Path
    system_text: str
    codec: Path
    hubert: Path
    waveforms: str
    screening: Screening
    reuse: Path | None
    noise: Path | None
    room_responses: Path | None
    mode: EncodeMode
    identity: str
    num_readers: int = 0
    culprits: dict[str, Rejected] = field(default_factory=dict)


def probe_clips(clips: Iterable[ClipPlan], num_threads: int) -> tuple[dict[str, Header], dict[str, Rejected]]:
    """Headers of the clips that have one, and why the others have none, by key.

    Where a file is there in another Unicode form, its clip's path becomes that one.
    """
    clips = sorted(clips, key=lambda clip: clip.recording.order)
    headers, rejected = _probe(clips, num_threads)
    missing = [clip for clip in clips if clip.key in rejected and rejected[clip.key].found == NO_SUCH_FILE]
    respelled = find_respelled(missing, rejected)
    if respelled:
        print(f"  {len(respelled)} clips: the file's name has another Unicode form (NFC, NFD) than the manifest's")
        headers_too, rejected_too = _probe(respelled, num_threads)
        headers |= headers_too
        rejected = {key: error for key, error in rejected.items() if key not in headers_too} | rejected_too
    return headers, rejected


def _probe(clips: list[ClipPlan], num_threads: int) -> tuple[dict[str, Header], dict[str, Rejected]]:
    def probe(clip: ClipPlan) -> Header | Rejected:
        try:
            return clip.recording.probe()
        except Rejected as rejected:
            return rejected

    # Threads would each read their own row groups of a Parquet file: one reads them in order.
    alone = any(clip.recording.row for clip in clips)
    pool = ThreadPoolExecutor(1 if alone else num_threads)
    try:
        found = list(tqdm(pool.map(probe, clips), total=len(clips), desc="headers", unit="file", leave=False))
    finally:
        pool.shutdown(cancel_futures=True)  # a stop waits for files that are being looked at, not for all
    by_key = {clip.key: result for clip, result in zip(clips, found, strict=True)}
    headers = {key: result for key, result in by_key.items() if isinstance(result, Header)}
    return headers, {key: result for key, result in by_key.items() if isinstance(result, Rejected)}


def deal_clips(
    clips: Iterable[ClipPlan],
    headers: dict[str, Header],
    hours_per_shard: float,
    seed: int,
    longest_sec: float = float("inf"),
) -> Iterator[tuple[str, list[ClipPlan]]]:
    """(shard name, clips sorted by key) of each shard: speakers in seeded order, cut where the hours are full.

    longest_sec: what a clip counts for at most.
    """

    def seeded(clip: ClipPlan) -> tuple[bytes, str, str]:
        return hashlib.sha256(f"{seed}:{clip.speaker}".encode()).digest(), clip.speaker, clip.key

    shards: list[list[ClipPlan]] = []
    filled_sec = float("inf")
    for clip in sorted(clips, key=seeded):
        if filled_sec >= hours_per_shard * 3600:
            shards.append([])
            filled_sec = 0.0
        shards[-1].append(clip)
        # What a longer clip's header says may be a guess, and the clip will be dropped.
        filled_sec += min(headers[clip.key].duration_sec, longest_sec)
    for number, shard in enumerate(shards):
        yield f"shard-{number:06d}", sorted(shard, key=lambda clip: clip.key)


def plan_shards(settings: Settings, table: ClipTable, headers: dict[str, Header], recorded: dict) -> list[ShardSpec]:
    """Specs of all shards; clips without a header are in none. recorded: the settings as corpus.json has them."""
    assert settings.out
    assert settings.audio_tokenizer
    assert settings.hubert
    clips = [clip for key, clip in table.clips.items() if key in headers]
    shards = deal_clips(clips, headers, settings.hours_per_shard, settings.seed, settings.screening.longest_sec)
    return [
        ShardSpec(
            name=name,
            clips=tuple(shard),
            out=settings.out,
            model=settings.model,
            system_text=settings.system_text,
            codec=settings.audio_tokenizer,
            hubert=settings.hubert,
            waveforms=settings.waveforms,
            screening=settings.screening,
            reuse=settings.reuse,
            noise=settings.noise,
            room_responses=settings.room_responses,
            mode=EncodeMode(settings.device, settings.precision),
            identity=_identity(name, shard, headers, recorded),
            num_readers=_num_readers(settings, shard),
        )
        for name, shard in shards
    ]


def _num_readers(settings: Settings, clips: list[ClipPlan]) -> int:
    """Threads to feed a GPU; one where clips lie in Parquet, whose row groups are read in order, one at a time."""
    if settings.device == "cpu" or settings.reuse:  # most of what is reused is not decoded
        return 0
    return 1 if any(clip.recording.row for clip in clips) else GPU_READERS


def _identity(name: str, clips: list[ClipPlan], headers: dict[str, Header], recorded: dict) -> str:
    """sha256 over settings and clips, with each file's size, so that a replaced recording is encoded again."""
    parts = [name, repr(sorted(recorded.items()))]
    for clip in clips:
        about = {name: value for name, value in asdict(clip).items() if name != "path"}
        parts.append(repr((about, headers[clip.key].num_bytes)))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
