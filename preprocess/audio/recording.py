"""Where a recording lies: in a file, in a part of a longer one, or inside a Parquet file."""

import contextlib
import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from preprocess.audio.decode import Audio, Header, decode, longer_than, probe
from preprocess.common.errors import Rejected
from preprocess.common.files import sha256_unchanged


class Recording(NamedTuple):
    """One utterance's audio: all of `path`, or [start_sec, end_sec) of it; with `row` (from 1), bytes in Parquet."""

    path: str
    start_sec: float | None = None
    end_sec: float | None = None
    row: int | None = None
    column: str | None = None

    def __str__(self) -> str:
        inside = "" if self.row is None else f"#{self.row}.{self.column}"
        whole = self.start_sec is None and self.end_sec is None
        end = "" if self.end_sec is None else repr(self.end_sec)
        return self.path + inside + ("" if whole else f"@{self.start_sec or 0.0!r}-{end}")

    @property
    def order(self) -> tuple:
        """Sorts recordings so that each file, and each row group of a Parquet file, is read once, in order."""
        return self.path, self.row or 0, self.start_sec or 0.0

    def probe(self) -> Header:
        """Its header. Raises Rejected as preprocess.audio.decode.probe does."""
        with self._named():
            return probe(Path(self.path), self.start_sec, self.end_sec, self._embedded())

    def longer_than(self, longest_sec: float) -> float | None:
        """As preprocess.audio.decode.longer_than."""
        with self._named():
            return longer_than(longest_sec, Path(self.path), self.start_sec, self.end_sec, self._embedded())

    def decode(self) -> Audio:
        """Its samples. Raises Rejected as preprocess.audio.decode.decode does."""
        with self._named():
            return decode(Path(self.path), self.start_sec, self.end_sec, self._embedded())

    def sha256(self) -> str:
        """What its Audio has: of the file that holds it, which is read and not decoded."""
        data = self._embedded()
        return sha256_unchanged(Path(self.path)) if data is None else hashlib.sha256(data).hexdigest()

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Inside, what is found wrong is told of the part or the row, not of the file alone that holds it."""
        try:
            yield
        except Rejected as rejected:
            raise rejected.at(str(self)) from rejected

    def _embedded(self) -> bytes | None:
        return None if self.row is None else embedded_bytes(self.path, self.column, self.row)


def embedded_bytes(path: str, column: str, row: int) -> bytes:
    """The file in `column`.bytes of row `row` (from 1). One row group is in memory: rows are best read in order.

    Raises Rejected where the row group can't be read.
    """
    borders = _open(path)[1]
    group = int(np.searchsorted(borders, row - 1, side="right")) - 1
    found = _row_group(path, column, group)
    if isinstance(found, str):
        raise Rejected("failed", "broken_parquet", path, found, "a whole Parquet file", "Copy the file again.")
    return found[row - 1 - int(borders[group])].as_py()


@functools.lru_cache(maxsize=4)
def _open(path: str) -> tuple[pq.ParquetFile, np.ndarray]:
    """The file, and the first row of each row group, from 0."""
    file = pq.ParquetFile(path)
    sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    return file, np.cumsum([0, *sizes])


@functools.lru_cache(maxsize=1)
def _row_group(path: str, column: str, group: int) -> pa.ChunkedArray | str:
    """The bytes of its rows, or why they can't be read: once for them all."""
    try:
        # Forked workers read here: Arrow's threads are those of their parent.
        table = _open(path)[0].read_row_group(group, columns=[f"{column}.bytes"], use_threads=False)
    except (pa.ArrowException, OSError) as error:
        return f"row group {group} that can't be read ({error})"
    return pa.chunked_array([pc.struct_field(chunk, "bytes") for chunk in table.column(column).chunks])
