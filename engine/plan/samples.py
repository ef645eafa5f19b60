"""The samples of one split of the index: which there are, with their references and lengths, but not their order."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine.plan.arrays import Bools, Int32s, Ints, group_offsets, places_in_groups
from engine.plan.references import Dialogues, DrawnReferences, number_recordings

Length = TypeVar("Length", int, Ints)


class Purpose(IntEnum):
    """What a stream of random numbers is for: no two purposes may share numbers."""

    REFERENCES = 0
    REPEAT = 1
    WITHOUT_REFERENCE = 2
    ORDER = 3


def random_numbers(seed: int, purpose: Purpose, number: int = 0) -> np.random.Generator:
    """The random numbers for one purpose in a run with this seed; `number` is an epoch or a corpus."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, purpose, number])))


@dataclass(frozen=True)
class LayoutCost:
    """Tokens of a sample besides those of its texts and frames, measured on the layout that training uses.

    The length of a sample is its number of text-stream tokens, without audio placeholders, plus its audio columns.
    For the target: tokens_base + system text + text + frames + columns_extra. For each reference:
    tokens_per_reference + text; + frames + columns_extra if the model gets its codes; + the tokens of its waveform if
    the model gets that. For a dialogue: its text-stream tokens in the index, which are counted with codes, and
    frames + columns_extra for each audio in a turn of the assistant.
    """

    tokens_base: int  # text-stream tokens of a sample with empty texts and no reference
    tokens_per_reference: int  # text-stream tokens per reference, its text empty
    columns_extra: int  # audio columns per audio beyond its frames: 2 + codebooks - 1
    text_labels: int  # labelled text positions of a sample with drawn references
    system_tokens: int = 0  # of the corpus's system text
    references_have_codes: bool = True  # whether the model gets the codes of references
    tokens_of_reference_codes: int = 0  # text-stream tokens per reference that only its codes need
    tower_chunk_samples: int = 0  # most waveform samples per input of the audio tower; 0 = it gets no references
    hop_samples: int = 0  # waveform samples per mel frame of the tower

    def reference_tokens(self, frames: Int32s, waveform_samples: Int32s) -> Int32s:
        """int32 [clips]: tokens that each clip adds as a reference, besides its text."""
        tokens = np.full_like(frames, self.tokens_per_reference)
        if self.references_have_codes:
            tokens += frames + np.int32(self.columns_extra)
        if self.tower_chunk_samples:
            # Each chunk stands between two tokens that mark its begin and its end.
            whole, rest = np.divmod(waveform_samples, np.int32(self.tower_chunk_samples))
            tokens += whole * np.int32(2 + tower_outputs(self.tower_chunk_samples, self.hop_samples))
            tokens += np.where(rest > 0, 2 + tower_outputs(rest, self.hop_samples), 0).astype(np.int32)
        return tokens


def tower_outputs(num_samples: Length, hop_samples: int) -> Length:
    """Outputs of the audio tower for a chunk, by Boson's HiggsAudioEncoder._get_feat_extract_output_lengths."""
    num_mel_frames = -(-num_samples // hop_samples)
    return ((num_mel_frames - 1) // 2 + 1 - 2) // 2 + 1


@dataclass(frozen=True)
class SplitSamples:
    """The N samples of a split, each array int32 [N]: what is the same in every epoch."""

    target: Int32s  # row of the index
    dialogue: Int32s  # position in the target's own list of dialogues; -1 = its references are drawn
    speaker: Int32s  # a number per speaker; all clips without a speaker have one number
    text_labels: Int32s  # labelled text positions
    num_trained: Int32s  # audios that are trained
    trained_frames: Int32s  # frames of these audios


@dataclass(frozen=True)
class EpochSamples:
    """The T samples of an epoch with their references; one that the epoch takes twice is two of them.

    Sample t is number `sample[t]` of the SplitSamples and `tokens[t]` long; its references are the rows
    `reference[reference_offsets[t] : reference_offsets[t + 1]]` of the index. `left_out[t]`: it could draw a
    reference, but trains without one this time.
    """

    sample: Int32s
    tokens: Int32s
    reference: Int32s
    reference_offsets: Int32s
    left_out: Bools


class Split:
    """The samples of the split `name`: first those with drawn references, then the dialogues, which name theirs.

    index: table of INDEX_SCHEMA, or that of engine.plan.corpora, of one corpus or several. Each clip with `use` and
    `draws_reference` is the target of a sample, whose references are drawn from the same speaker's other clips in
    the split; it has none if there are no others. Each dialogue of a clip with `use` is a sample with the references
    that it names, in whatever split of its corpus they are. references_per_sample: how many are drawn; fewer if the
    speaker has fewer other clips.
    `corpus`, int32 [rows of the index], numbers the corpora from 0.
    Raises InputError for named references that the index does not have.
    """

    def __init__(self, index: pa.Table, name: str, cost: LayoutCost, seed: int, references_per_sample: int) -> None:
        frames, text_tokens = _column(index, "frames"), _column(index, "text_tokens")
        in_split = pc.equal(index.column("split"), name).fill_null(False).to_numpy()
        usable = _column(index, "use") & in_split
        drawing = np.flatnonzero(usable & _column(index, "draws_reference")).astype(np.int32)
        several = "corpus" in index.column_names
        self.corpus: Int32s = _column(index, "corpus") if several else np.zeros(index.num_rows, dtype=np.int32)
        self.num_corpora = int(self.corpus.max(initial=0)) + 1
        speaker, num_speakers = _number_speakers(index, self.corpus, self.num_corpora)
        self.keys, self.seed = index.column("key"), seed
        named = Dialogues(index, self.corpus, np.flatnonzero(usable))
        candidates = np.flatnonzero(usable & (speaker < num_speakers)).astype(np.int32)
        rng = random_numbers(seed, Purpose.REFERENCES)
        self._drawn = DrawnReferences(speaker, number_recordings(index, self.corpus), candidates, drawing, rng)
        self._named = named.reference.astype(np.int32)
        drawn_references = np.minimum(self._drawn.num_others, references_per_sample)
        self._num_references = np.concatenate([drawn_references, named.num_references], dtype=np.int32)
        self._first_named = group_offsets(named.num_references)

        target = np.concatenate([drawing, named.target], dtype=np.int32)
        trained_frames = frames[drawing], _sums(named, frames[named.audio] * named.trained)
        self.samples = SplitSamples(
            target=target,
            dialogue=np.concatenate([np.full_like(drawing, -1), named.dialogue], dtype=np.int32),
            speaker=speaker[target],
            text_labels=np.concatenate([np.full_like(drawing, cost.text_labels), named.text_labels], dtype=np.int32),
            num_trained=np.concatenate([np.ones_like(drawing), _sums(named, named.trained)], dtype=np.int32),
            trained_frames=np.concatenate(trained_frames, dtype=np.int32),
        )
        columns = frames + np.int32(cost.columns_extra)
        waveform_samples = index.column("waveform_samples").to_numpy() if cost.tower_chunk_samples else frames
        beside_text = cost.reference_tokens(frames, waveform_samples)
        self._reference_tokens = text_tokens + beside_text
        # The length of a dialogue is complete; what drawn references add to the others is known once they are drawn.
        system_tokens = index.column("system_tokens").fill_null(cost.system_tokens).to_numpy()[drawing]
        drawing_tokens = text_tokens[drawing] + system_tokens + columns[drawing] + np.int32(cost.tokens_base)
        # The index counts the text-stream tokens around the codes of references; those go if codes are not shown.
        shown = beside_text - np.int32(cost.tokens_per_reference + cost.tokens_of_reference_codes)
        audio_tokens = np.where(named.trained, columns[named.audio], np.where(named.has_codes, shown[named.audio], 0))
        named_tokens = named.stream_tokens + _sums(named, audio_tokens)
        self._tokens = np.concatenate([drawing_tokens, named_tokens], dtype=np.int32)

    def describe_sample(self, sample: int) -> str:
        """The key of the sample's target, with the number of its corpus if there are several."""
        row = int(self.samples.target[sample])
        key: str = self.keys[row].as_py()
        return f"{key} of corpus {self.corpus[row] + 1}" if self.num_corpora > 1 else key

    def draw_epoch(
        self, epoch: int, repeat: Sequence[float] = (), share_without_reference: float = 0.0
    ) -> EpochSamples:
        """The samples of an epoch with their references.

        repeat: how many times an epoch takes a sample of each corpus, () for once. With 2.5, a seeded half of the
        samples is taken twice and the other half three times, and vice versa in the next epoch; with 0.25, each
        epoch takes the next quarter of a seeded order. After any number of epochs E, each sample has been taken
        repeat * E times, rounded down or up.
        share_without_reference: share of the samples with drawn references to leave without any, chosen each epoch.
        """
        taken_before, times = self._count_times(epoch, repeat)
        sample = np.repeat(np.arange(len(times), dtype=np.int32), times)
        # How many times each was taken before, in this epoch and the earlier ones. After k times, a sample with n
        # references gets the next n of its cyclic order: numbers k * n to k * n + n - 1.
        times_taken = places_in_groups(times) + np.repeat(taken_before, times)
        num_references = self._num_references[sample]
        is_named = sample >= len(self._drawn.num_others)
        can_draw = np.flatnonzero(~is_named & (num_references > 0))
        left_out = np.zeros(len(sample), dtype=bool)
        rng = random_numbers(self.seed, Purpose.WITHOUT_REFERENCE, epoch)
        if share_without_reference:
            left_out[rng.permutation(can_draw)[: round(share_without_reference * len(can_draw))]] = True
        num_references[left_out] = 0
        offsets = group_offsets(num_references).astype(np.int32)

        tokens = self._tokens[sample]
        reference = np.empty(offsets[-1], dtype=np.int32)
        drawn = can_draw[~left_out[can_draw]]
        for place in range(num_references[drawn].max(initial=0)):  # the first reference of each sample, the second...
            drawn = drawn[num_references[drawn] > place]
            rows = self._drawn.draw(sample[drawn], times_taken[drawn] * num_references[drawn] + place)
            reference[offsets[drawn] + place] = rows
            tokens[drawn] += self._reference_tokens[rows]
        # Named references lie side by side in `self._named`, as they shall in `reference`.
        named = np.flatnonzero(is_named)
        sizes = num_references[named]
        places = places_in_groups(sizes)
        first_named = self._first_named[sample[named] - len(self._drawn.num_others)]
        reference[np.repeat(offsets[named], sizes) + places] = self._named[np.repeat(first_named, sizes) + places]
        return EpochSamples(sample, tokens, reference, offsets, left_out)

    def _count_times(self, epoch: int, repeat: Sequence[float]) -> tuple[Int32s, Int32s]:
        """(times that each sample was taken before the epoch, times in it), each int32 [N].

        Systematic sampling: the samples of a corpus get shares evenly spread over 0 to 1, in seeded order; after E
        epochs, one with the share s has been taken floor(repeat * E + s) times.
        """
        before = np.full_like(self.samples.target, epoch)
        after = before + np.int32(1)
        for number, times in enumerate(repeat):
            if times == 1:
                continue
            mine = np.flatnonzero(self.corpus[self.samples.target] == number)
            rng = random_numbers(self.seed, Purpose.REPEAT, number)
            share = (rng.permutation(len(mine)) + 0.5) / max(1, len(mine))
            before[mine] = np.floor(times * epoch + share)
            after[mine] = np.floor(times * (epoch + 1) + share)
        return before, after - before


def _sums(named: Dialogues, values: Ints) -> Ints:
    """int64 [D]: sum of `values` [A] over the audios of each dialogue."""
    return np.bincount(named.audio_sample, values, minlength=len(named.target)).astype(np.int64)


def _number_speakers(index: pa.Table, corpus: Int32s, num_corpora: int) -> tuple[Int32s, int]:
    """(int32 [rows], S): a number below S per speaker and corpus; rows without a speaker have the number S."""
    names = index.column("speaker").combine_chunks().dictionary_encode()
    num_speakers = num_corpora * len(names.dictionary)
    speaker: Int32s = names.indices.fill_null(0).to_numpy() + corpus * np.int32(len(names.dictionary))
    speaker[names.is_null().to_numpy(zero_copy_only=False)] = num_speakers
    return speaker, num_speakers


def _column(index: pa.Table, name: str) -> Int32s:
    """int32 or bool [rows]: a column of the index that has no nulls."""
    column = index.column(name)
    assert column.null_count == 0, f"{name} has {column.null_count} nulls"
    numbers: Int32s = column.to_numpy()
    return numbers
