"""Records of a JSON file: one object per line, an array of them, or an object that holds that array.

`{"data": [...]}`, however the list is called, is read as the list. A key that an object has twice costs its row:
which of the two values counts, nobody knows.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from preprocess.common.errors import InputError, Rejected
from preprocess.common.json_file import JsonObject
from preprocess.manifest.field_names import OTHER_NAMES
from preprocess.manifest.values import malformed_row

# An object with one of these is a row, whatever lists it has.
_KEYS_OF_ROWS = {"messages", "supervisions", "audio", "text", *OTHER_NAMES["audio"], *OTHER_NAMES["text"]}
_BLANKS = " \t\r\n"


class _Decoder(json.JSONDecoder):
    """Decodes JSON, and notes the keys that the objects since the last look have twice."""

    def __init__(self) -> None:
        super().__init__(object_pairs_hook=self._object)
        self._repeated: list[str] = []

    def _object(self, pairs: list[tuple[str, Any]]) -> JsonObject:
        record = dict(pairs)
        if len(record) < len(pairs):
            names = [name for name, _ in pairs]
            self._repeated += sorted({name for name in names if names.count(name) > 1})
        return record

    def checked(self, record: object) -> object:
        """The record that was decoded last; a Rejected where it has a key twice."""
        repeated, self._repeated = self._repeated, []
        if repeated:
            return malformed_row("", f"more than one value of {', '.join(repeated)}", "each key once")
        return record


def read_json(path: Path, data: bytes) -> Iterator[tuple[int, object]]:
    """(line where it starts, record) per row; a Rejected for a row that is no JSON or has a key twice.

    Raises InputError where what follows in an array can't be read, and for a table that is written by columns.
    """
    text = data.decode(errors="replace")
    first = _skip(text, 0)
    whole = _read_object(text, first)
    if text[first : first + 1] == "[":
        yield from _array(path, text, first)
    elif whole is None:
        yield from _lines(data)
    elif (start := _find_list(path, text, first, whole)) is not None:
        yield from _array(path, text, start)
    else:  # one row, which may stand on many lines
        decoder = _Decoder()
        yield 1 + text.count("\n", 0, first), decoder.checked(decoder.decode(text))


def _read_object(text: str, first: int) -> JsonObject | None:
    """The object that is the whole text; None where it is something else, as JSON lines are."""
    try:
        whole, end = json.JSONDecoder().raw_decode(text, first)
    except (ValueError, RecursionError):
        return None
    return whole if isinstance(whole, dict) and _skip(text, end) == len(text) else None


def _lines(data: bytes) -> Iterator[tuple[int, object]]:
    """One record per line that is not blank."""
    decoder = _Decoder()
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            yield number, decoder.checked(decoder.decode(line.decode(errors="replace")))
        except (ValueError, RecursionError) as error:
            found = f"{line[:60].decode(errors='replace')!r}, which is not JSON ({error})"
            expected, action = "one JSON object per line", "Correct the line, or remove it."
            yield number, Rejected("failed", "malformed_json", "", found, expected, action)


def _find_list(path: Path, text: str, first: int, whole: JsonObject) -> int | None:
    """Where the array of rows starts in the object `whole` around it; None for an object that is a row.

    Raises InputError for a table that is written by columns, for several lists of objects, and for a list that is
    there twice.
    """
    lists = [name for name, value in whole.items() if _is_list_of_objects(value)]
    known = sorted(whole.keys() & _KEYS_OF_ROWS)
    if len(known) > 1 and all(isinstance(value, list | dict) for value in whole.values()):
        action = "Write it by rows (pandas: to_json(..., orient='records', lines=True))."
        raise InputError(str(path), f"a table written by columns: {', '.join(known)}", "rows: objects", action)
    if known or not lists:
        return None
    starts = [start for name, start in _values(text, first) if name in lists]
    if len(starts) > 1:
        found = f"an object with {len(starts)} lists of objects, under {', '.join(lists)}"
        raise InputError(str(path), found, "one list of rows", "Write the rows to train on to a file of their own.")
    return starts[0]


def _is_list_of_objects(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(element, dict) for element in value)


def _values(text: str, start: int) -> Iterator[tuple[str, int]]:
    """(key, where its value starts) of the JSON object at `start`, also of a key that is there twice."""
    decoder, position = json.JSONDecoder(), start
    while text[position] != "}":
        key, position = decoder.raw_decode(text, _skip(text, position + 1))
        position = _skip(text, _skip(text, position) + 1)  # behind the colon
        yield key, position
        _, position = decoder.raw_decode(text, position)
        position = _skip(text, position)


def _skip(text: str, position: int, signs: str = _BLANKS) -> int:
    """The next position of another sign than these."""
    while position < len(text) and text[position] in signs:
        position += 1
    return position


def _array(path: Path, text: str, start: int) -> Iterator[tuple[int, object]]:
    """(line where it starts, element) per element of the JSON array at `start`.

    Raises InputError for an element that is no JSON, and for text behind an array that starts the file.
    """
    decoder, position = _Decoder(), start + 1
    line, counted = 1, 0
    while True:
        position = _skip(text, position, _BLANKS + ",")
        line, counted = line + text.count("\n", counted, position), position
        if text[position : position + 1] == "]":
            break
        try:
            record, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{path} line {line}",
                f"broken JSON ({error})",
                "an element of the array of rows",
                "Correct it: what follows in the array can't be read without it.",
            ) from error
        yield line, decoder.checked(record)
    behind = text[position + 1 :].strip()
    if behind and not text[:start].strip():
        found = f"{behind[:60]!r} behind the end of the array"
        action = "Write one object per line, or one array with all rows."
        raise InputError(f"{path} line {line}", found, "one array of rows", action)
