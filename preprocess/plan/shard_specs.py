"""Planning: divide the clips into shards by the lengths in their headers, without decoding audio.

The plan depends only on manifest, files and settings: not on workers, working directory or hash seed.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from preprocess.audio.decode import Header
from preprocess.codec.precision import EncodeMode
from preprocess.common.errors import Rejected
from preprocess.common.json_file import JsonObject
from preprocess.plan.clips import ClipPlan, ClipTable
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
