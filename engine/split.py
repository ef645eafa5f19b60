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
    `target`, int32 [N], is a row of the index; `dialogue`, int32 [N], a number in the row's `dialogues`, or -1.
    Raises InputError for named references that the index does not have.
    """

    def __init__(self, index: pa.Table, name: str, cost: LayoutCost) -> None:
        frames, text_tokens = _numbers(index, "frames"), _numbers(index, "text_tokens")
        in_split = pc.equal(index.column("split"), name).fill_null(False).to_numpy()
        usable = _numbers(index, "use") & in_split
        drawn = np.flatnonzero(usable & _numbers(index, "draws_reference"))
        named = _NamedSamples(index, np.flatnonzero(usable))
        self.keys = index.column("key")
        # A number a speaker, -1 for a clip without one.
        self.speaker = index.column("speaker").combine_chunks().dictionary_encode().indices.fill_null(-1).to_numpy()

        # The usable clips of a speaker side by side: target i draws from `first[i]` on, among `others[i]` clips.
        candidates = np.flatnonzero(usable & (self.speaker >= 0))
        self._by_speaker = candidates[np.argsort(self.speaker[candidates], kind="stable")]
        grouped = self.speaker[self._by_speaker]
        self._first = np.searchsorted(grouped, self.speaker[drawn], side="left")
        self._others = np.searchsorted(grouped, self.speaker[drawn], side="right") - self._first - 1
        place = np.zeros(index.num_rows, dtype=np.int64)
        place[self._by_speaker] = np.arange(len(grouped))
        self._own_place = place[drawn]

        self.target = np.concatenate([drawn, named.target]).astype(np.int32)
        self.dialogue = np.concatenate([np.full(len(drawn), -1), named.dialogue]).astype(np.int32)
        self.frames = frames[self.target]
        columns = frames + cost.columns_extra
        self._reference_tokens = cost.tokens_per_reference + text_tokens + columns
        # Lengths with the named references; what a drawn one adds is known once it is drawn.
        target_text_tokens = np.concatenate([text_tokens[drawn], named.text_tokens])
        self._tokens = cost.tokens_base + target_text_tokens + columns[self.target]
        named_tokens = cost.tokens_per_reference + named.reference_text_tokens + columns[named.reference]
        np.add.at(self._tokens, len(drawn) + named.reference_sample, named_tokens)
        self._named_references = named.reference
        self._num_references = np.concatenate([self._others > 0, named.num_references])

    def draw_references(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(tokens [N], reference [R], offsets [N + 1]), R references of all samples as rows of the index.

        Sample n has the references `reference[offsets[n] : offsets[n + 1]]`: uniform over the speaker's other
        clips where they are drawn, always the same where they are named.
        """
        can_draw = np.flatnonzero(self._others > 0)
        pick = self._first[can_draw] + rng.integers(self._others[can_draw])
        pick += pick >= self._own_place[can_draw]  # leaves the target itself out
        drawn = self._by_speaker[pick]
        tokens = self._tokens.copy()
        tokens[can_draw] += self._reference_tokens[drawn]
        reference = np.concatenate([drawn, self._named_references]).astype(np.int32)
        return tokens, reference, np.concatenate([[0], np.cumsum(self._num_references)]).astype(np.int32)


class _NamedSamples:
    """The dialogues of the index rows `rows` as flat arrays: D samples that name R references.

    target, dialogue, text_tokens, num_references [D]; reference (row), reference_sample (below D),
    reference_text_tokens [R].
    """

    def __init__(self, index: pa.Table, rows: np.ndarray) -> None:
        lists = index.column("dialogues").combine_chunks().take(pa.array(rows))
        parent = pc.list_parent_indices(lists).to_numpy()
        self.target = rows[parent]
        self.dialogue = np.arange(len(parent)) - np.searchsorted(parent, parent)
        dialogues = pc.list_flatten(lists)
        self.text_tokens = pc.struct_field(dialogues, "text_tokens").to_numpy()
        references = pc.struct_field(dialogues, "references")
        self.reference_sample = pc.list_parent_indices(references).to_numpy()
        self.num_references = np.bincount(self.reference_sample, minlength=len(parent))
        references = pc.list_flatten(references)
        self.reference_text_tokens = pc.struct_field(references, "text_tokens").to_numpy()
        keys = pc.struct_field(references, "key")
        found = pc.index_in(keys, value_set=index.column("key"))
        if found.null_count:
            self._refuse_missing(index, keys, np.flatnonzero(found.is_null().to_numpy(zero_copy_only=False)))
        self.reference = found.to_numpy()

    def _refuse_missing(self, index: pa.Table, keys: pa.Array, missing: np.ndarray) -> None:
        shown = missing[:5]
        targets = index.column("key").take(pa.array(self.target[self.reference_sample[shown]])).to_pylist()
        pairs = zip(keys.take(pa.array(shown)).to_pylist(), targets, strict=True)
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
