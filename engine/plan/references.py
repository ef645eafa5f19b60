"""The references of samples: those that a dialogue names, and those drawn from the speaker's other clips."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine.plan.arrays import Int32s, Int64s, Ints, group_offsets
from preprocess.common.errors import InputError, join_some


class Dialogues:
    """The dialogues of the index rows `rows` as flat arrays: D samples, which have A audios together.

    Per dialogue [D]: target (row), dialogue (its position in the target's list), stream_tokens, text_labels,
    num_references. Per audio [A]: audio (row), audio_sample (its dialogue, below D), has_codes, trained.
    reference [R]: row of each audio that is not the target itself, dialogue after dialogue.
    corpus: int32 [rows of the index]; a key is looked up in the corpus of the target that names it.
    Raises InputError for keys that this corpus does not have.
    """

    def __init__(self, index: pa.Table, corpus: Int32s, rows: Ints) -> None:
        lists = index.column("dialogues").take(pa.array(rows)).combine_chunks()
        parent = pc.list_parent_indices(lists).to_numpy()
        self.target = rows[parent]
        dialogues = pc.list_flatten(lists)
        self.dialogue, self.stream_tokens, self.text_labels = (
            pc.struct_field(dialogues, name).to_numpy() for name in ("position", "stream_tokens", "text_labels")
        )
        audios = pc.struct_field(dialogues, "audios")
        self.audio_sample = pc.list_parent_indices(audios).to_numpy()
        audios = pc.list_flatten(audios)
        self.has_codes, self.trained = (
            pc.struct_field(audios, name).to_numpy(zero_copy_only=False) for name in ("has_codes", "trained")
        )
        keys = pc.struct_field(audios, "key")
        self.audio = _rows_of_keys(index, corpus, keys, corpus[self.target[self.audio_sample]])
        if (self.audio < 0).any():
            self._refuse_missing(index, keys, np.flatnonzero(self.audio < 0))
        others = self.audio != self.target[self.audio_sample]
        self.reference = self.audio[others]
        self.num_references = np.bincount(self.audio_sample[others], minlength=len(parent))

    def _refuse_missing(self, index: pa.Table, keys: pa.Array, missing: Ints) -> None:
        names = keys.take(pa.array(missing)).to_pylist()
        targets = index.column("key").take(pa.array(self.target[self.audio_sample[missing]])).to_pylist()
        pairs = [f"{name} (named by {target})" for name, target in zip(names, targets, strict=True)]
        raise InputError(
            "index: dialogues",
            f"{len(missing)} references to clips that are not there: {join_some(pairs, 5)}",
            "keys of clips in the same index",
            "See failures.jsonl for why the clip was left out, and run preprocess.shard again on the whole manifest.",
        )


class DrawnReferences:
    """References drawn for each of D targets from its speaker's other clips, in a cyclic order of the target's own.

    The speaker's clips are shuffled once. Each target then starts at a random one of its n other clips and goes on
    by a random stride that has no common divisor with n, round and round: so it gets every other clip once before
    any clip a second time, and its references change from epoch to epoch wherever there is a choice. Clips made from
    the target's recording, the target among them, would give its words away. They lie side by side in the shuffled
    clips, so that the order leaves them out by jumping over one range.

    speaker, recording: int32 [rows of the index], equal for clips of one speaker, of one recording. candidates: rows
    that may be drawn. targets: rows, each a candidate or of a speaker without candidates. `num_others`, int32 [D]:
    how many clips each target can draw from.
    """

    def __init__(
        self, speaker: Int32s, recording: Int32s, candidates: Int32s, targets: Int32s, rng: np.random.Generator
    ) -> None:
        # The candidates, speaker after speaker; within a speaker, the recordings in random order.
        shuffled = rng.permutation(len(recording))[recording[candidates]]
        shuffled += speaker[candidates].astype(np.int64) * len(recording)
        self._clips = candidates[np.argsort(shuffled, kind="stable")]
        num_clips = np.bincount(speaker[candidates], minlength=int(speaker.max(initial=0)) + 1)
        del shuffled  # a million clips: every array counts
        # Groups of clips of one recording: where each begins in `_clips`, its size, and the group of each row.
        is_new = np.diff(recording[self._clips], prepend=-1) != 0
        is_new |= np.diff(speaker[self._clips], prepend=-1) != 0
        begins = np.flatnonzero(is_new).astype(np.int32)
        sizes = np.diff(begins, append=np.int32(len(is_new)))
        group = np.full(len(recording), -1, dtype=np.int32)
        group[self._clips] = np.cumsum(is_new, dtype=np.int32) - 1

        speaker_of_target, own = speaker[targets], group[targets]
        self._first = group_offsets(num_clips)[speaker_of_target].astype(np.int32)
        # A target without candidates is in group -1, which takes the 0 appended to both arrays.
        self._own_size = np.append(sizes, 0)[own].astype(np.int32)
        self._own_begin = (np.append(begins, 0)[own] - self._first).astype(np.int32)
        self.num_others = (num_clips[speaker_of_target] - self._own_size).astype(np.int32)
        self._start = rng.integers(np.maximum(self.num_others, 1), dtype=np.int32)
        stride = rng.integers(1, np.maximum(self.num_others, 2), dtype=np.int32)
        self._stride = np.where(np.gcd(stride, self.num_others) == 1, stride, 1)

    def draw(self, target: Ints, number: Ints) -> Int32s:
        """int32 [n]: row of reference `number` of each `target`; both [n], targets below D that have others.

        The references of a target are numbered from 0 through all epochs.
        """
        others = self.num_others[target]
        pick = (self._start[target] + number * self._stride[target].astype(np.int64)) % others
        pick += np.where(pick >= self._own_begin[target], self._own_size[target], 0)
        return self._clips[self._first[target] + pick]


def number_recordings(index: pa.Table, corpus: Int32s) -> Int32s:
    """int32 [rows]: the same number, below the number of rows, for all clips made from one recording.

    A clip with `derived_from` is made from the recording of the clip with that key. Raises InputError if that clip
    has a `derived_from` itself.
    """
    derived_from = index.column("derived_from")
    recording = np.arange(index.num_rows, dtype=np.int32)
    copies = np.flatnonzero(derived_from.is_valid().to_numpy())
    if not len(copies):
        return recording
    names = derived_from.drop_null().combine_chunks()
    original = _rows_of_keys(index, corpus, names, corpus[copies])
    # Copies of an original that is not in the corpus have one recording too: they take the row of the first of them.
    codes = names.dictionary_encode().indices.to_numpy() + corpus[copies].astype(np.int64) * len(names)
    _, first, number = np.unique(codes, return_index=True, return_inverse=True)
    recording[copies] = np.where(original >= 0, original, copies[first][number])
    chained = copies[(original >= 0) & np.isin(original, copies)]
    if len(chained):
        keys = index.column("key").take(pa.array(chained)).to_pylist()
        raise InputError(
            "index: derived_from",
            f"{len(chained)} clips derived from a clip that is itself derived: {join_some(keys, 5)}",
            "keys of originals",
            "Write the key of the first recording into derived_from.",
        )
    return recording


def _rows_of_keys(index: pa.Table, corpus: Int32s, keys: pa.Array, corpus_of_key: Int32s) -> Int64s:
    """int64 [keys]: row of each key in its corpus, -1 if that corpus does not have it."""
    keys = keys.dictionary_encode()
    # Search the index for the distinct keys, which are few where most references are drawn, and not vice versa.
    found = pc.index_in(index.column("key"), value_set=keys.dictionary).combine_chunks()
    rows = np.flatnonzero(found.is_valid().to_numpy(zero_copy_only=False))
    row_of_key = np.full((int(corpus.max(initial=0)) + 1, len(keys.dictionary)), -1)
    row_of_key[corpus[rows], found.drop_null().to_numpy()] = rows
    found_rows: Int64s = row_of_key[corpus_of_key, keys.indices.to_numpy()]
    return found_rows
