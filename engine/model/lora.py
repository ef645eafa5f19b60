"""LoRA on Boson's model: the targets of each mode, found in the loaded model, under PEFT."""

import re

from boson_multimodal.model.higgs_audio import HiggsAudioModel
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from engine.base.recipe import Lora
from engine.base.zero import trainable_parameters
from preprocess.common.errors import InputError

_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_FFN = ("gate_proj", "up_proj", "down_proj")
_HEADS = {"audio_head": "audio_decoder_proj.audio_lm_head", "text_head": "audio_decoder_proj.text_lm_head"}
_PROJECTOR = "audio_encoder_proj.linear"


def find_targets(model: HiggsAudioModel, mode: str, conditioning: str = "codes") -> list[str]:
    """Full names of the linear layers that `mode` adapts, in the model's order.

    attention: q, k, v, o of every layer. audio: attention and audio_mlp of the DualFFN layers, audio head.
    full: attention, mlp and audio_mlp of every layer, both heads, and the audio tower's projector where
    `conditioning` lets the model hear waveforms.
    Embeddings and the audio tower are never targets. Raises InputError that lists the names there are.
    """
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    targets = [name for name in linears if _is_target(name, mode, _dual_ffn_layers(model))]
    if conditioning == "codes":
        targets = [name for name in targets if name != _PROJECTOR]
    if not targets:
        raise InputError(
            f"lora.mode={mode}",
            f"no layer to adapt among {', '.join(linears[:40])}",
            "attention and FFN projections under layers.N",
            "Give --model the folder of a Higgs Audio v2 base model.",
        )
    return targets


def _dual_ffn_layers(model: HiggsAudioModel) -> set[int]:
    return {index for index, layer in enumerate(model.layers) if hasattr(layer, "audio_mlp")}


def _is_target(name: str, mode: str, dual_ffn_layers: set[int]) -> bool:
    match = re.fullmatch(r"layers\.(\d+)\.(self_attn|mlp|audio_mlp)\.(\w+)", name)
    if match:
        layer, part, projection = int(match[1]), match[2], match[3]
        if part == "self_attn":
            return projection in _ATTENTION and (mode != "audio" or layer in dual_ffn_layers)
        return projection in _FFN and (mode == "full" or (mode == "audio" and part == "audio_mlp"))
    if mode == "full":
        return name in (*_HEADS.values(), _PROJECTOR)
    return mode == "audio" and name == _HEADS["audio_head"]


def add_lora(model: HiggsAudioModel, lora: Lora, conditioning: str = "codes") -> PeftModel:
    """The model under PEFT, LoRA weights in fp32 and trainable, everything else frozen."""
    whole = [_HEADS[name] for name in lora.train_whole]
    targets = [name for name in find_targets(model, lora.mode, conditioning) if name not in whole]
    config = LoraConfig(
        # One alternation that matches full names only: a list of names would also match as suffixes, and PEFT
        # rewrites long lists into suffixes that reach into the audio tower.
        target_modules="|".join(re.escape(name) for name in targets),
        modules_to_save=whole or None,
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        use_rslora=lora.rslora,
        use_dora=lora.dora,
    )
    return get_peft_model(model, config)


def describe_lora(model: PeftModel) -> str:
    """What is adapted, what is trained whole and how much trains, for the log."""
    kinds: dict[str, int] = {}
    for name, module in model.named_modules():
        if hasattr(module, "lora_A"):
            kind = re.sub(r"^base_model\.model\.|\d+\.", "", name)
            kinds[kind] = kinds.get(kind, 0) + 1
    num_trainable = sum(parameter.numel() for _, parameter in trainable_parameters(model))
    num_all = sum(parameter.numel() for parameter in model.parameters())
    parts = ", ".join(f"{kind} x{count}" for kind, count in kinds.items())
    if whole := model.peft_config["default"].modules_to_save:
        parts += f"; trained whole: {', '.join(sorted(whole))}"
    return f"LoRA on {parts}; {num_trainable:,} of {num_all:,} parameters train ({num_trainable / num_all:.2%})"
