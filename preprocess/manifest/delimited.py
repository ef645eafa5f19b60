"""Records of a CSV or TSV file. Each of its lines is in a row, or refused by its number, or blank, or the header.

A field in quotes may hold separators, and may go on over several lines. Where a quote is never closed, such a field
swallows the rows behind it. So a field with a separator in a line after its first is not believed: the line in which
it begins is refused, and reading goes on with the next one.
"""

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from preprocess.common.errors import InputError, Rejected
from preprocess.common.json_file import JsonObject
from preprocess.manifest.text_file import manifest_suffix, read_text_bytes
from preprocess.manifest.values import malformed_row

_SEPARATORS = ",;\t"
# Excel's first line, which names the separator: sep=;
_SEP_LINE = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)
_QUOTED = '"[^"]*(?:""[^"]*)*'  # without its closing quote
# A quote behind a backslash, as MySQL and Spark write it; the backslash itself is not behind one.
_ESCAPED_QUOTE = re.compile(r'(?<!\\)((?:\\\\)*)\\"')
_MOST_LINES = 1000  # of one field in quotes
_CLOSED, _OPEN, _MISPLACED = "closed", "open", "misplaced"

# (line, record or why it has none, number of lines that it takes)
_Counted = tuple[int, JsonObject | Rejected, int]


@dataclass(frozen=True)
class Table:
    """A text as a table: its lines with their ends, what stands between columns, and the header.

    first_row: the position of the first line after the header.
    """

    lines: list[str]
    separator: str
    columns: list[str]
    first_row: int


def read_delimited(path: Path) -> Iterator[tuple[int, JsonObject | Rejected]]:
    """(line where it starts, {column: value}) per row that is not blank; a Rejected for a row that can't be read.

    Raises InputError for a header with a single column or with a name twice.
    """
    for line, record, _ in _read_counted(_read_text(path), path):
        yield line, record


def find_separator(path: Path) -> str:
    """The sign between columns: a tab in .tsv; in .csv what the line `sep=` or else the header has most often."""
    lines = _split_lines(_read_text(path))
    return _find_separator(path, next((line for line in lines if line.strip()), ""))


def _find_separator(path: Path, header: str) -> str:
    if manifest_suffix(path) == ".tsv":
        return "\t"
    if named := _SEP_LINE.fullmatch(header):
        return named[1]
    outside_quotes = re.sub(_QUOTED + '"', "", header)
    return max(_SEPARATORS, key=outside_quotes.count)  # the first of equals


def _read_text(path: Path) -> str:
    return read_text_bytes(path).decode(errors="replace")


def _split_lines(text: str) -> list[str]:
    """Lines with their ends: \\n, or \\r\\n; \\r alone ends a line only where no line ends otherwise."""
    sign = "\n" if "\n" in text else "\r"
    lines = [line + sign for line in text.split(sign)]
    last = lines.pop().removesuffix(sign)
    return [*lines, last] if last else lines


def _read_counted(text: str, path: Path) -> list[_Counted]:
    """All rows, in the way of writing quotes in quotes ("" or \\") that leaves fewer of them unread."""
    rows = _count_lines(text, path)
    if '\\"' in text:
        by_backslash = _count_lines(_ESCAPED_QUOTE.sub(r'\1""', text), path)
        if _num_rejected(by_backslash) < _num_rejected(rows):
            return by_backslash
    return rows


def _num_rejected(rows: list[_Counted]) -> int:
    return sum(isinstance(record, Rejected) for _, record, _ in rows)


def _count_lines(text: str, path: Path) -> list[_Counted]:
    table = _open_table(text, path)
    if table is None:
        return []
    rows, position, num_blank = [], table.first_row, 0
    while position < len(table.lines):
        if not table.lines[position].strip(table.separator + " \t\r\n"):
            position, num_blank = position + 1, num_blank + 1
            continue
        record, num_lines = _read_row(table, position)
        rows.append((position + 1, record, num_lines))
        position += num_lines
    counted = table.first_row + num_blank + sum(num_lines for _, _, num_lines in rows)
    assert counted == len(table.lines), f"{path}: {counted} lines of {len(table.lines)}"
    return rows


def _open_table(text: str, path: Path) -> Table | None:
    """The table; None for a text without a line."""
    lines = _split_lines(text)
    first = next((number for number, line in enumerate(lines) if line.strip()), None)
    if first is None:
        return None
    separator = _find_separator(path, lines[first])
    if manifest_suffix(path) != ".tsv" and _SEP_LINE.fullmatch(lines[first]):
        first += 1
    names, num_lines = _read_values(lines, first, separator) if first < len(lines) else ([], 0)
    where = f"{path} line {first + 1}"
    if isinstance(names, Rejected):
        raise InputError(where, names.found, names.expected, names.action)
    return Table(lines, separator, _check_columns(where, [name.strip() for name in names]), first + num_lines)


def _check_columns(where: str, names: list[str]) -> list[str]:
    """The names. Raises InputError for a single column and for a repeated name; several may have no name."""
    if len(names) == 1:
        raise InputError(
            where,
            f"a single column, {names[0]!r:.80}",
            "column names, separated by , or ; or tabs in .csv and by tabs in .tsv",
            "Write audio,text,speaker into the first line, or correct the file's extension.",
        )
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise InputError(where, f"more than one column {', '.join(twice)}", "each name once", "Rename all but one.")
    return names


def _read_row(table: Table, position: int) -> tuple[JsonObject | Rejected, int]:
    """The record that begins in a line, and the number of lines that it takes."""
    values, num_lines = _read_values(table.lines, position, table.separator, len(table.columns))
    if isinstance(values, Rejected):
        return values, num_lines
    num_columns = len(table.columns)
    if any(value.strip() for value in values[num_columns:]):
        found = f"{len(values) - num_columns} more values than there are columns"
        return malformed_row("", found, "one value per column"), num_lines
    return dict(zip_longest(table.columns, values[:num_columns])), num_lines


def _read_values(
    lines: list[str], position: int, separator: str, num_columns: int | None = None
) -> tuple[list[str] | Rejected, int]:
    """The values of the row that begins in a line, and the number of lines that they take.

    In TSV a quote may be a sign of the text: there the line counts as it is, where its quotes make no sense.
    """
    line = lines[position].rstrip("\r\n")
    plain = line.split(separator)
    if (len(line) - len(line.rstrip("\\"))) % 2:
        return malformed_row("", "a backslash at the end of the line", "a row that ends with its line"), 1
    if '"' not in line:
        return plain, 1
    values, state = _split_quoted(line, separator)
    is_tsv = separator == "\t"
    if state == _CLOSED and not (is_tsv and len(values) != num_columns == len(plain)):
        return values, 1
    if is_tsv and state != _OPEN:
        return plain, 1
    if state == _MISPLACED:
        found = f"a quote out of place: {line[:60]!r}"
        return malformed_row("", found, 'fields in quotes, with "" for a quote in one'), 1
    values, num_lines = _join_lines(lines, position, separator)
    swallows = any(separator in rest for value in values for rest in re.split("[\r\n]", value)[1:])
    if values and not swallows and not (is_tsv and len(values) != num_columns):
        return values, num_lines
    each_is_a_row = all(line.count(separator) == len(plain) - 1 for line in lines[position : position + num_lines])
    if is_tsv and len(plain) == num_columns and each_is_a_row:
        return plain, 1
    found = f"a quote that is never closed, or only behind other rows: {line[:60]!r}"
    return malformed_row("", found, "fields in quotes that end before the next row"), 1


def _join_lines(lines: list[str], position: int, separator: str) -> tuple[list[str], int]:
    """(values, number of lines) of a row whose last field goes on after its line; ([], 1) where it never ends."""
    text = lines[position]
    for num_lines, line in enumerate(lines[position + 1 : position + _MOST_LINES], start=2):
        text += line
        if '"' in line:
            values, state = _split_quoted(text.rstrip("\r\n"), separator)
            if state != _OPEN:
                return (values, num_lines) if state == _CLOSED else ([], 1)
    return [], 1


@functools.cache
def _quoted_field(separator: str) -> re.Pattern[str]:
    """A field in quotes and its closing quote, if it has one before the text ends."""
    return re.compile(f' *({_QUOTED})(" *(?={re.escape(separator)}|\\Z)|\\Z)')


def _split_quoted(text: str, separator: str) -> tuple[list[str], str]:
    """(values of a row with quotes, state): closed; open, as its last field does not end; or misplaced quotes."""
    quoted, values, start = _quoted_field(separator), [], 0
    while True:
        if match := quoted.match(text, start):
            values.append(match[1][1:].replace('""', '"'))
            if not match[2]:
                return values, _OPEN
            end = match.end()
        else:
            end = text.find(separator, start)
            end = len(text) if end < 0 else end
            value = text[start:end]
            if value.lstrip(" ").startswith('"') or (value.rstrip().endswith('"') and value.count('"') % 2):
                return values, _MISPLACED
            values.append(value)
        if end == len(text):
            return values, _CLOSED
        start = end + 1
