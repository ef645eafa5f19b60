"""The lhotse dialect: JSONL of cuts, each a part of a recording with one supervision that says who speaks what."""

from typing import Any

from preprocess.common.errors import Rejected
from preprocess.common.json_file import JsonObject
from preprocess.manifest.values import malformed_row, seconds_of

_TRIM = "Write the cuts with `lhotse cut trim-to-supervisions`."
# What lhotse itself forgives where a supervision ends after its cut.
_TOLERANCE_SEC = 0.05


def is_cut(record: JsonObject) -> bool:
    """Whether a record of a JSON file is a cut, and no row of columns."""
    return "supervisions" in record or (record.get("type") in ("MonoCut", "MultiCut", "MixedCut", "PaddingCut"))


def record_of_cut(cut: JsonObject) -> JsonObject:
    """The cut as a record of columns. Raises Rejected for a cut that is no part of one file with one supervision."""
    name = f"the cut {cut.get('id')}"
    kind = cut.get("type", "MonoCut")
    if kind not in ("MonoCut", "MultiCut"):
        raise _refusal(f"{name} of type {kind}", "cuts of one recording", "Save the mixed audio as files of its own.")
    supervisions, recording = cut.get("supervisions") or [], cut.get("recording")
    if not isinstance(supervisions, list) or not all(isinstance(each, dict) for each in supervisions):
        raise malformed_row("", f"supervisions of {name} that are no objects", "a list of supervisions")
    if len(supervisions) != 1:
        raise _refusal(f"{name} with {len(supervisions)} supervisions", "one supervision per cut", _TRIM)
    if not isinstance(recording, dict):
        raise _refusal(f"{name} without a recording", "cuts with recordings", "Save the cuts with their recordings.")
    if recording.get("transforms"):
        found = f"{name} of a recording that lhotse changes ({str(recording['transforms'])[:40]})"
        raise _refusal(found, "recordings as they are in their files", "Leave the changed cuts out.")
    (supervision,) = supervisions
    start_sec, end_sec = _times(name, cut, supervision)
    whole = start_sec == 0 and abs(end_sec - (recording.get("duration") or 0)) < 1e-3
    path, channel = _source(name, recording, supervision.get("channel", cut.get("channel")))
    return {
        "audio": path,
        "channel": channel,
        "text": supervision.get("text"),
        "speaker": supervision.get("speaker"),
        "language": supervision.get("language"),
        "id": supervision.get("id"),
        "start": None if whole else start_sec,
        "end": None if whole else end_sec,
    }


def _times(name: str, cut: JsonObject, supervision: JsonObject) -> tuple[float, float]:
    """Start and end of the supervision in the recording, in seconds. Its start counts from that of the cut."""
    cut_start, cut_sec = (seconds_of("", f"{key} of {name}", cut.get(key)) for key in ("start", "duration"))
    start = supervision.get("start")
    length = seconds_of("", f"duration of the supervision of {name}", supervision.get("duration"))
    if cut_start is None or cut_sec is None or not isinstance(start, int | float) or length is None:
        raise malformed_row("", f"no start and duration of {name} or its supervision", "both, in seconds")
    if start < -_TOLERANCE_SEC or start + length > cut_sec + _TOLERANCE_SEC:
        found = f"a supervision from {start} to {start + length:.3f} s in {name} of {cut_sec} s"
        raise _refusal(found, "a supervision within its cut", _TRIM)
    start = max(float(start), 0.0)
    end = min(start + length, cut_sec)
    return round(cut_start + start, 9), round(cut_start + end, 9)


def _source(name: str, recording: JsonObject, channel: Any) -> tuple[str, int | None]:
    """(path, channel or None for the only one) of a recording's file."""
    sources = [source for source in recording.get("sources") or [] if isinstance(source, dict)]
    wanted = channel if isinstance(channel, list) else [channel]
    sources = [source for source in sources if set(wanted) <= {None, *source.get("channels", [])}]
    if len(sources) != 1:
        raise _refusal(f"{len(sources)} files for channel {channel} of {name}", "one file", _TRIM)
    (source,) = sources
    kind, path, channels = source.get("type"), source.get("source"), source.get("channels") or [0]
    if kind != "file" or not isinstance(path, str):
        found = f"{name} with a source of type {kind}: {str(path)[:60]}"
        action = "Save its audio as a file (lhotse: cut.save_audio), and name that."
        raise Rejected(
            "failed", "shell_command" if kind == "command" else "audio_elsewhere", "", found, "a file", action
        )
    if len(channels) == 1 or sorted(map(str, wanted)) == sorted(map(str, channels)):
        return path, None
    if len(wanted) > 1:
        raise _refusal(f"{len(wanted)} of {len(channels)} channels in {name}", "one channel, or all", _TRIM)
    return path, None if wanted[0] is None else channels.index(wanted[0])


def _refusal(found: str, expected: str, action: str) -> Rejected:
    return Rejected("failed", "not_one_utterance", "", found, expected, action)
