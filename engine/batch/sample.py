"""Clips -> training samples, by Boson's own functions: prepare_chatml_sample and HiggsAudioSampleCollator.

What comes out is what the serve engine would build for the same conversation, followed by the target's turn
with labels. Nothing here knows a token id or a shape: they come from the tokenizer and the model's config.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from boson_multimodal.data_collator.higgs_audio_collator import HiggsAudioBatchInput, HiggsAudioSampleCollator
from boson_multimodal.dataset.chatml_dataset import ChatMLDatasetSample, prepare_chatml_sample
from boson_multimodal.model.higgs_audio import HiggsAudioConfig
from transformers import PreTrainedTokenizerBase

from engine.batch.whisper import feature_extractor, waveform_chunks, whisper_processor
from engine.plan.plan import LayoutCost
from preprocess.common.errors import InputError
from preprocess.corpus.dialogue import IGNORE_INDEX, audios_of, read_dialogue, voice_cloning_dialogue
from preprocess.corpus.shards import Clip


def build_sample(
    tokenizer: PreTrainedTokenizerBase,
    config: HiggsAudioConfig,
    system_text: str,
    stored: Mapping,
    target: Clip,
    references: Sequence[Clip],
    conditioning: str = "codes",
) -> ChatMLDatasetSample:
    """The sample that a dialogue of `target` is: token ids, labels and codes of every audio, in Boson's own form.

    stored: the dialogue as read_dialogue takes it. references: the clips of its other audios, shown as `conditioning`
    says (engine.batch.whisper). In the result `input_ids` and `label_ids` are int64 [text tokens], with
    one <|AUDIO|> a chunk of a waveform, all of them first, or an audio that nothing hears, and one <|AUDIO_OUT|> an
    audio of the assistant; `audio_ids_concat` is int64 [codebooks, frames] of all audios side by side, a waveform's
    being empty. Labels stand in the turns that the dialogue trains. Raises InputError naming the clip.
    """
    waveforms = []
    if conditioning != "codes":
        waveforms = [(clip.key, chunk) for clip in references for chunk in waveform_chunks(clip, config)]
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
            "A transcript spells a special token: correct it in the manifest and run preprocess.shard again.",
        )
    for clip in clips.values():
        if len(clip.codes) != config.audio_num_codebooks:
            raise InputError(
                f"clip {clip.key}",
                f"codes of {len(clip.codes)} codebooks",
                f"{config.audio_num_codebooks}, as corpus.json says",
                "The shard is not what preprocess.shard wrote: run `python -m preprocess.verify` on the folder.",
            )
    starts = np.cumsum([0] + [clip_codes.shape[1] for clip_codes in codes[:-1]])
    chunks = [chunk for _, chunk in waveforms]
    chunk_starts = np.cumsum([0] + [len(chunk) for chunk in chunks], dtype=np.int64)[:-1]
    sample_rates_hz = [feature_extractor(config).sampling_rate] * len(chunks)
    return ChatMLDatasetSample(
        input_ids=torch.tensor(input_ids),
        label_ids=torch.tensor(label_ids),
        audio_ids_concat=torch.from_numpy(np.concatenate(codes, axis=1).astype(np.int64)),
        audio_ids_start=torch.from_numpy(starts),
        audio_waveforms_concat=torch.from_numpy(np.concatenate([np.zeros(0, np.float32), *chunks])),
        audio_waveforms_start=torch.from_numpy(chunk_starts),
        audio_sample_rate=torch.tensor(sample_rates_hz),
        audio_speaker_indices=torch.zeros(0),
    )


def audios_with_codes(sample: ChatMLDatasetSample, config: HiggsAudioConfig) -> list[int]:
    """Which audio of a sample each <|AUDIO_OUT|> stands for, counted as Boson's collator does: <|AUDIO|> too."""
    is_spoken = sample.input_ids == config.audio_out_token_idx
    is_audio = is_spoken | (sample.input_ids == config.audio_in_token_idx)
    return is_spoken[is_audio].nonzero().squeeze(1).tolist()


def make_collator(config: HiggsAudioConfig) -> HiggsAudioSampleCollator:
    """Boson's collator with the serve engine's settings: it lays out the delay pattern and the audio labels.

    Where the base has an audio tower it computes the waveforms' mel features too. It writes into the label_ids of
    the samples it is given: build a sample anew for each use.
    """
    processor = whisper_processor(config)
    return HiggsAudioSampleCollator(
        whisper_processor=processor,
        encode_whisper_embed=processor is not None,
        chunk_size_seconds=processor and processor.feature_extractor.chunk_length,
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


def collate(samples: Sequence[ChatMLDatasetSample], config: HiggsAudioConfig) -> HiggsAudioBatchInput:
    """Boson's padded batch of `samples`, for HiggsAudioModel.forward."""
    return make_collator(config)(list(samples))


def layout_cost(
    tokenizer: PreTrainedTokenizerBase, config: HiggsAudioConfig, system_text: str, conditioning: str = "codes"
) -> LayoutCost:
    """What a sample costs besides its texts, frames and waveforms, read off samples whose texts are empty.

    Boson encodes each text by itself, so the tokens of a sample are these plus those of its texts.
    """
    references_have_codes, with_waveforms = conditioning != "whisper", conditioning != "codes"

    def text_stream(num_references: int, with_codes: bool = True) -> tuple[list[int], list[int]]:
        references = [("", "reference")] * num_references
        dialogue = voice_cloning_dialogue("", references, "", "target", with_codes=with_codes)
        input_ids, label_ids, _, _ = prepare_chatml_sample(dialogue, tokenizer)
        return input_ids, label_ids

    alone, labels = text_stream(0)
    with_codes, with_reference = (
        len(text_stream(1)[0]) - 1,
        len(text_stream(1, references_have_codes)[0]) - references_have_codes,
    )
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
