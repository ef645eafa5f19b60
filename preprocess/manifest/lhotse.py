"""The lhotse dialect: cuts as JSONL. Each supervision of a cut is one clip, by its times in the recording."""

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Any, TypeGuard

from preprocess.common.errors import Rejected
from preprocess.common.json_file import JsonObject
from preprocess.manifest.values import is_missing, malformed_row

_TYPES = ("MonoCut", "MultiCut", "MixedCut", "PaddingCut", "DataCut")
_TOLERANCE_SEC = 0.05  # times are rounded


def is_cut(record: object) -> TypeGuard[JsonObject]:
    """Whether a record is a cut of lhotse."""
    if not isinstance(record, dict):
        return False
    return record.get("type") in _TYPES or {"supervisions", "recording"} <= record.keys()


def read_cuts(records: Iterable[tuple[int, object]]) -> Iterator[tuple[int, object]]:
    """(number, record or why it has none) per supervision; the numbers count supervisions, and cuts without one."""
    per_cut = (_read_cut(record) if is_cut(record) else [record] for _, record in records)
    yield from enumerate(itertools.chain.from_iterable(per_cut), start=1)


def _read_cut(cut: JsonObject) -> list[JsonObject | Rejected]:
    name = str(cut.get("id"))
    if cut.get("type") not in (None, "MonoCut", "MultiCut"):
        found = f"the cut {name}, a {cut['type']}"
        action = "Save what it mixes as audio files (lhotse: cuts.save_audios), or leave it out."
        return [Rejected("failed", "mixed_cut", "", found, "a MonoCut: speech as it was recorded", action)]
    supervisions = cut.get("supervisions")
    if not isinstance(supervisions, list) or not supervisions:
        return [malformed_row("", f"the cut {name} without supervisions", "one or more, each with its text")]
    read: list[JsonObject | Rejected] = []
    for supervision in supervisions:
        try:
            read.append(_read_supervision(name, cut, supervision))
        except Rejected as rejected:
            read.append(rejected)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            what = f"the cut {name}, which can't be read ({type(error).__name__}: {error})"
            read.append(malformed_row("", what, "a cut as lhotse writes it"))
    return read


def _read_supervision(name: str, cut: JsonObject, supervision: JsonObject) -> JsonObject:
    start_sec, end_sec = _times(name, cut, supervision)
    recording = cut.get("recording")
    if not isinstance(recording, dict):
        raise malformed_row("", f"the cut {name} without a recording", "a recording: features alone are no audio")
    changed = [t.get("name", str(t)) for t in recording.get("transforms") or [] if t.get("name") != "Resample"]
    if changed:
        action = "Save the cuts as audio files (lhotse: cuts.save_audios)."
        found = f"the cut {name}, whose recording is changed by {', '.join(changed)}"
        raise Rejected("failed", "transformed_audio", "", found, "a recording as its file has it", action)
    path, channel = _source(name, recording, supervision.get("channel", cut.get("channel")))
    whole = start_sec == 0 and abs(end_sec - float(recording.get("duration") or 0)) < 1e-3
    return {
        "audio": path,
        "text": supervision.get("text"),
        "speaker": supervision.get("speaker"),
        "language": supervision.get("language"),
        "id": supervision.get("id") if not is_missing(supervision.get("id")) else cut.get("id"),
        "start": None if whole else start_sec,
        "end": None if whole else end_sec,
        "channel": channel,
    }


def _times(name: str, cut: JsonObject, supervision: JsonObject) -> tuple[float, float]:
    """(start, end) of a supervision in the recording; its own times count from the start of the cut."""
    cut_start_sec, cut_sec = float(cut.get("start") or 0), float(cut["duration"])
    start_sec, length_sec = float(supervision.get("start") or 0), float(supervision["duration"])
    end_sec = start_sec + length_sec
    if not math.isfinite(cut_start_sec + cut_sec + end_sec):  # no number would be no end: all of the recording
        raise malformed_row("", f"the cut {name}, with times that are no numbers", "start and duration in seconds")
    if start_sec < -_TOLERANCE_SEC or end_sec > cut_sec + _TOLERANCE_SEC:
        found = f"the cut {name}, with a supervision from {start_sec} s to {end_sec} s of its {cut_sec} s"
        raise malformed_row("", found, "supervisions within their cut")
    start_sec, end_sec = max(start_sec, 0.0), min(end_sec, cut_sec)
    return round(cut_start_sec + start_sec, 8), round(cut_start_sec + end_sec, 8)


def _source(name: str, recording: JsonObject, wanted: object) -> tuple[str, int | None]:
    """(path, channel of the file or None for all of it) for the wanted channel, or list of channels."""
    sources: list[Any] = recording["sources"]
    channels = wanted if isinstance(wanted, list) else [wanted]
    source = next((s for s in sources if len(sources) == 1 or channels[0] in s["channels"]), None)
    if source is None:
        raise malformed_row("", f"the cut {name}, whose channel {wanted} no source has", "a source of its recording")
    if source["type"] != "file":
        found = f"the cut {name}, whose audio comes from a {source['type']}: {str(source['source'])[:60]}"
        action = "Save it as a file (lhotse: cuts.save_audios), and name that."
        raise Rejected("failed", "audio_elsewhere", "", found, "audio from a file", action)
    own = source.get("channels") or [0]
    if len(own) == 1 or wanted is None or channels == own:
        return source["source"], None
    if len(channels) > 1:
        found = f"the cut {name}, with the channels {channels} of {own}"
        raise malformed_row("", found, "one channel, or all, whose mean is used")
    return source["source"], own.index(channels[0])
