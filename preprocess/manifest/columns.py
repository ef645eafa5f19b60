"""The dialect of columns: which column is what, and one record of named values -> one Row.

`audio` and `text` are what the product calls them; a corpus that has other names says so with --columns, and a few
names that well-known corpora use (Common Voice, Hugging Face, VCTK) are taken for what they are there.
"""

import functools
import json
import math
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from preprocess.audio.recording import Recording
from preprocess.common.errors import InputError, Rejected

FIELDS = ("audio", "text", "speaker", "language", "reference_audio", "reference_text", "id", "start", "end")
OTHER_NAMES = {
    "audio": ("path", "file_name", "file"),
    "text": ("sentence", "transcription", "transcript", "normalized_text"),
    "speaker": ("client_id", "speaker_id"),
    "language": ("locale", "lang"),
}


Part = tuple[str, str | Recording]  # ("text", words) or ("audio", recording)
Turn = tuple[str, tuple[Part, ...]]  # of a role


@dataclass(frozen=True)
class Row:
    """One utterance. `references` are (audio, transcript or None); with none of them, one is drawn in training.

    turns: the conversation, where it is kept as written, with its system turn first; `references` are its other
    audios then, and `text` is "" where the row does not say which words are spoken. start_index: the first turn that
    is trained.
    """

    line: int
    audio: Recording
    text: str
    speaker: str | None = None
    language: str | None = None
    id: str | None = None
    references: tuple[tuple[Recording, str | None], ...] = ()
    system_text: str | None = None  # of its own, where that counts
    turns: tuple[Turn, ...] = ()
    start_index: int = 0

    @property
    def has_audio_outside_assistant(self) -> bool:
        """Whether a turn that is not the assistant's has audio: a base without an audio tower hears none of it."""
        return any(kind == "audio" for role, parts in self.turns if role != "assistant" for kind, _ in parts)

    @property
    def recordings(self) -> list[tuple[Recording, str | None]]:
        """(audio, what is said in it) of all it names, the target first."""
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
    """{field: column} for a record with the columns `names`: those chosen, else of that name, else a known one.

    Raises InputError where two columns could be the field and neither bears its name.
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
                f"columns {join_some(map(str, names))}",
                f"{len(others)} that may be the {field}: {', '.join(others)}",
                f"one that is the {field}",
                f"Say which, for example --columns {field}={others[0]}",
            )
    return columns


def from_columns(line: int, where: str, record: dict, columns: Mapping[str, str]) -> Row:
    """The Row that a record of named values is. Raises Rejected where it is none."""
    if None in record:
        raise malformed(where, f"{len(record[None])} more values than there are columns", "one value a column")
    values = {field: _text_of(where, record, field, columns[field]) for field in FIELDS[:7]}
    if not values["audio"] or values["text"] is None:
        missing = [field for field in ("audio", "text") if not values[field]]
        empty = [columns[field] for field in missing if columns[field] in record]
        if len(empty) == len(missing):
            found = f"nothing in the column {' and '.join(empty)}"
            expected = "a path in the column of audio, words in that of text"
            raise Rejected("failed", "missing_value", where, found, expected, "Fill in the row, or remove it.")
        raise Rejected(
            "failed",
            "missing_column",
            where,
            f"no {' and '.join(missing)} among the columns {join_some(map(str, record)) or '(none)'}",
            f"the columns audio and text (all known ones: {', '.join(FIELDS)})",
            "Say which columns they are (--columns audio=...,text=...), or fill in the row.",
        )
    if values["reference_text"] and not values["reference_audio"]:
        raise malformed(where, "reference_text without reference_audio", "both, or neither")
    start_sec, end_sec = (_seconds_of(where, record, field, columns[field]) for field in ("start", "end"))
    if (start_sec is not None or end_sec is not None) and not (start_sec or 0.0) < (end_sec or math.inf):
        raise malformed(where, f"start {start_sec} s, end {end_sec} s", "an end after the start")
    audio = values.pop("audio")._replace(start_sec=start_sec, end_sec=end_sec)
    reference = values.pop("reference_audio"), values.pop("reference_text")
    return Row(line, audio, references=(reference,) if reference[0] else (), **values)


def _text_of(where: str, record: dict, field: str, column: str) -> str | Recording | None:
    value = record.get(column)
    if isinstance(value, int | float) and field in ("speaker", "id"):
        value = str(value)
    if isinstance(value, Recording):
        return value
    if value is not None and not isinstance(value, str):
        raise malformed(where, f"{column} = {json.dumps(value, default=str)[:60]}", f"{column} as a string")
    if field in ("audio", "reference_audio"):
        return Recording(value) if value else None
    if field in ("text", "reference_text"):
        return value if field == "text" else value or None
    return plain_name(value)


def plain_name(value: str | None) -> str | None:
    """A speaker's or language's name, or an id, in one spelling: "Salma " is "Salma". None for no name."""
    return " ".join(unicodedata.normalize("NFC", value or "").split()) or None


def _seconds_of(where: str, record: dict, field: str, column: str) -> float | None:
    value = record.get(column)
    if value is None or value == "":
        return None
    try:
        seconds = float(value)
    except (TypeError, ValueError, OverflowError):
        seconds = -1.0
    if not 0 <= seconds < math.inf:
        raise malformed(where, f"{column} = {value!r}", f"{field} in seconds, 0 or more")
    return seconds


def join_some(names: Iterable[str], most: int = 40) -> str:
    """Names in a row; of very many the first ones and how many more: a message is to be read."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def malformed(where: str, found: str, expected: str = "one JSON object a row") -> Rejected:
    """A row that says what no row can say."""
    return Rejected("failed", "malformed_row", where, found, expected, "Correct the row, or remove it.")
