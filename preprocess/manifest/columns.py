"""The columns dialect: which column holds which field, and how a record of named values becomes a Row.

The fields are called `audio`, `text` and so on. --columns names the columns of a corpus that calls them otherwise;
names that well-known corpora use (Common Voice, Hugging Face, VCTK) need no flag.
"""

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from preprocess.audio.recording import Recording
from preprocess.common.errors import InputError, Rejected, join_some
from preprocess.common.json_file import JsonObject
from preprocess.corpus.text import has_control_characters, normalise_name

FIELDS = ("audio", "text", "speaker", "language", "reference_audio", "reference_text", "id", "start", "end")
OTHER_NAMES = {
    "audio": ("path", "file_name", "file"),
    "text": ("sentence", "transcription", "transcript", "normalized_text"),
    "speaker": ("client_id", "speaker_id"),
    "language": ("locale", "lang"),
}


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


def parse_columns(text: str) -> dict[str, str]:
    """--columns as {field: column}. Raises InputError for anything but FIELD=COLUMN,FIELD=COLUMN."""
    pairs = [pair.partition("=") for pair in text.split(",") if pair.strip()]
    columns = {field.strip(): column.strip() for field, _, column in pairs}
    if len(columns) < len(pairs) or not all(columns.values()) or not columns.keys() <= set(FIELDS):
        raise InputError(
            "--columns",
            repr(text),
            f"FIELD=COLUMN,... with each FIELD once, of {', '.join(FIELDS)}",
            "For Common Voice: --columns audio=path,text=sentence,speaker=client_id,language=locale",
        )
    return columns


@functools.cache
def map_columns(names: tuple[str, ...], chosen: tuple[tuple[str, str], ...]) -> Mapping[str, str]:
    """{field: column} for a record with the columns `names`.

    A field's column is the chosen one, else the one with the field's name, else the one of OTHER_NAMES that is there.
    Raises InputError where two of OTHER_NAMES are there.
    """
    columns = dict(chosen)
    for field in FIELDS:
        others = [name for name in OTHER_NAMES.get(field, ()) if name in names and name not in columns.values()]
        if field in columns or field in names or not others:
            columns.setdefault(field, field)
        elif len(others) == 1:
            columns[field] = others[0]
        else:
            raise InputError(
                f"columns {join_some(names)}",
                f"{len(others)} that may be the {field}: {', '.join(others)}",
                f"one that is the {field}",
                f"Choose, for example --columns {field}={others[0]}",
            )
    return columns


def row_from_columns(line: int, where: str, record: JsonObject, columns: Mapping[str, str]) -> Row:
    """The Row of a record of named values. Raises Rejected where the record can't be one."""
    audio = _read_recording(where, record, columns["audio"])
    text = _read_text(where, record, columns["text"])
    speaker = _read_name(where, record, columns["speaker"])
    language = plain_name(where, columns["language"], _read_text(where, record, columns["language"]))
    reference = _read_recording(where, record, columns["reference_audio"])
    reference_text = _read_text(where, record, columns["reference_text"]) or None
    id_ = _read_name(where, record, columns["id"])
    if audio is None or text is None:
        missing = [field for field, value in (("audio", audio), ("text", text)) if not value]
        raise _missing_fields(where, record, columns, missing)
    if reference_text and not reference:
        raise malformed_row(where, "reference_text without reference_audio", "both, or neither")
    start_sec, end_sec = (_read_seconds(where, record, field, columns[field]) for field in ("start", "end"))
    if (start_sec is not None or end_sec is not None) and not (start_sec or 0.0) < (end_sec or math.inf):
        raise malformed_row(where, f"start {start_sec} s, end {end_sec} s", "an end after the start")
    audio = audio._replace(start_sec=start_sec, end_sec=end_sec)
    return Row(line, audio, text, speaker, language, id_, ((reference, reference_text),) if reference else ())


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
    return Recording(path) if path else None


def _read_name(where: str, record: JsonObject, column: str) -> str | None:
    """A speaker's name or an id, which may be written as a number."""
    value = record.get(column)
    name = str(value) if isinstance(value, int | float) else _read_text(where, record, column)
    return plain_name(where, column, name)


def _read_text(where: str, record: JsonObject, column: str) -> str | None:
    value = record.get(column)
    if value is None or isinstance(value, str):
        return value
    raise malformed_row(where, f"{column} = {json.dumps(value, default=str)[:60]}", f"{column} as a string")


def plain_name(where: str, column: str, value: str | None) -> str | None:
    """A name or an id without what can't be seen ("Salma " becomes "Salma"); None for an empty one.

    Raises Rejected for control characters: which ones should have stood there, nobody knows.
    """
    if value and has_control_characters(value):
        raise malformed_row(where, f"{column} = {value!r:.80}, with control characters", f"{column} as it is written")
    return normalise_name(value or "") or None


def _read_seconds(where: str, record: JsonObject, field: str, column: str) -> float | None:
    value = record.get(column)
    if value is None or value == "":
        return None
    try:
        seconds = float(value)
    except (TypeError, ValueError, OverflowError):
        seconds = -1.0
    if not 0 <= seconds < math.inf:
        raise malformed_row(where, f"{column} = {value!r}", f"{field} in seconds, 0 or more")
    return seconds


def malformed_row(where: str, found: str, expected: str = "one JSON object per row") -> Rejected:
    """The Rejected for a row whose values make no sense."""
    return Rejected("failed", "malformed_row", where, found, expected, "Correct the row, or remove it.")
