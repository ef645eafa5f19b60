"""Run under transformers 5: a base of its own class with random weights, and its logits.

python native_logits.py make BOSON OUT      OUT/native, with the tokenizer of the folder BOSON
python native_logits.py run OUT             OUT/logits.safetensors, of OUT/inputs.safetensors
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, HiggsAudioV2Config, HiggsAudioV2ForConditionalGeneration


def make(boson: Path, out: Path) -> None:
    """Save a model, with llama3 RoPE as the released one, and the tokenizer as transformers 5 writes it."""
    config = json.loads((boson / "config.json").read_text())
    number = {
        token["content"]: token["id"] for token in json.loads((boson / "tokenizer.json").read_text())["added_tokens"]
    }
    native = HiggsAudioV2Config(
        vocab_size=config["text_config"]["vocab_size"],
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_codebooks=4,
        codebook_size=34,
        audio_token_id=number["<|AUDIO_OUT|>"],
        audio_bos_token_id=number["<|audio_out_bos|>"],
        audio_delay_token_id=number["<|reserved_special_token_6|>"],
        audio_stream_bos_id=32,
        audio_stream_eos_id=33,
        pad_token_id=number["<|end_of_text|>"],
        bos_token_id=number["<|begin_of_text|>"],
        eos_token_id=number["<|eot_id|>"],
    )
    torch.manual_seed(0)
    model = HiggsAudioV2ForConditionalGeneration(native, use_text_head=True).eval()
    model.save_pretrained(out / "native")
    AutoTokenizer.from_pretrained(boson).save_pretrained(out / "native")


@torch.no_grad()
def run(out: Path) -> None:
    """Logits [positions, ...] of input_ids [1, positions] and audio_input_ids [1, columns, codebooks]."""
    model = HiggsAudioV2ForConditionalGeneration.from_pretrained(out / "native", use_text_head=True).eval()
    hidden = model.model(**load_file(out / "inputs.safetensors")).last_hidden_state[0]
    save_file({"text": model.text_lm_head(hidden), "audio": model.audio_lm_head(hidden)}, out / "logits.safetensors")


if __name__ == "__main__":
    {"make": make, "run": run}[sys.argv[1]](*map(Path, sys.argv[2:]))
