"""The columns dialect: a record of named values becomes a Row. column_names.py says which column is which field."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from preprocess.audio.recording import Recording
from preprocess.common.errors import Rejected, join_some
from preprocess.common.json_file import JsonObject
from preprocess.manifest.column_names import FIELDS
from preprocess.manifest.values import channel_of, is_nothing, is_word_for_nothing, malformed_row, name_of, seconds_of

# Fields in which a word for nothing (nan, None) is read as nothing. In a text it may be what was said.
_MAY_BE_NOTHING = ("speaker", "language", "reference_audio", "reference_text", "id", "start", "end", "channel")


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
    num_marks: texts of ChatML from which the marks of an audio came off.
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
    num_marks: int = 0

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
    text = _read_text(where, record, columns["text"])
    reference = _read_recording(where, record, columns["reference_audio"])
    reference_text = _read_text(where, record, columns["reference_text"])
    if is_nothing(reference_text):
        reference_text = None
    if audio is None or text is None:
        missing = [field for field, value in (("audio", audio), ("text", text)) if not value]
        raise _missing_fields(where, record, columns, missing)
    if reference_text and not reference:
        raise malformed_row(where, "reference_text without reference_audio", "both, or neither")
    return Row(
        line,
        _cut(where, record, columns, audio),
        text,
        name_of(where, columns["speaker"], record.get(columns["speaker"])),
        name_of(where, columns["language"], record.get(columns["language"])),
        name_of(where, columns["id"], record.get(columns["id"])),
        ((reference, reference_text),) if reference else (),
    )


def words_for_nothing(record: JsonObject, columns: Mapping[str, str]) -> list[str]:
    """The fields of a record in which a word such as nan was read as nothing."""
    return [field for field in _MAY_BE_NOTHING if is_word_for_nothing(record.get(columns[field]))]


def unused_columns(record: JsonObject, columns: Mapping[str, str]) -> list[str]:
    """The columns of a record that no field is read from. A duration without a start is none."""
    has_start = not is_nothing(record.get(columns["start"]))
    used = {column for field, column in columns.items() if field != "duration" or has_start}
    return [name for name in record if name not in used]


def _cut(where: str, record: JsonObject, columns: Mapping[str, str], audio: Recording) -> Recording:
    """The part and the channel of the file that the record names.

    `duration` beside a start says where the part ends; alone it only describes the file.
    """
    start_sec, end_sec, duration_sec = (
        seconds_of(where, columns[field], record.get(columns[field])) for field in ("start", "end", "duration")
    )
    if start_sec is not None and end_sec is None and duration_sec is not None:
        end_sec = start_sec + duration_sec
    if end_sec is not None and end_sec <= (start_sec or 0.0):
        raise malformed_row(where, f"start {start_sec} s, end {end_sec} s", "an end after the start")
    if end_sec is None:
        start_sec = start_sec or None  # a part that is all of the file
    channel = channel_of(where, columns["channel"], record.get(columns["channel"]))
    return audio._replace(start_sec=start_sec, end_sec=end_sec, channel=channel)


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
    path = _read_text(where, record, column)
    return None if path is None or is_nothing(path) else Recording(path)


def _read_text(where: str, record: JsonObject, column: str) -> str | None:
    value = record.get(column)
    if value is None or isinstance(value, str):
        return value
    if is_nothing(value):
        return None
    raise malformed_row(where, f"{column} = {json.dumps(value, default=str)[:60]}", f"{column} as a string")
