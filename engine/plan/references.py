"""Where the references of a sample come from: its dialogue, or drawn from the other clips of the speaker."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from preprocess.common.errors import InputError


class Dialogues:
    """The dialogues of the index rows `rows` as flat arrays: D samples with A audios.

    target, dialogue, stream_tokens, text_labels [D]; audio (row), audio_sample (below D), spoken, trained [A]. Of the
    audios, those besides a target's own are references: reference (row) [R], num_references [D].
    corpus: [rows of the index], where names are looked up.
    Raises InputError for names that the target's corpus does not have.
    """

    def __init__(self, index: pa.Table, corpus: np.ndarray, rows: np.ndarray) -> None:
        lists = index.column("dialogues").take(pa.array(rows)).combine_chunks()
        parent = pc.list_parent_indices(lists).to_numpy()
        self.target = rows[parent]
        dialogues = pc.list_flatten(lists)
        self.dialogue = pc.struct_field(dialogues, "position").to_numpy()
        self.stream_tokens = pc.struct_field(dialogues, "stream_tokens").to_numpy()
        self.text_labels = pc.struct_field(dialogues, "text_labels").to_numpy()
        audios = pc.struct_field(dialogues, "audios")
        self.audio_sample = pc.list_parent_indices(audios).to_numpy()
        audios = pc.list_flatten(audios)
        self.has_codes, self.trained = (
            pc.struct_field(audios, name).to_numpy(zero_copy_only=False) for name in ("has_codes", "trained")
        )
        names = pc.struct_field(audios, "key")
        self.audio = rows_of_keys(index, corpus, names, corpus[self.target[self.audio_sample]])
        if (self.audio < 0).any():
            self._refuse_missing(index, names, np.flatnonzero(self.audio < 0))
        others = self.audio != self.target[self.audio_sample]
        self.reference = self.audio[others]
        self.num_references = np.bincount(self.audio_sample[others], minlength=len(parent))

    def _refuse_missing(self, index: pa.Table, names: pa.Array, missing: np.ndarray) -> None:
        shown = missing[:5]
        targets = index.column("key").take(pa.array(self.target[self.audio_sample[shown]])).to_pylist()
        pairs = zip(names.take(pa.array(shown)).to_pylist(), targets, strict=True)
        raise InputError(
            "index: dialogues",
            f"{len(missing)} references to clips that are not there: "
            + ", ".join(f"{key} (named by {target})" for key, target in pairs)
            + (", ..." if len(missing) > len(shown) else ""),
            "keys of clips in the same index",
            "Look in failures.jsonl for why the clip was left out, and run preprocess.shard again on the whole "
            "manifest.",
        )


class DrawnReferences:
    """References of D targets: each walks its speaker's other clips in an order of its own, and round again.

    So no clip serves a target twice before all of its speaker's others have served once: epochs that follow each
    other differ wherever there is a choice. Which order: a start and a stride coprime to the number of the others,
    both random, on a random circle of the speaker's clips. The target itself is left out, and with it all clips
    made from the same recording, whose words are the target's own.

    speaker, family: int32 [rows of the index], equal for clips of one speaker, of one recording. candidates: rows
    that may be drawn. targets: rows, of candidates or of speakers without any. `num_others`, [D]: how many clips a
    target can draw from.
    """

    def __init__(
        self,
        speaker: np.ndarray,
        family: np.ndarray,
        candidates: np.ndarray,
        targets: np.ndarray,
        rng: np.random.Generator,
    ) -> None:
        # The circles side by side: speaker after speaker, the clips of a recording together.
        shuffled = rng.permutation(len(family))[family[candidates]]
        shuffled += speaker[candidates].astype(np.int64) * len(family)
        self._circles = candidates[np.argsort(shuffled, kind="stable")]
        num_clips = np.bincount(speaker[candidates], minlength=int(speaker.max(initial=0)) + 1)
        first = np.cumsum(num_clips) - num_clips
        del shuffled  # a million clips: every array counts
        # Of each recording in the circles: where its clips begin, and how many they are.
        is_new = np.diff(family[self._circles], prepend=-1) != 0
        is_new |= np.diff(speaker[self._circles], prepend=-1) != 0
        begins = np.flatnonzero(is_new).astype(np.int32)
        sizes = np.diff(begins, append=np.int32(len(is_new)))
        recording = np.full(len(family), -1, dtype=np.int32)
        recording[self._circles] = np.cumsum(is_new, dtype=np.int32) - 1

        mine = speaker[targets]
        self._first = first[mine].astype(np.int32)
        # A speaker without candidates has num_clips 0, and -1 takes the sentinel at the end of both arrays.
        own = recording[targets]
        self._own_size = np.append(sizes, 0)[own].astype(np.int32)
        self._own_begin = (np.append(begins, 0)[own] - self._first).astype(np.int32)
        self.num_others = (num_clips[mine] - self._own_size).astype(np.int32)
        self._start = rng.integers(np.maximum(self.num_others, 1), dtype=np.int32)
        stride = rng.integers(1, np.maximum(self.num_others, 2), dtype=np.int32)
        self._stride = np.where(np.gcd(stride, self.num_others) == 1, stride, 1)

    def draw(self, target: np.ndarray, turn: np.ndarray) -> np.ndarray:
        """Rows [n]: what each of `target` (numbers below D, with others to draw) meets at `turn` of its walk."""
        others = self.num_others[target]
        pick = (self._start[target] + turn * self._stride[target].astype(np.int64)) % others
        pick += np.where(pick >= self._own_begin[target], self._own_size[target], 0)
        return self._circles[self._first[target] + pick]


def families(index: pa.Table, corpus: np.ndarray) -> np.ndarray:
    """int32 [rows]: the same number for clips made from the same recording, below the number of rows.

    Raises InputError for a copy of a copy: `derived_from` names an original.
    """
    derived_from = index.column("derived_from")
    family = np.arange(index.num_rows, dtype=np.int32)
    copies = np.flatnonzero(derived_from.is_valid().to_numpy())
    if not len(copies):
        return family
    names = derived_from.drop_null().combine_chunks()
    original = rows_of_keys(index, corpus, names, corpus[copies])
    # Copies whose original is not in the corpus are one family all the same: that of the first of them.
    codes = names.dictionary_encode().indices.to_numpy() + corpus[copies].astype(np.int64) * len(names)
    _, first, number = np.unique(codes, return_index=True, return_inverse=True)
    family[copies] = np.where(original >= 0, original, copies[first][number])
    chained = copies[(original >= 0) & np.isin(original, copies)]
    if len(chained):
        keys = index.column("key").take(pa.array(chained[:5])).to_pylist()
        raise InputError(
            "index: derived_from",
            f"{len(chained)} clips derived from a clip that is itself derived: {', '.join(keys)}",
            "keys of originals",
            "Write the key of the first recording into derived_from.",
        )
    return family


def rows_of_keys(index: pa.Table, corpus: np.ndarray, names: pa.Array, corpus_of_name: np.ndarray) -> np.ndarray:
    """int64 [names]: row of each key in its corpus, -1 where that corpus lacks it."""
    names = names.dictionary_encode()
    # The table to search is made of the names, which are few where most references are drawn.
    found = pc.index_in(index.column("key"), value_set=names.dictionary).combine_chunks()
    rows = np.flatnonzero(found.is_valid().to_numpy(zero_copy_only=False))
    row_of_name = np.full((int(corpus.max(initial=0)) + 1, len(names.dictionary)), -1)
    row_of_name[corpus[rows], found.drop_null().to_numpy()] = rows
    return row_of_name[corpus_of_name, names.indices.to_numpy()]
