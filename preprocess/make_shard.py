"""One spec -> one tar, one index fragment, and why some clips are in neither.

`make_shard` is a pure function of the spec and the files it names: any process on any machine with the same
pins and instruction set writes the same bytes. A shard is finished when tar and fragment bear their names; the
fragment comes last.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from preprocess.audio import flac_16khz
from preprocess.base_model import read_base_model
from preprocess.clips import ClipPlan
from preprocess.codec import encode, load_codec
from preprocess.errors import Rejected
from preprocess.layout import normalise_text
from preprocess.planning import ShardSpec
from preprocess.screening import MAX_DURATION_SEC, MIN_DURATION_SEC, duration_reason
from preprocess.shards import Clip, sha256_file, write_atomically, write_shard

FRAGMENTS_FOLDER = "fragments"


@dataclass(frozen=True)
class ShardReport:
    """What became of a shard's clips: index rows (all columns but split, use, reason) or why there is none.

    `lost_sec` is the decoded length of screened clips. A shard of which no clip is left has no tar: 0 bytes.
    """

    name: str
    rows: list[dict]
    rejected: dict[str, Rejected]
    lost_sec: dict[str, float]
    num_bytes: int
    sha256: str


def make_shard(spec: ShardSpec, progress: Callable[[float], None] = lambda audio_sec: None) -> ShardReport:
    """Encode the spec's clips and write tar and fragment. `progress` hears the seconds of audio of each clip."""
    tokenizer, facts = load_codec(spec.codec, spec.hubert)
    clips, extra, rejected, lost_sec = [], {}, {}, {}
    for plan in sorted(spec.clips, key=lambda plan: plan.recording.order):
        try:
            audio = plan.recording.decode()
            progress(audio.duration_sec)
            reason = duration_reason(audio.duration_sec)
            if reason:
                lost_sec[plan.key] = audio.duration_sec
                raise _duration_rejected(plan, reason, audio.duration_sec)
        except Rejected as error:
            rejected[plan.key] = error
            continue
        codes = encode(tokenizer, audio.waveform, audio.sample_rate_hz)
        assert codes.shape[0] == facts.num_codebooks, codes.shape
        assert codes.max() < facts.codebook_size, codes.max()
        meta = _meta(plan, audio.duration_sec, audio.sha256)
        clips.append(Clip(plan.key, meta, codes, flac_16khz(audio) if spec.waveforms == "flac" else None))
        extra[plan.key] = {"frames": codes.shape[1], **_index_columns(spec.model, plan, meta)}
    clips.sort(key=lambda clip: clip.key)
    assert len(clips) + len(rejected) == len(spec.clips)
    path = spec.out / f"{spec.name}.tar"
    rows = [{**row, **extra[row["key"]]} for row in write_shard(path, clips)] if clips else []
    num_bytes, sha256 = (path.stat().st_size, sha256_file(path)) if clips else (0, "")
    report = ShardReport(spec.name, rows, rejected, lost_sec, num_bytes, sha256)
    _write_fragment(spec, report)
    return report


def _meta(plan: ClipPlan, duration_sec: float, source_sha256: str) -> dict:
    return {
        "text": plan.text,
        "text_normalised": normalise_text(plan.text),
        "speaker": plan.speaker,
        "language": plan.language,
        "id": plan.id,
        "duration_sec": duration_sec,
        "source": plan.source,
        "source_sha256": source_sha256,
        "dialogues": plan.dialogues,
    }


def _index_columns(model: Path, plan: ClipPlan, meta: dict) -> dict:
    num_tokens = read_base_model(model).num_tokens
    dialogues = [
        {
            "position": position,
            "text_tokens": num_tokens(dialogue["text"]),
            "references": [{"key": r["key"], "text_tokens": num_tokens(r["text"])} for r in dialogue["references"]],
        }
        for position, dialogue in enumerate(plan.dialogues)
    ]
    return {
        "text_tokens": num_tokens(meta["text_normalised"]),
        "duration_sec": meta["duration_sec"],
        "speaker": plan.speaker,
        "language": plan.language,
        "draws_reference": plan.draws_reference,
        "dialogues": dialogues,
    }


def _duration_rejected(plan: ClipPlan, reason: str, duration_sec: float) -> Rejected:
    return Rejected(
        "screened",
        reason,
        plan.path,
        f"{duration_sec:.2f} s of audio",
        f"{MIN_DURATION_SEC} to {MAX_DURATION_SEC:.0f} s",
        "Cut the recording into utterances with a transcript each." if reason == "too_long" else "Nothing to do.",
    )


def _fragment_path(spec: ShardSpec) -> Path:
    return spec.out / FRAGMENTS_FOLDER / f"{spec.name}.json"


def _write_fragment(spec: ShardSpec, report: ShardReport) -> None:
    fragment = {
        "identity": spec.identity,
        "rows": report.rows,
        "rejected": {key: error.record() for key, error in report.rejected.items()},
        "lost_sec": report.lost_sec,
        "num_bytes": report.num_bytes,
        "sha256": report.sha256,
    }
    _fragment_path(spec).parent.mkdir(exist_ok=True)
    write_atomically(_fragment_path(spec), json.dumps(fragment, ensure_ascii=False, sort_keys=True).encode())


def read_finished(spec: ShardSpec) -> ShardReport | None:
    """The report of this very spec if an earlier run finished it, else None."""
    path, tar = _fragment_path(spec), spec.out / f"{spec.name}.tar"
    if not path.is_file():
        return None
    fragment = json.loads(path.read_text(encoding="utf-8"))
    num_bytes = tar.stat().st_size if tar.is_file() else 0
    if fragment["identity"] != spec.identity or fragment["num_bytes"] != num_bytes:
        return None
    rejected = {key: Rejected(**record) for key, record in fragment["rejected"].items()}
    return ShardReport(spec.name, fragment["rows"], rejected, fragment["lost_sec"], num_bytes, fragment["sha256"])
