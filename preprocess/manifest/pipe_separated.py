"""Files with `|` between columns: LJSpeech, piper, XTTS, F5, VITS, GPT-SoVITS, with or without a header.

pipe_columns.py says what the columns of a file without a header hold. A `|` inside a text makes the number of fields
wrong: its line is refused.
"""

import csv
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from preprocess.common.errors import InputError, Rejected
from preprocess.common.json_file import JsonObject
from preprocess.manifest.audio_places import at_place, find_place
from preprocess.manifest.field_names import map_columns
from preprocess.manifest.pipe_columns import Layout, find_layout
from preprocess.manifest.text_file import manifest_suffix, read_text_bytes
from preprocess.manifest.values import malformed_row

SUFFIXES = (".csv", ".txt", ".list", ".lst")


class _Line(NamedTuple):
    number: int
    fields: list[str]
    text: str


class PipedFile(NamedTuple):
    """A file as understood: `dialect` as it is printed, {field: column} of its records, and the records."""

    dialect: str
    columns: Mapping[str, str]
    records: Iterator[tuple[int, JsonObject | Rejected]]
    has_speakers: bool


def is_piped(path: Path) -> bool:
    """Whether a text file has `|` in its first line that is not blank."""
    if manifest_suffix(path) not in SUFFIXES:
        return False
    return "|" in next((line for line in _text_lines(path) if line.strip()), "")


def read_piped(path: Path, root: Path, chosen: Mapping[str, str]) -> PipedFile:
    """Read a file with `|`; recordings are looked for under `root`. chosen: {field: column} of --columns.

    Raises InputError where its columns can be understood in two ways, or not at all.
    """
    lines = [_Line(n, text.split("|"), text) for n, text in enumerate(_text_lines(path), 1) if text.strip()]
    names = [name.strip() for name in _unquote(lines[0], len(lines[0].fields))]
    if any(column.isdecimal() for column in chosen.values()):
        num_fields = _usual_number(lines)
        names = [str(number) for number in range(1, 1 + num_fields)]
        return _with_names(root, _unquoted(lines, num_fields), names, chosen)
    if _is_header(names, chosen):
        return _with_names(root, _unquoted(lines[1:], len(names)), names, chosen)
    return _by_content(path, root, _unquoted(lines, _usual_number(lines)))


def _text_lines(path: Path) -> list[str]:
    return [line.rstrip("\r") for line in read_text_bytes(path).decode(errors="replace").split("\n")]


def _unquoted(lines: list[_Line], num_fields: int) -> list[_Line]:
    """The lines, their fields without the quotes that a CSV writer puts round a quote or a `|`.

    Quotes that are part of the text stay: nothing is doubled in them, they hold no `|`, and other fields have none.
    """
    return [line._replace(fields=_unquote(line, num_fields)) for line in lines]


def _unquote(line: _Line, num_fields: int) -> list[str]:
    in_quotes = all(len(field) > 1 and field[0] == field[-1] == '"' for field in line.fields)
    if '"' not in line.text or (len(line.fields) == num_fields and '""' not in line.text and not in_quotes):
        return line.fields
    try:
        (fields,) = csv.reader([line.text], delimiter="|", strict=True)
    except (csv.Error, ValueError):
        return line.fields
    return fields if len(fields) == num_fields else line.fields


def _usual_number(lines: list[_Line]) -> int:
    """How many fields most lines have; the first of equals."""
    return Counter(len(line.fields) for line in lines).most_common(1)[0][0]


def _is_header(names: list[str], chosen: Mapping[str, str]) -> bool:
    """Whether a line names a text, and a recording or its id."""
    if len(set(names)) < len(names):
        return False
    columns = map_columns(tuple(names), tuple(chosen.items()))
    return columns["text"] in names and bool({columns["audio"], columns["id"]} & set(names))


def _with_names(root: Path, lines: list[_Line], names: list[str], chosen: Mapping[str, str]) -> PipedFile:
    """A file whose columns have names. The ids name the recordings where no other column does."""
    columns = map_columns(tuple(names), tuple(chosen.items()))
    named_by = columns["audio"] if columns["audio"] in names else columns["id"]
    audio = names.index(named_by) if named_by in names else None
    ours = {} if named_by == columns["audio"] else {"audio": "audio"}
    place = None if audio is None else find_place(root, [fields[audio] for fields in _whole(lines, len(names))])

    def record(fields: list[str]) -> JsonObject:
        values: JsonObject = dict(zip(names, fields, strict=True))
        if audio is not None and fields[audio].strip():
            values["audio" if ours else named_by] = at_place(place or "{}", fields[audio])
        return values

    records = _records(lines, "|".join(names), len(names), record)
    return PipedFile("columns separated by |", ours, records, columns["speaker"] in names)


def _by_content(path: Path, root: Path, lines: list[_Line]) -> PipedFile:
    num_fields = _usual_number(lines)
    if num_fields < 2:
        raise InputError(str(path), "mostly lines without `|`", "one `|` or more per line", "Correct the lines.")
    layout = find_layout(path, root, _whole(lines, num_fields))
    if layout.is_ljspeech:
        return PipedFile("LJSpeech", {"text": "normalized_text"}, _ljspeech(lines, layout), has_speakers=False)

    def record(fields: list[str]) -> JsonObject:
        values: JsonObject = {role: value for role, value in zip(layout.roles, fields, strict=True) if role}
        name = values["audio"] if "audio" in values else values["id"]
        return values | {"audio": at_place(layout.place, name) if name.strip() else ""}

    described = "|".join(role or "nothing" for role in layout.roles)
    columns = {"text": "normalized_text"} if "normalized_text" in layout.roles else {}
    records = _records(lines, described, num_fields, record)
    return PipedFile(described, columns, records, "speaker" in layout.roles)


def _ljspeech(lines: list[_Line], layout: Layout) -> Iterator[tuple[int, JsonObject | Rejected]]:
    """Rows of id|text|normalised text; where a row, or all of them, have one text, it is both."""

    def record(fields: list[str]) -> JsonObject:
        audio = at_place(layout.place, fields[0]) if fields[0].strip() else ""
        return {"audio": audio, "id": fields[0], "text": fields[1], "normalized_text": fields[-1]}

    expected = "id|text or id|text|normalised text"
    short = [line for line in lines if len(line.fields) == 2 < len(layout.roles)]
    long = [line for line in lines if line not in short]
    found = [*_records(long, expected, len(layout.roles), record), *_records(short, expected, 2, record)]
    return iter(sorted(found, key=lambda numbered: numbered[0]))


def _records(
    lines: list[_Line], expected: str, num_fields: int, record: Callable[[list[str]], JsonObject]
) -> Iterator[tuple[int, JsonObject | Rejected]]:
    strays = _with_stray_sign(lines)
    for line in lines:
        if len(line.fields) != num_fields or line.number in strays:
            found = f"{len(line.fields)} fields in {line.text!r:.70}"
            yield line.number, malformed_row("", found, f"{expected}, without a | inside a text")
        else:
            yield line.number, record(line.fields)


def _whole(lines: list[_Line], num_fields: int) -> list[list[str]]:
    """The fields of the lines that have so many, and no `|` that seems part of a text."""
    strays = _with_stray_sign(lines)
    return [line.fields for line in lines if len(line.fields) == num_fields and line.number not in strays]


def _with_stray_sign(lines: list[_Line]) -> set[int]:
    """Numbers of the lines in which a `|` stands between blanks, where most lines have none like that."""
    between = {
        line.number for line in lines if any(a.endswith(" ") and b.startswith(" ") for a, b in pairwise(line.fields))
    }
    return between if 2 * len(between) <= len(lines) else set()
