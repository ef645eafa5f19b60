"""The layout of transformers 5 (`model_type: higgs_audio_v2`), which the hub's main holds, in terms of Boson's own.

The names and values are those of transformers.models.higgs_audio_v2: every layer has both FFNs, of one size, and the
config is flat. Boson's config also has numbers of tokens that only the tokenizer knows here, and the native one the
number of a token that stands for the last columns of an audio.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import Field

from preprocess.common.json_file import JsonObject
from preprocess.common.record import Form

Layout = Literal["boson", "transformers"]
MODEL_TYPE = "higgs_audio_v2"
# Files of older code hold these constants, which the model computes from its config.
COMPUTED = re.compile(r"(.*\.)?(audio_codebook_weights|rotary_emb\.(\w+\.)*inv_freq)")
Size = Annotated[int, Field(ge=1, le=1 << 24)]
TokenId = Annotated[int, Field(ge=0, le=1 << 24)]

_RENAMED = {
    "model.embed_audio_tokens.embed_audio_tokens.weight": "audio_codebook_embeddings.weight",
    "text_lm_head.weight": "audio_decoder_proj.text_lm_head.weight",
    "audio_lm_head.weight": "audio_decoder_proj.audio_lm_head.weight",
}
_HUB_COPIES = {*_RENAMED.values()}  # the hub's files keep the heads under their old names too; nothing reads these
_SAME = re.compile(r"model\.((embed_tokens|norm)\.weight|layers\.\d+\.[\w.]+)")
# {key of Boson's config: the token of which it is the number}
_TOKENS = {"audio_in_token_idx": "<|AUDIO|>", "audio_eos_token_id": "<|audio_eos|>"}
DELAY_TOKEN = "<|reserved_special_token_6|>"
# Keys of Boson's text_config with the same name and meaning.
_TEXT_KEYS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act"),
    *("num_key_value_heads", "max_position_embeddings", "initializer_range", "rms_norm_eps", "pretraining_tp"),
    *("attention_bias", "attention_dropout", "mlp_bias", "head_dim", "bos_token_id", "eos_token_id", "pad_token_id"),
)


class RopeForm(Form):
    """transformers' RopeParameters; the rest is checked with Boson's config."""

    rope_theta: Annotated[float, Field(gt=0)]
    rope_type: str = "default"


class NativeForm(Form):
    """What of the flat config decides names and shapes; the rest is checked with Boson's config."""

    num_hidden_layers: Annotated[int, Field(ge=1, le=1 << 12)]
    num_codebooks: Size
    codebook_size: Annotated[int, Field(ge=3, le=1 << 16)]
    audio_token_id: TokenId
    audio_bos_token_id: TokenId
    audio_stream_bos_id: TokenId
    audio_stream_eos_id: TokenId
    pad_token_id: TokenId
    rope_parameters: RopeForm


def boson_name(name: str) -> str | None:
    """Boson's name of a native tensor; None for one that nothing reads; a name that is none stays as it is."""
    if name in _HUB_COPIES or COMPUTED.fullmatch(name):
        return None
    same = _SAME.fullmatch(name)
    return same[1] if same else _RENAMED.get(name, name)


def native_name(name: str) -> str:
    """The native name of a tensor of Boson's; the inverse of `boson_name`."""
    return {boson: native for native, boson in _RENAMED.items()}.get(name, f"model.{name}")


def boson_config(native: JsonObject, token_ids: dict[str, int]) -> JsonObject:
    """config.json in Boson's layout. native: one that fits NativeForm. token_ids: {special token: its number}.

    Raises KeyError for a special token that the tokenizer lacks.
    """
    rope: dict[str, Any] = dict(native["rope_parameters"])
    theta = rope.pop("rope_theta")
    text = {key: native[key] for key in _TEXT_KEYS if key in native} | {"model_type": "llama", "rope_theta": theta}
    text["rope_scaling"] = None if rope.get("rope_type", "default") == "default" else rope
    text["tie_word_embeddings"] = False
    return {
        "model_type": "higgs_audio",
        "architectures": ["HiggsAudioModel"],
        "text_config": text,
        "audio_adapter_type": "dual_ffn_fast_forward",
        "audio_dual_ffn_layers": list(range(native["num_hidden_layers"])),
        "audio_num_codebooks": native["num_codebooks"],
        "audio_codebook_size": native["codebook_size"] - 2,  # here it counts the stream's start and end
        "audio_stream_bos_id": native["audio_stream_bos_id"],
        "audio_stream_eos_id": native["audio_stream_eos_id"],
        "audio_out_token_idx": native["audio_token_id"],
        "audio_out_bos_token_id": native["audio_bos_token_id"],
        **{key: token_ids[token] for key, token in _TOKENS.items()},
        "pad_token_id": native["pad_token_id"],
        "encode_whisper_embed": False,
        "encode_audio_in_tokens": False,
        "skip_audio_tower": True,
        "use_delay_pattern": True,
        "torch_dtype": native.get("dtype") or native.get("torch_dtype") or "bfloat16",
    }


def native_config(boson: JsonObject, token_ids: dict[str, int]) -> JsonObject:
    """The flat config of a model in Boson's layout: `boson` is its whole config.json, with every default filled in.

    Raises ValueError, with (found, expected) of each value that this layout can't express.
    """
    text = boson["text_config"]
    layers = list(range(text["num_hidden_layers"]))
    wrong = [
        (f"{key} = {found!r:.60}", f"{expected!r:.60}")
        for key, found, expected in (
            ("audio_adapter_type", boson["audio_adapter_type"].removesuffix("_fast_forward"), "dual_ffn"),
            ("audio_dual_ffn_layers", sorted(boson["audio_dual_ffn_layers"] or []), layers),
            ("skip_audio_tower", boson["skip_audio_tower"], True),
            ("audio_decoder_proj_num_layers", boson["audio_decoder_proj_num_layers"], 0),
            ("use_audio_out_embed_projector", boson["use_audio_out_embed_projector"], False),
            ("audio_embed_avg", boson["audio_embed_avg"], False),
        )
        if found != expected
    ]
    if DELAY_TOKEN not in token_ids:
        wrong.append((f"a tokenizer without {DELAY_TOKEN}", "that token, which stands for an audio's last columns"))
    if wrong:
        raise ValueError(wrong)
    rope = dict(text["rope_scaling"] or {})
    rope["rope_type"] = rope.pop("type", None) or rope.get("rope_type", "default")
    return {
        **{key: text[key] for key in _TEXT_KEYS if text.get(key) is not None},
        "model_type": MODEL_TYPE,
        "architectures": ["HiggsAudioV2ForConditionalGeneration"],
        **({"dtype": boson["torch_dtype"]} if boson.get("torch_dtype") else {}),
        "rope_parameters": {**rope, "rope_theta": text["rope_theta"]},
        "tie_word_embeddings": False,
        "eos_token_id": token_ids["<|eot_id|>"],  # its generation has no stop strings
        "pad_token_id": boson["pad_token_id"],
        "num_codebooks": boson["audio_num_codebooks"],
        "codebook_size": boson["audio_codebook_size"] + 2,
        "audio_stream_bos_id": boson["audio_stream_bos_id"],
        "audio_stream_eos_id": boson["audio_stream_eos_id"],
        "audio_token_id": boson["audio_out_token_idx"],
        "audio_bos_token_id": boson["audio_out_bos_token_id"],
        "audio_delay_token_id": token_ids[DELAY_TOKEN],
        "use_cache": True,
    }
