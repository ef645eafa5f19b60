"""Files of records as (line, record) pairs, whatever the dialect: JSONL, JSON, CSV, TSV and Parquet."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from preprocess.audio.recording import Recording
from preprocess.common.errors import InputError
from preprocess.common.json_file import JsonObject
from preprocess.manifest.delimited import read_delimited
from preprocess.manifest.json_records import read_json
from preprocess.manifest.text_file import manifest_suffix, read_text_bytes

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")


def read_records(path: Path) -> Iterator[tuple[int, object]]:
    """(line or row number from 1, record) per row; a row that can't be read has a Rejected as its record.

    The record of a table is {column: value}, that of JSON any value. Raises InputError where the file as a whole, or
    all that follows, can't be read.
    """
    suffix = manifest_suffix(path)
    if suffix == ".parquet":
        yield from _parquet_records(path)
    elif suffix in (".csv", ".tsv"):
        yield from read_delimited(path)
    else:
        yield from read_json(path, read_text_bytes(path))


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
