"""What a cell means: which ones say that there is nothing, names that are written as numbers, and seconds."""

import json
import math
import re
from collections.abc import Mapping

from preprocess.common.errors import InputError, Rejected
from preprocess.corpus.text import has_control_characters, normalise_name

# What pandas, R, SQL and JavaScript write for a value that is missing.
_NONE_WORDS = {"nan", "none", "null", "n/a", "#n/a", "<na>", "\\n", "undefined"}
# A whole number as pandas writes it where another row of the column had none.
_SIDES = {"left", "right", "l", "r", "a", "b", "both", "mono", "stereo"}
_WHOLE = re.compile(r"(-?\d+)\.0")


def malformed_row(where: str, found: str, expected: str = "one JSON object per row") -> Rejected:
    """The Rejected for a row whose values make no sense."""
    return Rejected("failed", "malformed_row", where, found, expected, "Correct the row, or remove it.")


def is_none_word(value: object) -> bool:
    """Whether a value is a word (or the number NaN) that stands for a missing one: "nan", "None", "null", "N/A"..."""
    if isinstance(value, float):
        return math.isnan(value)
    return isinstance(value, str) and value.strip().lower() in _NONE_WORDS


def is_missing(value: object) -> bool:
    """Whether a value says that there is none: null, nothing but blanks, or a word for it."""
    return value is None or (isinstance(value, str) and not value.strip()) or is_none_word(value)


def read_words(where: str, record: Mapping[str, object], column: str) -> str | None:
    """A transcript as it stands; None for a missing one. "nan" and "None" are text here: someone may say so.

    Raises Rejected for anything but a string.
    """
    value = record.get(column)
    return None if isinstance(value, float) and math.isnan(value) else _text(where, column, value)


def read_value(where: str, record: Mapping[str, object], column: str) -> str | None:
    """A path or another string; None for a missing one. Raises Rejected for anything but a string."""
    value = record.get(column)
    return None if is_missing(value) else _text(where, column, value)


def read_name(where: str, record: Mapping[str, object], column: str) -> str | None:
    """A speaker, an id or a language; None for a missing one. 7, 7.0 and "7" are one name.

    Raises Rejected for truth values, infinity, lists and objects, and control characters.
    """
    value = record.get(column)
    if is_missing(value):
        return None
    if isinstance(value, float) and math.isfinite(value):
        return str(int(value)) if value.is_integer() else repr(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    name = plain_name(where, column, _text(where, column, value))
    whole = _WHOLE.fullmatch(name or "")
    return whole[1] if whole else name


def plain_name(where: str, column: str, value: str | None) -> str | None:
    """A name or an id without what can't be seen ("Salma " becomes "Salma"); None for an empty one.

    Raises Rejected for control characters: which ones should have stood there, nobody knows.
    """
    if value and has_control_characters(value):
        raise malformed_row(where, f"{column} = {value!r:.80}, with control characters", f"{column} as it is written")
    return normalise_name(value or "") or None


def parse_speaker(text: str | None) -> str | None:
    """--speaker as the names of rows are read. Raises InputError for what would be no name in a row."""
    try:
        name = read_name("--speaker", {"speaker": text}, "speaker")
    except Rejected as rejected:
        raise InputError("--speaker", repr(text), "a name", "Name the voice, as in --speaker salma.") from rejected
    if text is not None and name is None:
        raise InputError("--speaker", repr(text), "a name", "Name the voice, as in --speaker salma.")
    return name


def read_seconds(where: str, record: Mapping[str, object], field: str, column: str) -> float | None:
    """Seconds, 0 or more; None for a missing value. Raises Rejected for anything else."""
    value = record.get(column)
    if is_missing(value):
        return None
    try:
        seconds = -1.0 if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        seconds = -1.0
    if not 0 <= seconds < math.inf:
        raise malformed_row(where, f"{column} = {value!r}", f"{field} in seconds, 0 or more")
    return seconds


def is_channel(value: object) -> bool:
    """Whether a value says which channel is meant: by a number, or by a word for a side, which is refused."""
    if isinstance(value, str):
        return value.strip().lower() in _SIDES or bool(re.fullmatch(r"\s*-?[\d.]+\s*", value))
    return isinstance(value, int | float)


def read_channel(where: str, record: Mapping[str, object], column: str) -> int | None:
    """The channel that is used, from 0; None for a missing value, and for words: a column may name a TV channel.

    Raises Rejected for a number that can't be one, a truth value or a list.
    """
    value = record.get(column)
    if is_missing(value) or (isinstance(value, str) and not is_channel(value)):
        return None
    name = str(value).strip().removesuffix(".0")
    if not name.isdecimal():
        raise malformed_row(where, f"{column} = {json.dumps(value, default=str)[:60]}", "a channel's number, from 0")
    return int(name)


def _text(where: str, column: str, value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise malformed_row(where, f"{column} = {json.dumps(value, default=str)[:60]}", f"{column} as a string")
