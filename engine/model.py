"""The base model: load it, refuse what can't be trained, and name it by a fingerprint."""

import hashlib
import json
from pathlib import Path

import torch
from boson_multimodal.model.higgs_audio import HiggsAudioConfig, HiggsAudioModel
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from engine.whisper import has_audio_tower
from preprocess.errors import InputError

# Of each weight file: its header (names, shapes, dtypes) and this many blocks spread over it. Hashing all of a
# 12 GB base on every start would cost more than it tells.
_FINGERPRINT_BLOCKS = 64
_FINGERPRINT_BLOCK_BYTES = 65536


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


def load_base(folder: Path | str, dtype: torch.dtype) -> HiggsAudioModel:
    """Boson's model with the base weights in `dtype`, all frozen, in training mode."""
    model = HiggsAudioModel.from_pretrained(
        folder, config=load_config(folder), torch_dtype=dtype, attn_implementation="sdpa", local_files_only=True
    )
    model.requires_grad_(False)
    return model.train()


def base_fingerprint(folder: Path | str) -> str:
    """sha256 over config.json and, of each weight file, its size, its header and blocks spread over its bytes."""
    folder = Path(folder)
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for path in sorted(folder.glob("*.safetensors")):
        size_bytes = path.stat().st_size
        digest.update(f"{path.name}:{size_bytes}".encode())
        with open(path, "rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            digest.update(file.read(header_bytes))
            for block in range(_FINGERPRINT_BLOCKS):
                file.seek(block * size_bytes // _FINGERPRINT_BLOCKS)
                digest.update(file.read(_FINGERPRINT_BLOCK_BYTES))
    return digest.hexdigest()
