"""What the rows of an index are like. Its sha256 says that the file is as it was sent, not that it makes sense.

What a plan needs of all rows is checked when a corpus is opened, in whole columns. What one clip needs (its key, its
place in a shard) is checked when the clip is read: to check a million rows would take longer than to open them.
"""

import re
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from preprocess.common.errors import InputError

KEY_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,80}")
_SPLITS = {"train", "val"}
# (least, most) of whole numbers: a sum over all clips stays below 2^63.
_LIMITS = {
    "frames": (1, 1 << 24),
    "text_tokens": (0, 1 << 24),
    "system_tokens": (0, 1 << 24),
    "waveform_samples": (0, 1 << 30),
    "position": (0, 1 << 20),
    "stream_tokens": (0, 1 << 24),
    "text_labels": (0, 1 << 24),
}
# Columns with a value in each row. The others may lack one: a speaker, an original, a reason, a figure...
COMPLETE = {
    *("key", "shard", "frames", "text_tokens", "waveform_samples", "duration_sec", "split", "draws_reference", "use"),
    *(f"{member}_{part}" for member in ("json", "codes", "flac") for part in ("offset", "bytes", "crc32")),
}


def check_columns(index: pa.Table, where: str) -> None:
    """Raise InputError for a column with a value that preprocess.shard does not write.

    index: all rows, some or all columns. where: the file.
    """
    problem = next(_problems(index), None)
    if problem:
        column, found, expected = problem
        action = "Something else wrote the index: copy the folder again from where preprocess.shard wrote it."
        raise InputError(f"{where}: {column}", found, expected, action)


def _problems(index: pa.Table) -> Iterator[tuple[str, str, str]]:
    """(column, found, expected) of each column that has a wrong value."""
    columns = {name: index.column(name) for name in index.column_names}
    if "dialogues" in columns:
        columns |= _fields("dialogues", columns["dialogues"].combine_chunks())
        columns |= _fields("dialogues.audios", columns["dialogues.audios"])
    for path, column in columns.items():
        name = path.rpartition(".")[2]
        if column.null_count and (path in COMPLETE or "." in path):
            yield path, f"{column.null_count} rows without a value", "a value in each row"
        elif name in _LIMITS and len(column) > column.null_count:
            least, most = _LIMITS[name]
            found = pc.min_max(column).as_py()
            if not least <= found["min"] <= found["max"] <= most:
                yield path, f"{found['min']} to {found['max']}", f"numbers from {least} to {most}"
        elif name == "split" and (strange := set(pc.unique(column).to_pylist()) - _SPLITS):
            yield path, f"{strange!r:.80}", " or ".join(sorted(_SPLITS))


def _fields(path: str, lists: pa.Array) -> dict[str, pa.Array]:
    """{path.field: its values in all rows} of a column of lists of structs."""
    structs = pc.list_flatten(lists)
    return {f"{path}.{field.name}": pc.struct_field(structs, field.name) for field in structs.type}
