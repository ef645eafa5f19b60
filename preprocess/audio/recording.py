"""Where a recording lies: in a file, in a part of a longer one, or inside a Parquet file."""

import contextlib
import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from preprocess.audio.decode import Audio, Header, decode, duration_if_longer, probe
from preprocess.common.errors import Rejected
from preprocess.common.files import cached_sha256

_MOST_BYTES = 2 << 30  # of a row group, which each worker holds in memory


class Recording(NamedTuple):
    """One utterance's audio: all of the file `path`, or [start_sec, end_sec) of it.

    row, column: where the file is embedded, if `path` is a Parquet file: the row's number from 1.
    channel: the one channel that is used, from 0; None: the mean of all.
    """

    path: str
    start_sec: float | None = None
    end_sec: float | None = None
    row: int | None = None
    column: str | None = None
    channel: int | None = None

    def __str__(self) -> str:
        inside = "" if self.row is None else f"#{self.row}.{self.column}"
        whole = self.start_sec is None and self.end_sec is None
        end = "" if self.end_sec is None else repr(self.end_sec)
        channel = "" if self.channel is None else f"^{self.channel}"
        return self.path + inside + ("" if whole else f"@{self.start_sec or 0.0!r}-{end}") + channel

    @property
    def order(self) -> tuple[str, int, float]:
        """A key that sorts recordings so that each file and each row group of a Parquet file is read once."""
        return self.path, self.row or 0, self.start_sec or 0.0

    @property
    def place(self) -> tuple[float | None, float | None, int | None]:
        """Which part of its file it is: recordings of the same bytes and place are the same audio."""
        return self.start_sec, self.end_sec, self.channel

    def probe(self) -> Header:
        """The header. Raises Rejected as preprocess.audio.decode.probe does."""
        with self._named_in_errors():
            return probe(Path(self.path), self.start_sec, self.end_sec, self._embedded())

    def duration_if_longer(self, longest_sec: float) -> float | None:
        """As preprocess.audio.decode.duration_if_longer."""
        with self._named_in_errors():
            return duration_if_longer(longest_sec, Path(self.path), self.start_sec, self.end_sec, self._embedded())

    def decode(self) -> Audio:
        """The samples. Raises Rejected as preprocess.audio.decode.decode does."""
        with self._named_in_errors():
            return decode(Path(self.path), self.start_sec, self.end_sec, self._embedded(), self.channel)

    def sha256(self) -> str:
        """Hex sha256 of the audio file, as in Audio, without decoding it."""
        data = self._embedded()
        return cached_sha256(Path(self.path)) if data is None else hashlib.sha256(data).hexdigest()

    @contextlib.contextmanager
    def _named_in_errors(self) -> Iterator[None]:
        """Inside, a Rejected names this part or row, not only the file."""
        try:
            yield
        except Rejected as rejected:
            raise rejected.at(str(self)) from rejected

    def _embedded(self) -> bytes | None:
        if self.row is None:
            return None
        assert self.column is not None, self
        return embedded_bytes(self.path, self.column, self.row)


def embedded_bytes(path: str, column: str, row: int) -> bytes:
    """The audio file in `column`.bytes of row `row` (from 1) of a Parquet file.

    One row group is kept in memory: read rows in order. Raises Rejected where the row group can't be read.
    """
    first_rows = _open(path)[1]
    group = int(np.searchsorted(first_rows, row - 1, side="right")) - 1
    found = _row_group(path, column, group)
    if isinstance(found, str):
        action = "Copy the file again, or write it anew with smaller row groups (row_group_size=100)."
        raise Rejected("failed", "broken_parquet", path, found, "a whole Parquet file", action)
    data: bytes = found[row - 1 - int(first_rows[group])].as_py()
    return data


@functools.lru_cache(maxsize=4)
def _open(path: str) -> tuple[pq.ParquetFile, npt.NDArray[np.int64]]:
    """The file, and the number (from 0) of the first row of each row group."""
    file = pq.ParquetFile(path)
    sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    return file, np.cumsum([0, *sizes])


@functools.lru_cache(maxsize=1)
def _row_group(path: str, column: str, group: int) -> pa.ChunkedArray | str:
    """The bytes of its rows, or why they can't be read, which is cached too."""
    try:
        file = _open(path)[0]
        facts = file.metadata.row_group(group)
        chunks = [facts.column(number) for number in range(facts.num_columns)]
        size = sum(c.total_uncompressed_size for c in chunks if c.path_in_schema.startswith(f"{column}.bytes"))
        if size > _MOST_BYTES:
            return f"row group {group} of {size:,} bytes of audio, of which at most {_MOST_BYTES:,} are read at once"
        # Without threads: this runs in forked workers, and a fork does not copy Arrow's threads.
        table = file.read_row_group(group, columns=[f"{column}.bytes"], use_threads=False)
    except (pa.ArrowException, OSError) as error:
        return f"row group {group} that can't be read ({error})"
    return pa.chunked_array([pc.struct_field(chunk, "bytes") for chunk in table.column(column).chunks])
