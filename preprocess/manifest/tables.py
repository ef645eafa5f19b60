"""Files of records: JSONL, JSON, CSV, TSV and Parquet as (line, record) pairs, whatever the records say."""

import codecs
import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from preprocess.audio.recording import Recording
from preprocess.common.errors import InputError, Rejected
from preprocess.manifest.columns import malformed

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")


def read_records(path: Path) -> Iterator[tuple[int, object]]:
    """(line or row number from 1, record or why it can't be read) of each row."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        yield from _parquet_records(path)
    elif suffix in (".csv", ".tsv"):
        yield from _csv_records(path, suffix)
    else:
        data = _read_utf8(path).removeprefix(b"\xef\xbb\xbf")
        if data.lstrip()[:1] == b"[":
            yield from _json_array(path, data.decode(errors="replace"))
        else:
            yield from _json_lines(data)


def _read_utf8(path: Path) -> bytes:
    """The bytes of a text file. Raises InputError for UTF-16; other bytes that are no UTF-8 cost their rows."""
    data = path.read_bytes()
    if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        raise InputError(str(path), "text in UTF-16", "UTF-8", f"Convert it: iconv -f UTF-16 -t UTF-8 {path.name}")
    return data


def _parquet_records(path: Path) -> Iterator[tuple[int, dict]]:
    """Rows of a Parquet file. Raises InputError where it, or what is in it beside audio, can't be read."""
    try:
        yield from _parquet_rows(path)
    except (pa.ArrowException, OSError) as error:
        action = "Copy the file again, or leave it out of --manifest."
        raise InputError(str(path), f"a file that can't be read ({error})", "a whole Parquet file", action) from error


def _parquet_rows(path: Path) -> Iterator[tuple[int, dict]]:
    """Rows; a column of Hugging Face's Audio, a struct of `bytes` and `path`, becomes a Recording or a path.

    The bytes are not read: that a row has them is known from the row group's statistics, where they are there.
    """
    file = pq.ParquetFile(path)
    embedded = [field.name for field in file.schema_arrow if _is_audio(field.type)]
    names = [name for field in file.schema_arrow for name in _leaves(field, field.name in embedded)]
    row = 0
    for group in range(file.num_row_groups):
        has_bytes = {name: _has_bytes(file, group, name) for name in embedded}
        start = row
        for batch in file.iter_batches(row_groups=[group], columns=names):
            for record in batch.to_pylist():
                row += 1
                for name in embedded:
                    inside = has_bytes[name] is True or (has_bytes[name] and has_bytes[name][row - 1 - start])
                    given = (record.get(name) or {}).get("path")
                    record[name] = Recording(str(path), row=row, column=name) if inside else given
                yield row, record


def _is_audio(type_: pa.DataType) -> bool:
    return pa.types.is_struct(type_) and {"bytes", "path"} <= {field.name for field in type_}


def _leaves(field: pa.Field, is_audio: bool) -> list[str]:
    return [f"{field.name}.path"] if is_audio else [field.name]


def _has_bytes(file: pq.ParquetFile, group: int, name: str) -> bool | list[bool]:
    """Whether all rows of a row group have bytes, or none (False), or for each row."""
    facts = file.metadata.row_group(group)
    column = next(
        facts.column(n) for n in range(facts.num_columns) if facts.column(n).path_in_schema == f"{name}.bytes"
    )
    statistics = column.statistics
    if statistics is not None and statistics.has_null_count and statistics.null_count in (0, facts.num_rows):
        return statistics.null_count == 0
    values = file.read_row_group(group, columns=[f"{name}.bytes"]).column(name).combine_chunks()
    return pc.struct_field(values, "bytes").is_valid().to_pylist()


def separator(path: Path) -> str:
    """What separates the columns: a tab in .tsv; a comma in .csv, or ; or a tab where its first line has no comma."""
    if path.suffix.lower() == ".tsv":
        return "\t"
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        first = next((line for line in file if line.strip()), "")
    return next((sign for sign in ",;\t" if sign in first), ",")


def _csv_records(path: Path, suffix: str) -> Iterator[tuple[int, dict]]:
    # Quotes mean nothing in TSV: a stray one must not swallow the lines after it.
    quoting = {"quoting": csv.QUOTE_NONE} if suffix == ".tsv" else {"strict": True}
    text = _read_utf8(path).decode("utf-8-sig", errors="replace")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator(path), **quoting)
    columns, line = None, 1
    try:
        for values in reader:
            first_line, line = line, reader.line_num + 1
            if values and columns is None:
                columns = _check_columns(f"{path} line {first_line}", [name.strip() for name in values])
            elif values:
                record = dict(zip(columns, values, strict=False))
                extra = {None: values[len(columns) :]} if len(values) > len(columns) else {}
                yield first_line, {**dict.fromkeys(columns), **record, **extra}
    except csv.Error as error:
        yield line, malformed("", f"broken CSV, from here to the end ({error})", "quoted fields that end")


def _check_columns(where: str, names: list[str]) -> list[str]:
    """Column names. Raises InputError for a single one, and for two of one name; nameless ones may be many."""
    if len(names) == 1:
        raise InputError(
            where,
            f"a single column, {names[0]!r:.80}",
            "the names of the columns, separated by , or ; or tabs in .csv and by tabs in .tsv",
            "Write audio,text,speaker into the first line, or correct the file's extension.",
        )
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise InputError(where, f"more than one column {', '.join(twice)}", "each name once", "Rename all but one.")
    return names


def _json_lines(data: bytes) -> Iterator[tuple[int, object]]:
    for number, line in enumerate(data.split(b"\n"), start=1):
        if line.strip():
            yield number, _parse(line)


def _parse(line: bytes) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        shown = line[:60].decode(errors="replace")
        return Rejected(
            "failed",
            "malformed_json",
            "",
            f"{shown!r}, which is not JSON ({error})",
            "one JSON object a line",
            "Correct the line, or remove it.",
        )


def _json_array(path: Path, text: str) -> Iterator[tuple[int, object]]:
    """Elements of a JSON array with the line each starts on. After a broken one nothing can be told apart."""
    decoder, position, line = json.JSONDecoder(), text.index("[") + 1, 1 + text.count("\n", 0, text.index("["))
    while True:
        start = position
        while position < len(text) and text[position] in " \t\r\n,":
            position += 1
        line += text.count("\n", start, position)
        if position < len(text) and text[position] == "]":
            return
        try:
            record, end = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{path} line {line}",
                f"broken JSON ({error})",
                "an element of the array that starts the file",
                "Correct it: what follows in the array can't be read without it.",
            ) from error
        yield line, record
        line += text.count("\n", position, end)
        position = end
