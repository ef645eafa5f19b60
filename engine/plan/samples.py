"""The samples of one split of the index: their targets, references and lengths. Which they are, not their order."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine.plan.references import Dialogues, DrawnReferences, families


class Purpose(IntEnum):
    """What a stream of random numbers is for: no two purposes may share numbers."""

    REFERENCES = 0
    REPEAT = 1
    WITHOUT_REFERENCE = 2
    ORDER = 3


def random_numbers(seed: int, purpose: Purpose, number: int = 0) -> np.random.Generator:
    """The stream of a purpose in a run of `seed`; `number` is an epoch or a corpus."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, purpose, number])))


@dataclass(frozen=True)
class LayoutCost:
    """What a sample costs besides its texts and frames, measured on the layout that training uses.

    Length of a sample in tokens (text-stream tokens without audio placeholders, and audio columns):
    tokens_base + system text + text + frames + columns_extra of the target, and for each reference
    tokens_per_reference + text, + frames + columns_extra where its codes are shown, + what hearing it takes.
    Of a dialogue the index has the text-stream tokens with codes shown; its spoken audios add frames + columns_extra.
    """

    tokens_base: int  # text-stream tokens of a sample with empty texts and no reference
    tokens_per_reference: int  # text-stream tokens that a reference adds, its text empty
    columns_extra: int  # audio columns beyond the frames, an audio: 2 + codebooks - 1
    text_labels: int  # labelled text positions a sample with drawn references
    system_tokens: int = 0  # of the corpus's system text
    references_have_codes: bool = True  # of references
    tokens_of_reference_codes: int = 0  # text-stream tokens that a reference has more where its codes are shown
    tower_chunk_samples: int = 0  # of a reference's waveform that an audio tower hears at once; 0 = none is heard
    hop_samples: int = 0  # of the tower's mel frames

    def reference_tokens(self, frames: np.ndarray, waveform_samples: np.ndarray) -> np.ndarray:
        """Tokens a reference adds besides its text, int32 [clips]; waveforms count where they are heard."""
        tokens = np.full_like(frames, self.tokens_per_reference)
        if self.references_have_codes:
            tokens += frames + np.int32(self.columns_extra)
        if self.tower_chunk_samples:
            # Each chunk stands between two marks.
            whole, rest = np.divmod(waveform_samples, np.int32(self.tower_chunk_samples))
            tokens += whole * np.int32(2 + tower_outputs(self.tower_chunk_samples, self.hop_samples))
            tokens += np.where(rest > 0, 2 + tower_outputs(rest, self.hop_samples), 0).astype(np.int32)
        return tokens


def tower_outputs(num_samples: int | np.ndarray, hop_samples: int) -> int | np.ndarray:
    """Outputs of the audio tower for a chunk, by Boson's HiggsAudioEncoder._get_feat_extract_output_lengths."""
    num_mel_frames = -(-num_samples // hop_samples)
    return ((num_mel_frames - 1) // 2 + 1 - 2) // 2 + 1


@dataclass(frozen=True)
class Draw:
    """T samples with their references: all of an epoch, a sample as often as the epoch takes it.

    Sample t is number `sample[t]` of the Split, `tokens[t]` long, and has the references (rows of the index)
    `reference[reference_offsets[t] : reference_offsets[t + 1]]`. `left_out[t]`: it could draw one, but trains
    without this time.
    """

    sample: np.ndarray
    tokens: np.ndarray
    reference: np.ndarray
    reference_offsets: np.ndarray
    left_out: np.ndarray


class Split:
    """N samples of the split `name`: first those whose references are drawn, then the dialogues, which name theirs.

    index: table of INDEX_SCHEMA, or that of engine.plan.corpora, of one corpus or several. Of the clips
    with `use`, each that `draws_reference` is a target with references from the same speaker's other clips of the
    split, or with none where there is no other; and each of its `dialogues` is a sample with the references it names,
    in whatever split of its corpus they lie. references_per_sample: how many are drawn, fewer where the speaker has
    fewer other clips.
    `target`, int32 [N], is a row of the index; `dialogue`, int32 [N], the position of a dialogue
    in the clip's own list, or -1. `text_labels` [N] counts labelled text positions; `num_trained` and
    `trained_frames` [N] the audios that are trained, and their frames.
    `corpus` and `speaker`, int32 [rows], are numbers of each row of the index.
    Raises InputError for named references that the index does not have.
    """

    def __init__(self, index: pa.Table, name: str, cost: LayoutCost, seed: int, references_per_sample: int) -> None:
        frames, text_tokens = _numbers(index, "frames"), _numbers(index, "text_tokens")
        in_split = pc.equal(index.column("split"), name).fill_null(False).to_numpy()
        usable = _numbers(index, "use") & in_split
        drawing = np.flatnonzero(usable & _numbers(index, "draws_reference")).astype(np.int32)
        several = "corpus" in index.column_names
        self.corpus = _numbers(index, "corpus") if several else np.zeros(index.num_rows, dtype=np.int32)
        self.num_corpora = int(self.corpus.max(initial=0)) + 1
        self.speaker, num_speakers = _number_speakers(index, self.corpus, self.num_corpora)
        self.keys, self.seed = index.column("key"), seed
        named = Dialogues(index, self.corpus, np.flatnonzero(usable))
        candidates = np.flatnonzero(usable & (self.speaker < num_speakers)).astype(np.int32)
        rng = random_numbers(seed, Purpose.REFERENCES)
        self._drawn = DrawnReferences(self.speaker, families(index, self.corpus), candidates, drawing, rng)
        self._num_drawn = np.minimum(self._drawn.num_others, references_per_sample)

        self.target = np.concatenate([drawing, named.target], dtype=np.int32)
        self.dialogue = np.concatenate([np.full_like(drawing, -1), named.dialogue], dtype=np.int32)
        columns = frames + np.int32(cost.columns_extra)
        waveform_samples = index.column("waveform_samples").to_numpy() if cost.tower_chunk_samples else frames
        beside_text = cost.reference_tokens(frames, waveform_samples)
        self._reference_tokens = text_tokens + beside_text
        # Lengths of dialogues are whole; what drawn references add is known once they are drawn.
        system_tokens = index.column("system_tokens").fill_null(cost.system_tokens).to_numpy()[drawing]
        drawing_tokens = text_tokens[drawing] + system_tokens + columns[drawing] + np.int32(cost.tokens_base)
        shown = beside_text - np.int32(cost.tokens_per_reference + cost.tokens_of_reference_codes)
        audio_tokens = np.where(named.trained, columns[named.audio], np.where(named.has_codes, shown[named.audio], 0))
        named_tokens = named.stream_tokens + _sums(named, audio_tokens)
        self._tokens = np.concatenate([drawing_tokens, named_tokens], dtype=np.int32)
        labels = np.full_like(drawing, cost.text_labels), named.text_labels
        self.text_labels = np.concatenate(labels, dtype=np.int32)
        self.num_trained = np.concatenate([np.ones_like(drawing), _sums(named, named.trained)], dtype=np.int32)
        trained_frames = frames[drawing], _sums(named, frames[named.audio] * named.trained)
        self.trained_frames = np.concatenate(trained_frames, dtype=np.int32)
        self._named = named.reference.astype(np.int32)
        self._first_named = np.cumsum(named.num_references) - named.num_references

    def name(self, sample: int) -> str:
        """What to call a sample in messages: the key of its target, with the corpus where there are several."""
        row = self.target[sample]
        key = self.keys[int(row)].as_py()
        return f"{key} of corpus {self.corpus[row] + 1}" if self.num_corpora > 1 else key

    def draw(self, epoch: int, repeat: Sequence[float] = (), share_without_reference: float = 0.0) -> Draw:
        """The samples of an epoch with their references.

        repeat: how many times an epoch takes a sample of each corpus, () for once. Of 2.5, half of the samples, a
        seeded choice, come twice and the others three times, and the other way round in the next epoch; of 0.25
        come consecutive quarters of a seeded order. So after any number of epochs E, each sample has been taken
        repeat * E times, rounded down or up.
        share_without_reference: the share of the samples with drawn references that go without, chosen each epoch.
        """
        turns_before, times = self._times(epoch, repeat)
        sample = np.repeat(np.arange(len(times), dtype=np.int32), times)
        # The turn of a sample: how many times it was taken before, in this epoch and the earlier ones.
        turns_before -= np.cumsum(times, dtype=np.int32) - times
        turn = np.arange(len(sample), dtype=np.int32) + np.repeat(turns_before, times)
        num_drawing = len(self._num_drawn)
        num_named = np.diff(self._first_named, append=len(self._named)).astype(np.int32)
        num_references = np.concatenate([self._num_drawn, num_named])[sample]
        can_draw = np.flatnonzero((sample < num_drawing) & (num_references > 0))
        left_out = np.zeros(len(sample), dtype=bool)
        rng = random_numbers(self.seed, Purpose.WITHOUT_REFERENCE, epoch)
        if share_without_reference:
            left_out[rng.permutation(can_draw)[: round(share_without_reference * len(can_draw))]] = True
        num_references[left_out] = 0
        offsets = np.concatenate([[0], np.cumsum(num_references)]).astype(np.int32)

        tokens = self._tokens[sample]
        reference = np.empty(offsets[-1], dtype=np.int32)
        drawn = can_draw[~left_out[can_draw]]
        for place in range(num_references[drawn].max(initial=0)):
            drawn = drawn[num_references[drawn] > place]
            rows = self._drawn.draw(sample[drawn], turn[drawn] * num_references[drawn] + place)
            reference[offsets[drawn] + place] = rows
            tokens[drawn] += self._reference_tokens[rows]
        named = np.flatnonzero(sample >= num_drawing)
        sizes = num_references[named]
        within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        first_named = self._first_named[sample[named] - num_drawing]
        reference[np.repeat(offsets[named], sizes) + within] = self._named[np.repeat(first_named, sizes) + within]
        return Draw(sample, tokens, reference, offsets, left_out)

    def _times(self, epoch: int, repeat: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
        """(times taken before the epoch, times in it), each [N].

        Systematic sampling: a sample with the share s of its corpus's seeded order before it has been taken
        floor(repeat * E + s) times after E epochs.
        """
        before = np.full_like(self.target, epoch)
        after = before + np.int32(1)
        for number, times in enumerate(repeat):
            if times == 1:
                continue
            mine = np.flatnonzero(self.corpus[self.target] == number)
            rng = random_numbers(self.seed, Purpose.REPEAT, number)
            share = (rng.permutation(len(mine)) + 0.5) / max(1, len(mine))
            before[mine] = np.floor(times * epoch + share)
            after[mine] = np.floor(times * (epoch + 1) + share)
        return before, after - before


def _sums(named: Dialogues, values: np.ndarray) -> np.ndarray:
    """int64 [D]: the sum over the audios of each dialogue."""
    return np.bincount(named.audio_sample, values, minlength=len(named.target)).astype(np.int64)


def _number_speakers(index: pa.Table, corpus: np.ndarray, num_corpora: int) -> tuple[np.ndarray, int]:
    """(int32 [rows], S): a number below S a speaker of a corpus; rows without a speaker have the number S."""
    names = index.column("speaker").combine_chunks().dictionary_encode()
    num_speakers = num_corpora * len(names.dictionary)
    speaker = names.indices.fill_null(0).to_numpy() + corpus * np.int32(len(names.dictionary))
    speaker[names.is_null().to_numpy(zero_copy_only=False)] = num_speakers
    return speaker, num_speakers


def _numbers(index: pa.Table, name: str) -> np.ndarray:
    column = index.column(name)
    assert column.null_count == 0, f"{name} has {column.null_count} nulls"
    return column.to_numpy()
