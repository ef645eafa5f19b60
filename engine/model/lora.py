"""LoRA on Boson's model by PEFT; the adapted layers of each mode are found in the loaded model."""

import re
from collections import Counter

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
    """Full names of the linear layers that lora.mode=`mode` adapts, in the model's order.

    attention: q, k, v, o of every layer. audio: attention and audio_mlp of the DualFFN layers, audio head.
    full: attention, mlp and audio_mlp of every layer, both heads, and the projector of the audio tower if the model
    gets waveforms (`conditioning` is not codes).
    Embeddings and the audio tower itself are never adapted. Raises InputError if the model has none of these layers.
    """
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    dual_ffn_layers = {number for number, layer in enumerate(model.layers) if hasattr(layer, "audio_mlp")}
    targets = [
        name
        for name in linears
        if _is_target(name, mode, dual_ffn_layers) and (name != _PROJECTOR or conditioning != "codes")
    ]
    if not targets:
        raise InputError(
            f"lora.mode={mode}",
            f"no layer to adapt among {', '.join(linears[:40])}",
            "attention and FFN projections under layers.N",
            "Give --model the folder of a Higgs Audio v2 base model.",
        )
    return targets


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
    """The model under PEFT: LoRA weights trainable, as are heads that `lora.train_whole` names; the rest frozen."""
    whole = [_HEADS[name] for name in lora.train_whole]
    targets = [name for name in find_targets(model, lora.mode, conditioning) if name not in whole]
    config = LoraConfig(
        # One regular expression that matches full names only. PEFT would also match names of a list as suffixes, and
        # shorten a long list to suffixes that match layers of the audio tower.
        target_modules="|".join(re.escape(name) for name in targets),
        modules_to_save=whole or None,
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # PEFT declares an int and computes with any number
        lora_dropout=lora.dropout,
        use_rslora=lora.rslora,
        use_dora=lora.dora,
    )
    return get_peft_model(model, config)


def describe_lora(model: PeftModel) -> str:
    """A line for the log: adapted layers by kind, modules trained whole, and the number of trainable parameters."""
    adapted = [name for name, module in model.named_modules() if hasattr(module, "lora_A")]
    kinds = Counter(re.sub(r"^base_model\.model\.|\d+\.", "", name) for name in adapted)
    num_trainable = sum(parameter.numel() for _, parameter in trainable_parameters(model))
    num_all = sum(parameter.numel() for parameter in model.parameters())
    parts = ", ".join(f"{kind} x{count}" for kind, count in kinds.items())
    if whole := model.peft_config["default"].modules_to_save:
        parts += f"; trained whole: {', '.join(sorted(whole))}"
    return f"LoRA on {parts}; {num_trainable:,} of {num_all:,} parameters train ({num_trainable / num_all:.2%})"
