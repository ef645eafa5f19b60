"""Several corpora read as one: their clips are numbered consecutively, corpus after corpus in the order given.

A clip is identified by its row, so two corpora may use the same keys. A speaker belongs to one corpus: the same name
in two corpora counts as two speakers, since it need not be one person. References are never from another corpus.
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
    ("layout", "allow_marks"),
)

# Training leaves these columns of the index out and reads the others in smaller types: planning a million clips then
# fits into 500 MB. Arrow refuses a value that is too large for its type when it reads the index.
_NOT_READ = {"duration_sec", "language", "reason", "speaker_similarity", *QUALITY}


def _smaller_type(field: pa.Field) -> pa.Field:
    if field.name in ("shard", "speaker", "split"):
        return field.with_type(pa.dictionary(pa.int32(), pa.string()))
    return field.with_type(pa.uint32()) if field.name.endswith(("_bytes", "_crc32")) else field


TRAINING_SCHEMA = pa.schema([_smaller_type(field) for field in INDEX_SCHEMA if field.name not in _NOT_READ])


class Corpora:
    """One corpus or several that agree on codec, text tokenizer and layout (see _SHARED), read as one.

    `info` is that of the first corpus. `index` holds the rows of all: the columns of TRAINING_SCHEMA and `corpus`
    (int32, from 0). A folder may be an fsspec address; its files then go through `cache`. Raises InputError for
    corpora that disagree, or for one that is given twice.
    """

    def __init__(self, folders: Sequence[Path | str], cache: Cache | None = None) -> None:
        self.corpora = [Corpus(folder, cache, TRAINING_SCHEMA) for folder in folders]
        self.folders = [corpus.folder for corpus in self.corpora]
        self.info = self.corpora[0].info
        self.fingerprints: list[str] = []
        for corpus in self.corpora:
            self._refuse_difference(corpus)
            if corpus.fingerprint in self.fingerprints:
                raise InputError(
                    f"--data {corpus.folder}",
                    f"the same clips as in --data {self.folders[self.fingerprints.index(corpus.fingerprint)]}",
                    "each corpus once",
                    "Give it once; data.repeat says how many times an epoch takes its samples.",
                )
            self.fingerprints.append(corpus.fingerprint)
        sizes = [corpus.index.num_rows for corpus in self.corpora]
        self._first_rows = np.cumsum([0, *sizes[:-1]]).tolist()
        # concat_tables shares the columns, and does not copy them.
        self.index = pa.concat_tables(
            corpus.index.append_column("corpus", pa.array(np.full(size, number, dtype=np.int32)))
            for number, (corpus, size) in enumerate(zip(self.corpora, sizes, strict=True))
        )
        # Arrow still holds the memory in which it unpacked the files.
        pa.default_memory_pool().release_unused()

    def clip(self, row: int, waveform: bool = False) -> Clip:
        """The clip at row `row` of `index`; with `waveform`, its FLAC bytes too if the shard has them."""
        number = bisect_right(self._first_rows, row) - 1
        return self.corpora[number].clip(row - self._first_rows[number], waveform)

    def _refuse_difference(self, corpus: Corpus) -> None:
        first = self.corpora[0]
        facts = [(f"{part}.{name}", corpus.info[part].get(name), self.info[part].get(name)) for part, name in _SHARED]
        different = [(name, found, expected) for name, found, expected in facts if found != expected]
        if different:
            raise InputError(
                str(corpus.folder / CORPUS_FILE),
                "; ".join(f"{name} {found!r}" for name, found, _ in different),
                "; ".join(f"{name} {expected!r}" for name, _, expected in different)
                + f", as {first.folder / CORPUS_FILE} says",
                "Run preprocess.shard again, into a new folder, with the codec, model and layout of the other.",
            )
