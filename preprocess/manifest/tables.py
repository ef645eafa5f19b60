"""Files of records: JSONL, JSON, CSV, TSV and Parquet as (line, record) pairs, whatever the dialect."""

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
from preprocess.common.json_file import JsonObject
from preprocess.manifest.columns import malformed_row

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")


def read_records(path: Path) -> Iterator[tuple[int, object]]:
    """(line or row number from 1, record) per row; a row that can't be read has a Rejected as its record.

    The record of a table is {column: value}, that of JSON any value. Raises InputError where the file as a whole, or
    all that follows, can't be read.
    """
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
    """The bytes of a text file. Raises InputError for UTF-16; other invalid bytes cost only their rows."""
    data = path.read_bytes()
    if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        raise InputError(str(path), "text in UTF-16", "UTF-8", f"Convert it: iconv -f UTF-16 -t UTF-8 {path.name}")
    return data


def _parquet_records(path: Path) -> Iterator[tuple[int, JsonObject]]:
    """Rows of a Parquet file. Raises InputError where the file, or a column other than audio, can't be read."""
    try:
        yield from _parquet_rows(path)
    except (pa.ArrowException, OSError) as error:
        action = "Copy the file again, or leave it out of --manifest."
        raise InputError(str(path), f"a file that can't be read ({error})", "a whole Parquet file", action) from error


def _parquet_rows(path: Path) -> Iterator[tuple[int, JsonObject]]:
    """Rows; a column of Hugging Face's Audio, a struct of `bytes` and `path`, becomes a Recording or a path.

    The audio's bytes are not read: the row groups' statistics mostly say which rows have some.
    """
    file = pq.ParquetFile(path)
    embedded = {field.name for field in file.schema_arrow if _is_audio(field.type)}
    names = [f"{field.name}.path" if field.name in embedded else field.name for field in file.schema_arrow]
    row = 0
    for group in range(file.num_row_groups):
        has_bytes = {name: iter(_rows_with_bytes(file, group, name)) for name in embedded}
        for batch in file.iter_batches(row_groups=[group], columns=names):
            for record in batch.to_pylist():
                row += 1
                for name in embedded:
                    file_name = (record.get(name) or {}).get("path")
                    has = next(has_bytes[name])
                    record[name] = Recording(str(path), row=row, column=name) if has else file_name
                yield row, record


def _is_audio(type_: pa.DataType) -> bool:
    return pa.types.is_struct(type_) and {"bytes", "path"} <= {field.name for field in type_}


def _rows_with_bytes(file: pq.ParquetFile, group: int, name: str) -> list[bool]:
    """Whether each row of a row group has bytes in the audio column `name`."""
    facts = file.metadata.row_group(group)
    columns = [facts.column(number) for number in range(facts.num_columns)]
    statistics = next(column.statistics for column in columns if column.path_in_schema == f"{name}.bytes")
    if statistics is not None and statistics.has_null_count and statistics.null_count in (0, facts.num_rows):
        return [statistics.null_count == 0] * facts.num_rows
    values = file.read_row_group(group, columns=[f"{name}.bytes"]).column(name).combine_chunks()
    rows: list[bool] = pc.struct_field(values, "bytes").is_valid().to_pylist()
    return rows


def find_separator(path: Path) -> str:
    """The sign between columns: a tab in .tsv; in .csv a comma, or ; or a tab where the first line has no comma."""
    if path.suffix.lower() == ".tsv":
        return "\t"
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        first = next((line for line in file if line.strip()), "")
    return next((sign for sign in ",;\t" if sign in first), ",")


def _csv_records(path: Path, suffix: str) -> Iterator[tuple[int, JsonObject | Rejected]]:
    # Quotes mean nothing in TSV: a stray one must not swallow the lines after it.
    quoting = {"quoting": csv.QUOTE_NONE} if suffix == ".tsv" else {"strict": True}
    text = _read_utf8(path).decode("utf-8-sig", errors="replace")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=find_separator(path), **quoting)
    columns: list[str] = []
    line = 1
    try:
        for values in reader:
            first_line, line = line, reader.line_num + 1
            if values and not columns:
                columns = _check_columns(f"{path} line {first_line}", [name.strip() for name in values])
            elif len(values) > len(columns):
                found = f"{len(values) - len(columns)} more values than there are columns"
                yield first_line, malformed_row("", found, "one value per column")
            elif values:
                yield first_line, dict.fromkeys(columns) | dict(zip(columns, values, strict=False))
    except csv.Error as error:
        yield line, malformed_row("", f"broken CSV, from here to the end ({error})", "quoted fields that end")


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


def _json_lines(data: bytes) -> Iterator[tuple[int, object]]:
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except (ValueError, RecursionError) as error:
            found = f"{line[:60].decode(errors='replace')!r}, which is not JSON ({error})"
            expected, action = "one JSON object per line", "Correct the line, or remove it."
            yield number, Rejected("failed", "malformed_json", "", found, expected, action)


def _json_array(path: Path, text: str) -> Iterator[tuple[int, object]]:
    """(line where it starts, element) per element of a JSON array. Raises InputError for a broken element."""
    decoder, position = json.JSONDecoder(), text.index("[") + 1
    line = 1 + text.count("\n", 0, position)
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
