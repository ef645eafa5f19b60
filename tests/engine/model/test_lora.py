"""Which layers of a loaded model each mode of LoRA adapts."""

import pytest
import torch

from engine.model.lora import find_targets
from engine.model.weights import load_base

ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
TEXT_FFN = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
AUDIO_FFN = ("audio_mlp.gate_proj", "audio_mlp.up_proj", "audio_mlp.down_proj")
AUDIO_HEAD, TEXT_HEAD = "audio_decoder_proj.audio_lm_head", "audio_decoder_proj.text_lm_head"
EVERY, DUAL = (0, 1, 2, 3), (0, 2)  # layers of the small model: all, and those that have an audio FFN


def in_layers(numbers, parts):
    return [f"layers.{number}.{part}" for number in numbers for part in parts]


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("attention", in_layers(EVERY, ATTENTION)),
        ("audio", [*in_layers(DUAL, ATTENTION + AUDIO_FFN), AUDIO_HEAD]),
        ("full", [*in_layers(EVERY, ATTENTION + TEXT_FFN), *in_layers(DUAL, AUDIO_FFN), AUDIO_HEAD, TEXT_HEAD]),
    ],
)
def test_each_mode_adapts_its_layers_and_no_other(mode, expected, model_folder):
    assert sorted(find_targets(load_base(model_folder, torch.float32), mode)) == sorted(expected)
