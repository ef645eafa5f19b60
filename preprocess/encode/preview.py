"""Previews: what a run would make of the clips, without codec and output. Decoded as the run does, or by headers."""

from collections.abc import Iterable
from functools import partial
from typing import NamedTuple

from preprocess.audio.decode import Header
from preprocess.common.errors import Rejected
from preprocess.common.json_file import JsonObject
from preprocess.encode.clip_pool import for_each_clip
from preprocess.encode.judge_clip import judge_clip, load_screening_networks, refuse_length
from preprocess.encode.make_shard import ShardReport
from preprocess.plan.clips import ClipPlan, ClipTable
from preprocess.plan.screening import Screening


class _Judged(NamedTuple):
    """What became of a clip whose audio was read: `error` is why it is screened; row: columns of the index."""

    duration_sec: float
    row: JsonObject
    error: Rejected | None = None


def preview_by_decoding(
    screening: Screening, table: ClipTable, headers: dict[str, Header], num_workers: int
) -> ShardReport:
    """The report of one shard with all clips that have a header; rows with the columns that accounts need."""
    load_screening_networks(screening)
    clips = sorted((table.clips[key] for key in headers), key=lambda clip: clip.recording.order)
    return _report(clips, for_each_clip(partial(_decode, screening), clips, num_workers, "decoding"))


def preview_by_headers(screening: Screening, table: ClipTable, headers: dict[str, Header]) -> ShardReport:
    """The same without a look at the audio: by the lengths that the headers claim, each file another audio."""
    clips = [table.clips[key] for key in sorted(headers)]
    judged = []
    for clip in clips:
        row = _row(clip, headers[clip.key].duration_sec, clip.path)
        judged.append(_screened(screening, clip, row))
    return _report(clips, judged)


def _decode(screening: Screening, clip: ClipPlan) -> _Judged:
    longer_sec = clip.recording.duration_if_longer(screening.longest_sec)
    if longer_sec:
        return _screened(screening, clip, _row(clip, longer_sec, ""))
    audio = clip.recording.decode()
    row = _row(clip, audio.duration_sec, audio.sha256)
    judged = _screened(screening, clip, row)
    if judged.error:
        return judged
    try:
        _, voice = judge_clip(screening, clip, audio)
    except Rejected as error:
        return judged._replace(error=error)
    return judged._replace(row=row | voice)


def _screened(screening: Screening, clip: ClipPlan, row: JsonObject) -> _Judged:
    try:
        refuse_length(screening, clip, row["duration_sec"])
    except Rejected as error:
        return _Judged(row["duration_sec"], row, error)
    return _Judged(row["duration_sec"], row)


def _row(clip: ClipPlan, duration_sec: float, sha256: str) -> JsonObject:
    return {
        "key": clip.key,
        "speaker": clip.speaker,
        "duration_sec": duration_sec,
        "source_sha256": sha256,
        "draws_reference": clip.draws_reference,
        "derived_from": clip.derived_from,
        "dialogues": [{"position": position} for position in range(len(clip.dialogues))],
    }


def _report(clips: list[ClipPlan], judged: Iterable[_Judged | Rejected]) -> ShardReport:
    rows, rejected, lost_sec = [], {}, {}
    for clip, result in zip(clips, judged, strict=True):
        if isinstance(result, Rejected):
            rejected[clip.key] = result
        elif result.error:
            rejected[clip.key], lost_sec[clip.key] = result.error, result.duration_sec
        else:
            rows.append(result.row)
    return ShardReport("preview", rows, rejected, lost_sec, 0, "")
