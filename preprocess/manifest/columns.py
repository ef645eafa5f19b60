"""The columns dialect: how a record of named values becomes a Row; field_names.py says which column holds what."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from preprocess.audio.recording import Recording
from preprocess.common.errors import Rejected, join_some
from preprocess.common.json_file import JsonObject
from preprocess.manifest.field_names import FIELDS
from preprocess.manifest.values import (
    malformed_row,
    read_channel,
    read_name,
    read_seconds,
    read_value,
    read_words,
)


class Turn(NamedTuple):
    """One turn of a ChatML conversation. A part is text or a recording."""

    role: str
    parts: tuple[str | Recording, ...]

    @property
    def texts(self) -> list[str]:
        """Its parts that are text."""
        return [part for part in self.parts if isinstance(part, str)]

    @property
    def kinds(self) -> list[str]:
        """ "text" or "audio" for each part."""
        return ["text" if isinstance(part, str) else "audio" for part in self.parts]


@dataclass(frozen=True)
class Row:
    """One utterance. `references` are (audio, transcript or None); a row without any gets one drawn in training.

    turns: the conversation, system turn first, where it is kept as written. `references` are then its other audios,
    and `text` is "" where the row does not say which words are spoken. start_index: the first turn that is trained.
    """

    line: int
    audio: Recording
    text: str
    speaker: str | None = None
    language: str | None = None
    id: str | None = None
    references: tuple[tuple[Recording, str | None], ...] = ()
    system_text: str | None = None  # the row's own, where it replaces --system-text
    turns: tuple[Turn, ...] = ()
    start_index: int = 0

    @property
    def draws_reference(self) -> bool:
        """Whether its reference is drawn in training."""
        return not (self.references or self.turns)

    @property
    def has_audio_outside_assistant(self) -> bool:
        """Whether a turn of the user or the system has audio, which only a model with an audio tower receives."""
        return any("audio" in turn.kinds for turn in self.turns if turn.role != "assistant")

    @property
    def recordings(self) -> list[tuple[Recording, str | None]]:
        """(audio, its transcript or None) of the target, then of the references."""
        return [(self.audio, self.text), *self.references]


def row_from_columns(line: int, where: str, record: JsonObject, columns: Mapping[str, str]) -> Row:
    """The Row of a record of named values. Raises Rejected where the record can't be one."""
    audio = _read_recording(where, record, columns["audio"])
    text = read_words(where, record, columns["text"])
    speaker = read_name(where, record, columns["speaker"])
    language = read_name(where, record, columns["language"])
    reference = _read_recording(where, record, columns["reference_audio"])
    reference_text = read_value(where, record, columns["reference_text"])
    id_ = read_name(where, record, columns["id"])
    if audio is None or text is None:
        missing = [field for field, value in (("audio", audio), ("text", text)) if not value]
        raise _missing_fields(where, record, columns, missing)
    if reference_text and not reference:
        raise malformed_row(where, "reference_text without reference_audio", "both, or neither")
    start_sec, end_sec = _read_part(where, record, columns)
    channel = read_channel(where, record, columns["channel"])
    if (start_sec, end_sec, channel) != (None, None, None):
        audio = audio._replace(start_sec=start_sec, end_sec=end_sec, channel=channel)
    return Row(line, audio, text, speaker, language, id_, ((reference, reference_text),) if reference else ())


def _read_part(where: str, record: JsonObject, columns: Mapping[str, str]) -> tuple[float | None, float | None]:
    """(start, end) in seconds; a duration counts from the start where no end is given."""
    start_sec, end_sec = (read_seconds(where, record, field, columns[field]) for field in ("start", "end"))
    if start_sec is not None and end_sec is None and "duration" in columns:
        duration_sec = read_seconds(where, record, "duration", columns["duration"])
        end_sec = None if duration_sec is None else start_sec + duration_sec
    return check_part(where, start_sec, end_sec)


def check_part(where: str, start_sec: float | None, end_sec: float | None) -> tuple[float | None, float | None]:
    """The two times of a part. Raises Rejected for an end that does not come after the start."""
    if end_sec is not None and end_sec <= (start_sec or 0.0):
        raise malformed_row(where, f"start {start_sec} s, end {end_sec} s", "an end after the start")
    return start_sec, end_sec


def _missing_fields(where: str, record: JsonObject, columns: Mapping[str, str], missing: list[str]) -> Rejected:
    empty = [columns[field] for field in missing if columns[field] in record]
    if len(empty) == len(missing):
        found = f"nothing in the column {' and '.join(empty)}"
        expected = "a path in the audio column, words in the text column"
        return Rejected("failed", "missing_value", where, found, expected, "Fill in the row, or remove it.")
    found = f"no {' and '.join(missing)} among the columns {join_some(record) or '(none)'}"
    expected = f"the columns audio and text (all known ones: {', '.join(FIELDS)})"
    action = "Name these columns (--columns audio=...,text=...), or fill in the row."
    return Rejected("failed", "missing_column", where, found, expected, action)


def _read_recording(where: str, record: JsonObject, column: str) -> Recording | None:
    value = record.get(column)
    if isinstance(value, Recording):  # embedded in a Parquet file
        return value
    path = read_value(where, record, column)
    return Recording(path) if path else None
