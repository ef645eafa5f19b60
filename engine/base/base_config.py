"""Config and tokenizer of a base model."""

import json
from pathlib import Path

from boson_multimodal.model.higgs_audio import HiggsAudioConfig
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from preprocess.common.errors import InputError


def has_audio_tower(config: HiggsAudioConfig) -> bool:
    """Whether checkpoints of this config hold Whisper's encoder. The released 3B base has none."""
    return not config.skip_audio_tower


def load_config(folder: Path | str) -> HiggsAudioConfig:
    """The config of a Higgs Audio base folder, checked for what this engine can train."""
    folder = Path(folder)
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(
            str(folder),
            "no config.json",
            "the folder of a Higgs Audio v2 base model",
            "Download bosonai/higgs-audio-v2-generation-3B-base (README: Models) and give its folder to --model.",
        )
    found = json.loads(path.read_text()).get("model_type")
    if found != HiggsAudioConfig.model_type:
        raise InputError(
            str(path),
            f"model_type {found!r}",
            repr(HiggsAudioConfig.model_type),
            "Give --model the folder of a Higgs Audio v2 base model.",
        )
    config = HiggsAudioConfig.from_pretrained(folder)
    _refuse_untrainable(path, config)
    return config


def _refuse_untrainable(path: Path, config: HiggsAudioConfig) -> None:
    wrong = []
    if config.use_audio_out_self_attention:
        wrong.append(("use_audio_out_self_attention true", "false"))
    if config.use_rq_transformer:
        wrong.append(("use_rq_transformer true", "false"))
    if has_audio_tower(config) and not config.encode_whisper_embed:
        wrong.append(("an audio tower (skip_audio_tower false) with encode_whisper_embed false", "true"))
    if has_audio_tower(config) and config.encode_audio_in_tokens:
        wrong.append(("an audio tower with encode_audio_in_tokens true", "false: references' codes are spoken"))
    if not config.use_delay_pattern:
        wrong.append(("use_delay_pattern false", "true, as the serve engine decodes it"))
    if config.audio_adapter_type == "dual_ffn_fast_forward" and 0 not in config.audio_dual_ffn_layers:
        # Boson's static cache takes its length from layer 0, which audio positions would skip: columns
        # overwrite each other in the serve engine.
        wrong.append((f"audio_dual_ffn_layers {config.audio_dual_ffn_layers} without layer 0", "layer 0 among them"))
    if wrong:
        raise InputError(
            str(path),
            "; ".join(found for found, _ in wrong),
            "; ".join(expected for _, expected in wrong),
            "Use the released base: neither this engine nor Boson's serve engine handles such a model rightly.",
        )


def load_tokenizer(folder: Path | str) -> PreTrainedTokenizerBase:
    """The text tokenizer of a base folder."""
    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
