"""Clips -> training samples, by Boson's own functions: prepare_chatml_sample and HiggsAudioSampleCollator.

A sample is what the serve engine would build for the same conversation, followed by the target's turn with labels.
No token id or shape is written here: they come from the tokenizer and the model's config.
"""

from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import torch
from boson_multimodal.data_collator.higgs_audio_collator import HiggsAudioBatchInput, HiggsAudioSampleCollator
from boson_multimodal.dataset.chatml_dataset import ChatMLDatasetSample, prepare_chatml_sample
from boson_multimodal.model.higgs_audio import HiggsAudioConfig
from transformers import PreTrainedTokenizerBase

from engine.batch.whisper import feature_extractor, waveform_chunks
from engine.plan.arrays import group_offsets
from engine.plan.samples import LayoutCost
from preprocess.common.errors import InputError, join_some
from preprocess.common.json_file import JsonObject
from preprocess.corpus.base_model import has_audio_tower
from preprocess.corpus.dialogue import IGNORE_INDEX, audios_of, read_dialogue, voice_cloning_dialogue
from preprocess.corpus.shards import INDEX_FILE, Clip

_FOREIGN = "The shard is not as preprocess.shard wrote it: run `python -m preprocess.verify` on the folder."


def build_sample(
    tokenizer: PreTrainedTokenizerBase,
    config: HiggsAudioConfig,
    system_text: str,
    stored: JsonObject,
    target: Clip,
    references: Sequence[Clip],
    conditioning: str = "codes",
) -> ChatMLDatasetSample:
    """Token ids, labels and codes of a dialogue of `target`, in Boson's own form.

    stored: the dialogue as read_dialogue takes it. references: the clips of its other audios, given to the model as
    `conditioning` says. In the result, `input_ids` and `label_ids` are int64 [text tokens]. They have one <|AUDIO|>
    per waveform chunk, before all other audios, and per audio of a user's turn; and one <|AUDIO_OUT|> per audio of
    the assistant. `audio_ids_concat` is int64 [codebooks, frames], the codes of all audios side by side, with none
    for a waveform. Only the turns that the dialogue trains have labels. Raises InputError naming the clip.
    """
    tower_clips = references if conditioning != "codes" else ()
    waveforms = [(clip.key, chunk) for clip in tower_clips for chunk in waveform_chunks(clip, config)]
    tower_audios, with_codes = [key for key, _ in waveforms], conditioning != "whisper"
    dialogue = read_dialogue(stored, target.key, system_text, tower_audios=tower_audios, with_codes=with_codes)
    input_ids, label_ids, audios, _ = prepare_chatml_sample(dialogue, tokenizer)
    if input_ids is None:
        raise InputError(
            f"clip {target.key}",
            "a dialogue that Boson's prepare_chatml_sample refuses (its reason is printed above)",
            "texts its tokenizer can encode",
            "Correct the row in the manifest and run preprocess.shard again.",
        )
    clips = {clip.key: clip for clip in [*references, target]}
    unknown = [audio.audio_url for audio in audios[len(waveforms) :] if audio.audio_url not in clips]
    if unknown:
        raise InputError(
            f"clip {target.key}",
            f"a dialogue with the audio of {join_some(unknown, 3)}",
            f"only those that {INDEX_FILE} names: {join_some(clips, 5)}",
            _FOREIGN,
        )
    codes = [clips[audio.audio_url].codes for audio in audios]
    codes[: len(waveforms)] = [target.codes[:, :0]] * len(waveforms)
    num_placeholders = [input_ids.count(token) for token in (config.audio_in_token_idx, config.audio_out_token_idx)]
    num_with_codes = sum(audio.has_codes for audio in audios_of(dialogue))
    if num_placeholders != [len(codes) - num_with_codes, num_with_codes]:
        raise InputError(
            f"clip {target.key}",
            f"{num_placeholders[0]} <|AUDIO|> tokens for {len(codes) - num_with_codes} audios of the user and "
            f"{num_placeholders[1]} <|AUDIO_OUT|> tokens for {num_with_codes} of the assistant",
            "one for each",
            "A transcript contains a special token: correct it in the manifest and run preprocess.shard again.",
        )
    for clip in clips.values():
        if len(clip.codes) != config.audio_num_codebooks:
            raise InputError(
                f"clip {clip.key}",
                f"codes of {len(clip.codes)} codebooks",
                f"{config.audio_num_codebooks}, as corpus.json says",
                _FOREIGN,
            )
    chunks = [chunk for _, chunk in waveforms]
    return ChatMLDatasetSample(
        input_ids=torch.tensor(input_ids),
        label_ids=torch.tensor(label_ids),
        audio_ids_concat=torch.from_numpy(np.concatenate(codes, axis=1).astype(np.int64)),
        audio_ids_start=torch.from_numpy(group_offsets([clip_codes.shape[1] for clip_codes in codes])[:-1]),
        audio_waveforms_concat=torch.from_numpy(np.concatenate([np.zeros(0, np.float32), *chunks])),
        audio_waveforms_start=torch.from_numpy(group_offsets([len(chunk) for chunk in chunks])[:-1]),
        audio_sample_rate=torch.tensor([feature_extractor(config).sampling_rate] * len(chunks)),
        audio_speaker_indices=torch.zeros(0),
    )


def audios_with_codes(sample: ChatMLDatasetSample, config: HiggsAudioConfig) -> list[int]:
    """Numbers of the audios with an <|AUDIO_OUT|>. As in Boson's collator, audios with an <|AUDIO|> count too."""
    has_codes = sample.input_ids == config.audio_out_token_idx
    is_audio = has_codes | (sample.input_ids == config.audio_in_token_idx)
    numbers: list[int] = has_codes[is_audio].nonzero().squeeze(1).tolist()
    return numbers


def make_collator(config: HiggsAudioConfig) -> HiggsAudioSampleCollator:
    """Boson's collator with the serve engine's settings: it lays out the delay pattern and the audio labels.

    For a base with an audio tower it also computes the mel features of the waveforms. It changes the label_ids of
    the samples it gets, so each sample can be used only once.
    """
    extractor = feature_extractor(config) if has_audio_tower(config) else None
    return HiggsAudioSampleCollator(
        whisper_processor=extractor and SimpleNamespace(feature_extractor=extractor),  # all it uses of a processor
        encode_whisper_embed=extractor is not None,
        chunk_size_seconds=extractor and extractor.chunk_length,
        audio_in_token_id=config.audio_in_token_idx,
        audio_out_token_id=config.audio_out_token_idx,
        audio_stream_bos_id=config.audio_stream_bos_id,
        audio_stream_eos_id=config.audio_stream_eos_id,
        pad_token_id=config.pad_token_id,
        return_audio_in_tokens=False,
        use_delay_pattern=config.use_delay_pattern,
        audio_num_codebooks=config.audio_num_codebooks,
        round_to=1,
    )


def make_padded_batch(samples: Sequence[ChatMLDatasetSample], config: HiggsAudioConfig) -> HiggsAudioBatchInput:
    """Boson's padded batch of `samples`, for HiggsAudioModel.forward."""
    return make_collator(config)(list(samples))


def layout_cost(
    tokenizer: PreTrainedTokenizerBase, config: HiggsAudioConfig, system_text: str, conditioning: str = "codes"
) -> LayoutCost:
    """Tokens of a sample besides those of its texts, frames and waveforms, counted on samples with empty texts.

    Boson encodes each text separately, so the tokens of a sample are these plus those of its texts.
    """
    references_have_codes, with_waveforms = conditioning != "whisper", conditioning != "codes"

    def text_stream(num_references: int, with_codes: bool = True) -> tuple[list[int], list[int]]:
        references = [("", "reference")] * num_references
        dialogue = voice_cloning_dialogue("", references, "", "target", with_codes=with_codes)
        input_ids, label_ids, _, _ = prepare_chatml_sample(dialogue, tokenizer)
        return input_ids, label_ids

    # Less one for each <|AUDIO_OUT|>, which stands for audio columns.
    alone, labels = text_stream(0)
    with_codes = len(text_stream(1)[0]) - 1
    with_reference = len(text_stream(1, references_have_codes)[0]) - references_have_codes
    num_labels = sum(label not in (IGNORE_INDEX, config.audio_out_token_idx) for label in labels)
    return LayoutCost(
        tokens_base=len(alone) - 1,
        tokens_per_reference=with_reference - len(alone),
        columns_extra=2 + config.audio_num_codebooks - 1,
        text_labels=num_labels,
        system_tokens=len(tokenizer.encode(system_text, add_special_tokens=False)),
        references_have_codes=references_have_codes,
        tokens_of_reference_codes=with_codes - with_reference,
        tower_chunk_samples=feature_extractor(config).n_samples if with_waveforms else 0,
        hop_samples=feature_extractor(config).hop_length if with_waveforms else 0,
    )
