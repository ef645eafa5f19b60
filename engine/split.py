"""The samples of one split of the index: their targets, references and lengths. Which they are, not their order."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from preprocess.errors import InputError


@dataclass(frozen=True)
class LayoutCost:
    """What a sample costs besides its texts and frames, measured on the layout that training uses.

    Length of a sample in tokens (text-stream tokens without audio placeholders, and audio columns):
    tokens_base + text + frames + columns_extra of the target, and for each reference
    tokens_per_reference + text + frames + columns_extra.
    """

    tokens_base: int  # text-stream tokens of a sample with empty texts and no reference
    tokens_per_reference: int  # text-stream tokens that a reference adds, its text empty
    columns_extra: int  # audio columns beyond the frames, an audio: 2 + codebooks - 1
    text_labels: int  # labelled text positions a sample


class Split:
    """N samples of the split `name`: first those whose reference is drawn, then those whose dialogue names it.

    index: table of preprocess.shards.INDEX_SCHEMA. Of the clips with `use`, each that `draws_reference` is a
    target with a reference from the same speaker's other clips of the split, or with none where there is no
    other; and each of its `dialogues` is a sample with the references it names, in whatever split they lie.
    `target`, int32 [N], is a row of the index; `dialogue`, int32 [N], the position of a dialogue
    in the clip's own list, or -1.
    Raises InputError for named references that the index does not have.
    """

    def __init__(self, index: pa.Table, name: str, cost: LayoutCost) -> None:
        frames, text_tokens = _numbers(index, "frames"), _numbers(index, "text_tokens")
        in_split = pc.equal(index.column("split"), name).fill_null(False).to_numpy()
        usable = _numbers(index, "use") & in_split
        drawn = np.flatnonzero(usable & _numbers(index, "draws_reference")).astype(np.int32)
        named = _NamedSamples(index, np.flatnonzero(usable))
        self.keys = index.column("key")
        speakers = index.column("speaker").combine_chunks().dictionary_encode()
        num_speakers = len(speakers.dictionary)
        # A number a speaker; clips without a speaker share the last, which has no clips to draw from.
        self.speaker = speakers.indices.fill_null(num_speakers).to_numpy()

        # The usable clips, speaker after speaker: those of speaker s begin at `_first[s]` and are `_num_clips[s]`.
        candidates = np.flatnonzero(usable & (self.speaker < num_speakers)).astype(np.int32)
        self._by_speaker = candidates[np.argsort(self.speaker[candidates], kind="stable")]
        self._num_clips = np.bincount(self.speaker[candidates], minlength=num_speakers + 1)
        self._first = np.cumsum(self._num_clips) - self._num_clips
        self._place = np.zeros(index.num_rows, dtype=np.int32)
        self._place[self._by_speaker] = np.arange(len(candidates))
        can_draw = self._num_clips[self.speaker[drawn]] > 1
        self._drawing = np.flatnonzero(can_draw).astype(np.int32)  # the samples that draw a reference

        self.target = np.concatenate([drawn, named.target], dtype=np.int32)
        self.dialogue = np.concatenate([np.full_like(drawn, -1), named.dialogue], dtype=np.int32)
        self.frames = frames[self.target]
        columns = frames + np.int32(cost.columns_extra)
        self._reference_tokens = text_tokens + columns + np.int32(cost.tokens_per_reference)
        # Lengths with the named references; what a drawn one adds is known once it is drawn.
        target_text_tokens = np.concatenate([text_tokens[drawn], named.text_tokens])
        self._tokens = target_text_tokens + columns[self.target] + np.int32(cost.tokens_base)
        named_tokens = named.reference_text_tokens + columns[named.reference] + np.int32(cost.tokens_per_reference)
        np.add.at(self._tokens, len(drawn) + named.reference_sample, named_tokens)
        self._named_references = named.reference
        num_references = np.concatenate([[0], can_draw, named.num_references], dtype=np.int32)
        self._offsets = np.cumsum(num_references, dtype=np.int32)

    def draw_references(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(tokens [N], reference [R], offsets [N + 1]), R references of all samples as rows of the index.

        Sample n has the references `reference[offsets[n] : offsets[n + 1]]`: uniform over the speaker's other
        clips where they are drawn, always the same where they are named.
        """
        target = self.target[self._drawing]
        speaker = self.speaker[target]
        pick = self._first[speaker] + rng.integers(self._num_clips[speaker] - 1)
        pick += pick >= self._place[target]  # leaves the target itself out
        drawn = self._by_speaker[pick]
        tokens = self._tokens.copy()
        tokens[self._drawing] += self._reference_tokens[drawn]
        return tokens, np.concatenate([drawn, self._named_references], dtype=np.int32), self._offsets


class _NamedSamples:
    """The dialogues of the index rows `rows` as flat arrays: D samples that name R references.

    target, dialogue, text_tokens, num_references [D]; reference (row), reference_sample (below D),
    reference_text_tokens [R].
    """

    def __init__(self, index: pa.Table, rows: np.ndarray) -> None:
        lists = index.column("dialogues").combine_chunks().take(pa.array(rows))
        parent = pc.list_parent_indices(lists).to_numpy()
        self.target = rows[parent]
        dialogues = pc.list_flatten(lists)
        self.dialogue = pc.struct_field(dialogues, "position").to_numpy()
        self.text_tokens = pc.struct_field(dialogues, "text_tokens").to_numpy()
        references = pc.struct_field(dialogues, "references")
        self.reference_sample = pc.list_parent_indices(references).to_numpy()
        self.num_references = np.bincount(self.reference_sample, minlength=len(parent))
        references = pc.list_flatten(references)
        self.reference_text_tokens = pc.struct_field(references, "text_tokens").to_numpy()
        names = pc.struct_field(references, "key").dictionary_encode()
        # The table to search is made of the names, which are few where most references are drawn.
        found = pc.index_in(index.column("key"), value_set=names.dictionary).combine_chunks()
        row_of_name = np.full(len(names.dictionary), -1)
        row_of_name[found.drop_null().to_numpy()] = np.flatnonzero(found.is_valid().to_numpy(zero_copy_only=False))
        self.reference = row_of_name[names.indices.to_numpy()]
        if (self.reference < 0).any():
            self._refuse_missing(index, names, np.flatnonzero(self.reference < 0))

    def _refuse_missing(self, index: pa.Table, names: pa.DictionaryArray, missing: np.ndarray) -> None:
        shown = missing[:5]
        targets = index.column("key").take(pa.array(self.target[self.reference_sample[shown]])).to_pylist()
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


def _numbers(index: pa.Table, name: str) -> np.ndarray:
    column = index.column(name)
    assert column.null_count == 0, f"{name} has {column.null_count} nulls"
    return column.to_numpy()
