"""Several corpora as one: their clips are numbered through, corpus after corpus in the order given.

A clip is known by its row, so two corpora may use the same keys. A speaker belongs to one corpus: the same name in
two of them is two speakers, since nobody said that they are one voice; references never cross the border.
"""

from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from preprocess.common.errors import InputError
from preprocess.corpus.shards import CORPUS_FILE, INDEX_SCHEMA, QUALITY, Clip, Corpus
from preprocess.corpus.storage import Cache

# Facts on which all corpora of a run must agree. A fact that one corpus has and another lacks is a difference.
_SHARED = (
    ("codec", "fingerprint"),
    ("text_tokenizer", "fingerprint"),
    ("layout", "name"),
    ("layout", "system_text"),
    ("layout", "normaliser_version"),
    ("layout", "keep_system"),
)

# Of the index, training reads these columns, and in types that take less memory: planning a million clips then fits
# into 500 MB. A member that does not fit is refused by Arrow as the index is read.
_NOT_READ = {"duration_sec", "language", "reason", "speaker_similarity", *QUALITY}
_NUMBERED = {"shard", "speaker", "split"}


def _narrow(field: pa.Field) -> pa.Field:
    if field.name in _NUMBERED:
        return field.with_type(pa.dictionary(pa.int32(), pa.string()))
    return field.with_type(pa.uint32()) if field.name.endswith(("_bytes", "_crc32")) else field


TRAINING_SCHEMA = pa.schema([_narrow(field) for field in INDEX_SCHEMA if field.name not in _NOT_READ])


class Corpora:
    """One corpus or several that agree on codec, text tokenizer and layout (see _SHARED), read as one.

    `info` is that of the first. `index` holds the rows of all: the columns of TRAINING_SCHEMA and one more, `corpus`
    (int32, from 0).
    A folder may be an address of fsspec, whose files then go through `cache`. Raises InputError for folders that
    disagree or are given twice.
    """

    def __init__(self, folders: Sequence[Path | str], cache: Cache | None = None) -> None:
        self.corpora = [Corpus(folder, cache, TRAINING_SCHEMA) for folder in folders]
        self.folders = [corpus.folder for corpus in self.corpora]
        self.info = self.corpora[0].info
        self.fingerprints: list[str] = []
        for corpus in self.corpora:
            self._refuse_difference(corpus)
            self.fingerprints.append(corpus.fingerprint)
            self._refuse_twice(corpus)
        sizes = [corpus.index.num_rows for corpus in self.corpora]
        self._first_rows = np.cumsum([0, *sizes[:-1]]).tolist()
        numbers = [pa.array(np.full(size, number, dtype=np.int32)) for number, size in enumerate(sizes)]
        # The columns of the tables are shared, not copied.
        self.index = pa.concat_tables(
            corpus.index.append_column("corpus", number) for corpus, number in zip(self.corpora, numbers, strict=True)
        )
        # What Arrow keeps of unpacking the files.
        pa.default_memory_pool().release_unused()

    def clip(self, row: int, waveform: bool = False) -> Clip:
        """The clip of row `row` of `index`, with its FLAC bytes where `waveform` and the shard has them."""
        number = bisect_right(self._first_rows, row) - 1
        return self.corpora[number].clip(row - self._first_rows[number], waveform)

    def _refuse_difference(self, corpus: Corpus) -> None:
        first = self.corpora[0]
        infos = corpus.info, first.info
        facts = [(f"{group}.{name}", *(info[group].get(name) for info in infos)) for group, name in _SHARED]
        different = [(name, found, expected) for name, found, expected in facts if found != expected]
        if different:
            raise InputError(
                str(corpus.folder / CORPUS_FILE),
                "; ".join(f"{name} {found!r}" for name, found, _ in different),
                "; ".join(f"{name} {expected!r}" for name, _, expected in different)
                + f", as {first.folder / CORPUS_FILE} says",
                "Run preprocess.shard again, into a new folder, with the codec, model and layout of the other.",
            )

    def _refuse_twice(self, corpus: Corpus) -> None:
        before = self.fingerprints.index(self.fingerprints[-1])
        if before < len(self.fingerprints) - 1:
            raise InputError(
                f"--data {corpus.folder}",
                f"the very clips of --data {self.folders[before]}",
                "each corpus once",
                "Give it once; data.repeat says how many times an epoch takes its samples.",
            )
