"""Planning: read the headers of all clips and divide the clips into shards, without decoding audio.

The plan depends only on manifest, files and settings: not on workers, working directory or hash seed.
"""

import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

from preprocess.audio.decode import NO_SUCH_FILE, Header
from preprocess.codec.precision import EncodeMode
from preprocess.common.errors import Rejected
from preprocess.common.json_file import JsonObject
from preprocess.common.progress import with_progress
from preprocess.plan.clips import ClipPlan, ClipTable
from preprocess.plan.respelled_names import find_respelled
from preprocess.plan.screening import Screening
from preprocess.plan.settings import Settings

GPU_READERS = 4


@dataclass(frozen=True)
class ShardSpec:
    """The work of making one shard.

    identity: a hash of all that the shard's bytes depend on, except folders; a finished shard records it.
    culprits: {key: why} of clips that are left out because a worker died on them in this run.
    num_readers: threads in the worker that decode and resample ahead of the encoder.
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
    """{key: header} of the clips that have one, and {key: why not} of the others.

    Where a file exists in another Unicode form, its clip's path becomes that one.
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

    # Only one row group of a Parquet file is cached: several threads would replace each other's.
    in_parquet = any(clip.recording.row for clip in clips)
    pool = ThreadPoolExecutor(1 if in_parquet else num_threads)
    try:
        found = list(with_progress(pool.map(probe, clips), len(clips), "headers", "files"))
    finally:
        pool.shutdown(cancel_futures=True)  # a signal waits only for the files being read now
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
    """(name, clips sorted by key) per shard.

    The clips are put in a seeded order of speakers, and a new shard begins once the last one has its hours. A clip
    counts for at most `longest_sec`.
    """

    def seeded_order(clip: ClipPlan) -> tuple[bytes, str, str]:
        return hashlib.sha256(f"{seed}:{clip.speaker}".encode()).digest(), clip.speaker, clip.key

    shards: list[list[ClipPlan]] = []
    filled_sec = float("inf")
    for clip in sorted(clips, key=seeded_order):
        if filled_sec >= hours_per_shard * 3600:
            shards.append([])
            filled_sec = 0.0
        shards[-1].append(clip)
        # A longer clip will be dropped, and its header's duration may be a guess.
        filled_sec += min(headers[clip.key].duration_sec, longest_sec)
    for number, shard in enumerate(shards):
        yield f"shard-{number:06d}", sorted(shard, key=lambda clip: clip.key)


def plan_shards(
    settings: Settings, table: ClipTable, headers: dict[str, Header], recorded: JsonObject
) -> list[ShardSpec]:
    """The specs of all shards; clips without a header are left out. recorded: the settings as in corpus.json."""
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
    """Threads to feed a GPU; one for clips in Parquet, whose row groups are read in order, one at a time."""
    if settings.device == "cpu" or settings.reuse:  # most reused clips are not decoded
        return 0
    return 1 if any(clip.recording.row for clip in clips) else GPU_READERS


def _identity(name: str, clips: list[ClipPlan], headers: dict[str, Header], recorded: JsonObject) -> str:
    """sha256 of settings and clips, with each file's size, so that a replaced recording is encoded again."""
    parts = [name, repr(sorted(recorded.items()))]
    for clip in clips:
        fields = {field: value for field, value in asdict(clip).items() if field != "path"}
        parts.append(repr((fields, headers[clip.key].num_bytes)))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
