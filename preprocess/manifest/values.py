"""What a cell of a manifest means: a name, a time, a channel, or nothing."""

import math
import re

from preprocess.common.errors import Rejected
from preprocess.corpus.text import has_control_characters, normalise_name

# What programs write where there is no value; in lower case, but for NA of R: Na is a name.
_NOTHING = {"nan", "none", "null", "n/a", "#n/a", "<na>", "nat", "\\n", "undefined"}
_WHOLE_NUMBER = re.compile(r"(-?\d+)\.0+")


def malformed_row(where: str, found: str, expected: str = "one JSON object per row") -> Rejected:
    """The Rejected for a row whose values make no sense."""
    return Rejected("failed", "malformed_row", where, found, expected, "Correct the row, or remove it.")


def is_word_for_nothing(value: object) -> bool:
    """Whether a cell says in a word that it has no value: nan, None, NULL... An empty cell says it without one."""
    if isinstance(value, str):
        word = value.strip()
        return word.lower() in _NOTHING or word == "NA"
    return isinstance(value, float) and math.isnan(value)


def is_nothing(value: object) -> bool:
    """Whether a cell has no value."""
    return value is None or is_word_for_nothing(value) or (isinstance(value, str) and not value.strip())


def name_of(where: str, column: str, value: object) -> str | None:
    """A speaker's name, a language or an id as all spellings of it: 7, 7.0 and "7" are one, as are "Salma " and
    "Salma". None for a cell without a value.

    Raises Rejected for what is no name, and for control characters: nobody knows which signs should stand there.
    """
    if is_nothing(value):
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float) or value in (math.inf, -math.inf):
        raise malformed_row(where, f"{column} = {value!r:.60}", f"{column} as a string or a number")
    name = str(value)
    if has_control_characters(name):
        found = f"{column} = {name!r:.80}, with control characters"
        raise malformed_row(where, found, f"{column} as it is written")
    name = normalise_name(name)
    whole = _WHOLE_NUMBER.fullmatch(name)
    return (whole[1] if whole else name) or None


def seconds_of(where: str, column: str, value: object) -> float | None:
    """A time in seconds, 0 or more; None for a cell without a value. Raises Rejected for anything else."""
    number = _number_of(value)
    if number is None:
        return None
    if not 0 <= number < math.inf:
        raise malformed_row(where, f"{column} = {value!r:.60}", f"{column} in seconds, 0 or more")
    return number


def channel_of(where: str, column: str, value: object) -> int | None:
    """The number of a channel, from 0; None for a cell without a value. Raises Rejected for anything else."""
    number = _number_of(value)
    if number is None:
        return None
    if not (number >= 0 and number.is_integer()):
        raise malformed_row(where, f"{column} = {value!r:.60}", f"{column} as a number from 0")
    return int(number)


def _number_of(value: object) -> float | None:
    """The number; None for nothing, and -1 for what is no number."""
    if is_nothing(value):
        return None
    try:
        return -1.0 if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return -1.0
