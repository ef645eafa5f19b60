"""Samples of a pack -> one flat token stream without padding, with everything the packed forward needs to index it.

The same L tokens have two orders. In *stream order*, which attention uses, samples lie side by side. In *split
order*, all text tokens come first and all audio columns after them, so that each FFN of a DualFFN layer gets a slice.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from boson_multimodal.data_collator.higgs_audio_collator import HiggsAudioBatchInput
from boson_multimodal.dataset.chatml_dataset import ChatMLDatasetSample
from boson_multimodal.model.higgs_audio import HiggsAudioConfig
from boson_multimodal.model.higgs_audio.utils import build_delay_pattern_mask

from engine.batch.sample import audios_with_codes
from engine.batch.whisper import feature_extractor
from engine.plan.samples import tower_outputs
from preprocess.corpus.base_model import has_audio_tower
from preprocess.corpus.dialogue import IGNORE_INDEX

T = TypeVar("T")


@dataclass
class TowerInput:
    """The waveforms of a pack: N chunks, perhaps none, whose F tower outputs replace text tokens."""

    features: torch.Tensor  # [N, mel bins, mel frames]
    feature_mask: torch.Tensor  # int32 [N, mel frames]
    outputs: torch.Tensor  # int64 [F] positions in the tower's outputs of all chunks, flattened
    rows: torch.Tensor  # int64 [F] positions in the text tokens


@dataclass
class Stream:
    """A pack as flat tensors: T text tokens, A audio columns, L = T + A, S samples."""

    text_tokens: torch.Tensor  # int64 [T]
    audio_columns: torch.Tensor  # int64 [codebooks, A], in the delay pattern, with stream BOS and EOS
    split_to_stream: torch.Tensor  # int64 [L]: stream position n is row split_to_stream[n] of the split order
    stream_to_split: torch.Tensor  # int64 [L]: the inverse
    position_ids: torch.Tensor  # int64 [L] in stream order, from 0 in each sample
    segments: torch.Tensor  # int32 [S + 1] where samples begin in stream order, and L
    text_segments: torch.Tensor  # int32 [S + 1] where samples begin in the text tokens, and T
    longest_segment: int
    longest_text_segment: int
    text_predict: torch.Tensor  # int64 [labelled] split rows whose hidden state predicts a text label
    text_labels: torch.Tensor  # int64 [labelled]
    audio_predict: torch.Tensor  # int64 [labelled columns] split rows that predict a labelled column
    audio_labels: torch.Tensor  # int64 [labelled columns, codebooks], -100 where a codebook has no label
    voice: torch.Tensor  # int64 [A] speaker's voice per column: 2n in references of sample n, 2n + 1 in its target
    speakers: torch.Tensor  # int64 [S] number of each sample's speaker
    tower: TowerInput | None = None  # only if the base has an audio tower


Batch: TypeAlias = Stream | HiggsAudioBatchInput


def map_tensors(batch: T, change: Callable[[torch.Tensor], torch.Tensor]) -> T:
    """A copy of a Batch or TowerInput with `change` applied to each of its tensors."""
    result = copy.copy(batch)
    for name, value in vars(batch).items():
        if isinstance(value, torch.Tensor):
            setattr(result, name, change(value))
        elif isinstance(value, TowerInput):
            setattr(result, name, map_tensors(value, change))
    return result


def make_stream(
    samples: Sequence[ChatMLDatasetSample],
    config: HiggsAudioConfig,
    speakers: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Stream:
    """The flat stream of `samples`: the same tokens, columns and labels as by Boson's collator and merge.

    speakers: one number per sample, for the reference consistency loss; without it, all are of one speaker. dtype:
    of the mel features. The tower casts them to its own dtype anyway, so casting here only saves memory.
    """
    tokens, labels, columns, column_labels, voice, chunks = [], [], [], [], [], []
    hop_length = feature_extractor(config).hop_length if has_audio_tower(config) else 0
    for place, sample in enumerate(samples):
        is_audio = sample.input_ids == config.audio_out_token_idx
        goes_to_tower = sample.input_ids == config.audio_in_token_idx
        waveforms = [sample.get_wv(number)[0].numpy() for number in range(len(sample.audio_waveforms_start))]
        chunks += waveforms
        trained = sample.label_ids[is_audio] != IGNORE_INDEX
        repeats = torch.ones_like(sample.input_ids)
        num_columns = []
        for number, is_trained in zip(audios_with_codes(sample, config), trained.tolist(), strict=True):
            audio, audio_labels = _delayed(sample.get_audio_codes(number), is_trained, config)
            columns.append(audio)
            column_labels.append(audio_labels)
            num_columns.append(audio.shape[1])
            voice.append(torch.full((audio.shape[1],), 2 * place + is_trained))
        repeats[is_audio] = torch.tensor(num_columns)
        # An <|AUDIO|> without a waveform gets no position: Boson's merge leaves a hole that attention and positions
        # skip.
        num_outputs = [tower_outputs(len(waveform), hop_length) for waveform in waveforms] or [0]
        repeats[goes_to_tower] = torch.tensor(num_outputs, dtype=torch.int64)
        tokens.append(sample.input_ids.repeat_interleave(repeats))
        labels.append(sample.label_ids.masked_fill(is_audio, IGNORE_INDEX).repeat_interleave(repeats))

    stream, text_labels = torch.cat(tokens), torch.cat(labels)
    audio_columns, audio_labels = torch.cat(columns, dim=1), torch.cat(column_labels, dim=1).T
    is_audio = stream == config.audio_out_token_idx
    stream_to_split = torch.cat([(~is_audio).nonzero(), is_audio.nonzero()]).squeeze(1)
    split_to_stream = stream_to_split.argsort()
    lengths = torch.tensor([len(sample) for sample in tokens])
    text_lengths = torch.tensor([int((sample != config.audio_out_token_idx).sum()) for sample in tokens])

    # Position n - 1 predicts the label at n. The first position of a sample has no label, so no position predicts
    # across the border between two samples.
    labelled_text = (text_labels != IGNORE_INDEX).nonzero().squeeze(1)
    labelled_columns = (audio_labels != IGNORE_INDEX).any(1).nonzero().squeeze(1)
    num_text = int(text_lengths.sum())
    tower_rows = (stream[~is_audio] == config.audio_in_token_idx).nonzero().squeeze(1)
    return Stream(
        text_tokens=stream[~is_audio],
        audio_columns=audio_columns,
        split_to_stream=split_to_stream,
        stream_to_split=stream_to_split,
        position_ids=torch.cat([torch.arange(length) for length in lengths.tolist()]),
        segments=_offsets(lengths),
        text_segments=_offsets(text_lengths),
        longest_segment=int(lengths.max()),
        longest_text_segment=int(text_lengths.max()),
        text_predict=split_to_stream[labelled_text - 1],
        text_labels=text_labels[labelled_text],
        audio_predict=num_text + labelled_columns - 1,
        audio_labels=audio_labels[labelled_columns],
        voice=torch.cat(voice),
        speakers=torch.tensor(speakers or [0] * len(samples)),
        tower=_tower_input(chunks, tower_rows, config, dtype) if has_audio_tower(config) else None,
    )


def _tower_input(
    chunks: list[npt.NDArray[np.float32]], rows: torch.Tensor, config: HiggsAudioConfig, dtype: torch.dtype
) -> TowerInput:
    """Mel features of waveform chunks, and which outputs of the tower replace the text tokens at `rows`."""
    extractor = feature_extractor(config)
    if chunks:
        found = extractor(
            chunks, sampling_rate=extractor.sampling_rate, return_attention_mask=True, padding="max_length"
        )
        features = torch.from_numpy(found["input_features"])
        mask = torch.from_numpy(found["attention_mask"])
    else:
        features = torch.zeros(0, extractor.feature_size, extractor.nb_max_frames)
        mask = torch.zeros(0, extractor.nb_max_frames, dtype=torch.int32)
    per_chunk = tower_outputs(extractor.n_samples, extractor.hop_length)
    outputs = [
        torch.arange(tower_outputs(len(chunk), extractor.hop_length)) + number * per_chunk
        for number, chunk in enumerate(chunks)
    ]
    return TowerInput(features.to(dtype), mask, torch.cat([torch.zeros(0, dtype=torch.int64), *outputs]), rows)


def _delayed(codes: torch.Tensor, trained: bool, config: HiggsAudioConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """(columns, labels), both [codebooks, frames + codebooks + 1], of one audio's codes [codebooks, frames]."""

    def delay(begin: int, end: int, fill_begin: int, fill_end: int) -> torch.Tensor:
        edge = codes.new_ones((codes.shape[0], 1))
        framed = torch.cat([edge * begin, codes, edge * end], dim=1).unsqueeze(0)
        delayed: torch.Tensor = build_delay_pattern_mask(framed, bos_token_id=fill_begin, pad_token_id=fill_end)[0]
        return delayed.squeeze(0)

    bos, eos = config.audio_stream_bos_id, config.audio_stream_eos_id
    columns = delay(bos, eos, bos, eos)
    if not trained:
        return columns, torch.full_like(columns, IGNORE_INDEX)
    return columns, delay(IGNORE_INDEX, eos, IGNORE_INDEX, IGNORE_INDEX)


def _offsets(lengths: torch.Tensor) -> torch.Tensor:
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).to(torch.int32)
