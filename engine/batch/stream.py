"""Samples of a pack -> one flat token stream without padding, with everything the packed forward needs to index it.

Two orders of the same L tokens: in *stream order* samples stand side by side, as attention reads them; in *split
order* all text tokens come first and all audio columns after, so that the two FFNs of a DualFFN layer are slices.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from boson_multimodal.dataset.chatml_dataset import ChatMLDatasetSample
from boson_multimodal.model.higgs_audio import HiggsAudioConfig
from boson_multimodal.model.higgs_audio.utils import build_delay_pattern_mask

from engine.batch.sample import audios_with_codes
from engine.batch.whisper import feature_extractor
from engine.plan.samples import tower_outputs
from preprocess.corpus.base_model import has_audio_tower
from preprocess.corpus.dialogue import IGNORE_INDEX


@dataclass
class TowerInput:
    """The waveforms of a pack: N chunks, perhaps none, that become F of the text tokens."""

    features: torch.Tensor  # [N, mel bins, mel frames]
    feature_mask: torch.Tensor  # int32 [N, mel frames]
    outputs: torch.Tensor  # int64 [F] among the tower's outputs of all chunks, flattened
    rows: torch.Tensor  # int64 [F] among the text tokens


@dataclass
class Stream:
    """A pack as flat tensors: T text tokens, A audio columns, L = T + A, S samples."""

    text_tokens: torch.Tensor  # int64 [T]
    audio_columns: torch.Tensor  # int64 [codebooks, A], delay pattern and stream BOS / EOS laid out
    split_to_stream: torch.Tensor  # int64 [L]: stream position n is row split_to_stream[n] of the split order
    stream_to_split: torch.Tensor  # int64 [L]: the inverse
    position_ids: torch.Tensor  # int64 [L] in stream order, counted inside each sample
    segments: torch.Tensor  # int32 [S + 1] where samples begin in stream order
    text_segments: torch.Tensor  # int32 [S + 1] where samples begin among the text tokens
    longest_segment: int
    longest_text_segment: int
    text_predict: torch.Tensor  # int64 [labelled] split rows whose hidden state predicts a text label
    text_labels: torch.Tensor  # int64 [labelled]
    audio_predict: torch.Tensor  # int64 [labelled columns] split rows that predict a labelled column
    audio_labels: torch.Tensor  # int64 [labelled columns, codebooks], -100 where a codebook has no label
    voice: torch.Tensor  # int64 [A] whose voice a column is: 2n of sample n's references, 2n + 1 of its target
    speakers: torch.Tensor  # int64 [S] numbers of the samples' speakers
    tower: TowerInput | None = None  # where the base has an audio tower


def map_tensors(batch: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """A batch dataclass (a Stream, or Boson's padded one) with `change` applied to each of its tensors."""

    def changed(value: Any) -> Any:
        if isinstance(value, TowerInput):
            return map_tensors(value, change)
        return change(value) if isinstance(value, torch.Tensor) else value

    return type(batch)(**{field.name: changed(getattr(batch, field.name)) for field in dataclasses.fields(batch)})


def lay_out(
    samples: Sequence[ChatMLDatasetSample],
    config: HiggsAudioConfig,
    speakers: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Stream:
    """The flat stream of `samples`, the same tokens, columns and labels as Boson's collator and merge make.

    speakers: a number a sample, for the reference consistency; without it all are one speaker. dtype: of the mel
    features; the tower casts them to its own first of all, so given here it changes no bit and bf16 takes half.
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
        lengths = []
        for number, is_trained in zip(audios_with_codes(sample, config), trained.tolist(), strict=True):
            codes = sample.get_audio_codes(number)
            audio, audio_labels = _delayed(codes, is_trained, config)
            columns.append(audio)
            column_labels.append(audio_labels)
            lengths.append(audio.shape[1])
            voice.append(torch.full((audio.shape[1],), 2 * place + is_trained))
        repeats[is_audio] = torch.tensor(lengths)
        # What nothing hears takes no place: Boson's merge leaves a hole there that attention and positions pass over.
        num_outputs = [tower_outputs(len(waveform), hop_length) for waveform in waveforms] or [0]
        repeats[goes_to_tower] = torch.tensor(num_outputs, dtype=torch.int64)
        tokens.append(sample.input_ids.repeat_interleave(repeats))
        labels.append(sample.label_ids.masked_fill(is_audio, IGNORE_INDEX).repeat_interleave(repeats))

    stream, text_labels = torch.cat(tokens), torch.cat(labels)
    audio_columns, audio_labels = torch.cat(columns, dim=1), torch.cat(column_labels, dim=1).T
    is_audio = stream == config.audio_out_token_idx
    stream_to_split = torch.cat([(~is_audio).nonzero(), is_audio.nonzero()]).squeeze(1)
    split_to_stream = torch.empty_like(stream_to_split)
    split_to_stream[stream_to_split] = torch.arange(len(stream))
    lengths = torch.tensor([len(sample) for sample in tokens])
    text_lengths = torch.tensor([int((sample != config.audio_out_token_idx).sum()) for sample in tokens])

    # The shift by one: position n - 1 predicts the label at n. No first position of a sample bears a label, so
    # nothing is predicted across a border.
    labelled_text = (text_labels != IGNORE_INDEX).nonzero().squeeze(1)
    labelled_columns = (audio_labels != IGNORE_INDEX).any(1).nonzero().squeeze(1)
    num_text = int(text_lengths.sum())
    goes_to_tower = stream[~is_audio] == config.audio_in_token_idx
    tower = (
        _tower_input(chunks, goes_to_tower.nonzero().squeeze(1), config, dtype) if has_audio_tower(config) else None
    )
    return Stream(
        text_tokens=stream[~is_audio],
        audio_columns=audio_columns,
        split_to_stream=split_to_stream,
        stream_to_split=stream_to_split,
        position_ids=torch.cat([torch.arange(length) for length in lengths.tolist()]),
        segments=_borders(lengths),
        text_segments=_borders(text_lengths),
        longest_segment=int(lengths.max()),
        longest_text_segment=int(text_lengths.max()),
        text_predict=split_to_stream[labelled_text - 1],
        text_labels=text_labels[labelled_text],
        audio_predict=num_text + labelled_columns - 1,
        audio_labels=audio_labels[labelled_columns],
        voice=torch.cat(voice),
        speakers=torch.tensor(speakers or [0] * len(samples)),
        tower=tower,
    )


def _tower_input(
    chunks: list[np.ndarray], rows: torch.Tensor, config: HiggsAudioConfig, dtype: torch.dtype
) -> TowerInput:
    """Mel features of `chunks`, and which outputs of the tower go into the text rows `rows`."""
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
        return build_delay_pattern_mask(framed, bos_token_id=fill_begin, pad_token_id=fill_end)[0].squeeze(0)

    bos, eos = config.audio_stream_bos_id, config.audio_stream_eos_id
    columns = delay(bos, eos, bos, eos)
    if not trained:
        return columns, torch.full_like(columns, IGNORE_INDEX)
    return columns, delay(IGNORE_INDEX, eos, IGNORE_INDEX, IGNORE_INDEX)


def _borders(lengths: torch.Tensor) -> torch.Tensor:
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).to(torch.int32)
