"""One training step of two forwards, side by side in one run: Boson's padded one and our packed one.

    python bench/train_step.py [--size small|3b] [--max-tokens 8192 16384] [--steps 10] [--out FILE]

Both train the same LoRA weights of the same random model through DeepSpeed ZeRO-2 on one rank, on the same samples
of speech-like lengths. `3b` has the real dimensions (28 layers, hidden 3072, vocabulary 128,256) and needs a GPU;
`small` is for a CPU. Prints and writes tokens/s, audio-seconds/s, MFU, peak memory, loss and gradient norm.
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from boson_multimodal.dataset.chatml_dataset import ChatMLDatasetSample
from boson_multimodal.model.higgs_audio import HiggsAudioConfig, HiggsAudioModel
from machine import describe_machine
from transformers import LlamaConfig

from engine.base import zero
from engine.base.recipe import Lora, Loss, load_recipe
from engine.batch.sample import make_padded_batch
from engine.batch.stream import make_stream
from engine.model.flops import flop_rates, peak_flops
from engine.model.forward import LossModel, to_device
from engine.model.lora import add_lora, describe_lora
from engine.model.losses import codebook_weights, weighted_loss
from preprocess.corpus.dialogue import IGNORE_INDEX

ROOT = Path(__file__).parents[1]
SIZES = {
    "small": {"hidden": 256, "ffn": 704, "layers": 6, "heads": 4, "key_value_heads": 2, "vocabulary": 8192},
    "3b": {"hidden": 3072, "ffn": 8192, "layers": 28, "heads": 24, "key_value_heads": 8, "vocabulary": 128256},
}
NUM_CODEBOOKS, CODEBOOK_SIZE, FRAME_RATE_HZ = 8, 1024, 25
TEXT_TOKENS_PER_SEC, HEADER_TOKENS = 5, 20
AUDIO_OUT, AUDIO_BOS, AUDIO_EOS, END_OF_TURN, PAD = 1, 2, 3, 4, 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="3b" if torch.cuda.is_available() else "small")
    parser.add_argument("--max-tokens", type=int, nargs="+", default=[8192, 16384])
    parser.add_argument("--steps", type=int, default=10, help="timed steps of each forward (10)")
    parser.add_argument("--dropout", type=float, default=0.0, help="of LoRA (0; above 0 the losses differ by chance)")
    parser.add_argument("--out", type=Path, help="JSON (default: bench/results/train_step_SIZE.json)")
    arguments = parser.parse_args()
    device = start_one_rank()
    runs = []
    for max_tokens in arguments.max_tokens:
        samples = draw_samples(max_tokens)
        for forward, make_batch in (("boson", make_padded_batch), ("packed", make_stream)):
            run = {"max_tokens": max_tokens, "samples": len(samples), "forward": forward}
            engine = build_engine(arguments.size, device, arguments.dropout)
            try:
                run |= measure(engine, samples, make_batch, arguments.steps)
            except torch.OutOfMemoryError:
                run["out_of_memory"] = True
            engine.destroy()
            del engine
            print(json.dumps(run), flush=True)
            runs.append(run)
    result = {
        **describe_machine(device),
        "size": arguments.size,
        "dropout": arguments.dropout,
        **SIZES[arguments.size],
        "packed_over_boson_tokens_per_sec": [
            round(packed["tokens_per_sec"] / boson["tokens_per_sec"], 2)
            for boson, packed in zip(runs[::2], runs[1::2], strict=True)
            if "tokens_per_sec" in boson and "tokens_per_sec" in packed
        ],
        "runs": runs,
    }
    out = arguments.out or ROOT / "bench" / "results" / f"train_step_{arguments.size}.json"
    out.write_text(json.dumps(result, indent=2) + "\n")
    print(f"packed / boson: {result['packed_over_boson_tokens_per_sec']}; wrote {out}")


def build_model(shape: dict, device: torch.device, dropout: float) -> LossModel:
    """A random model in bf16 with LoRA of rank 32 on every linear layer, LoRA weights in fp32."""
    text_config = LlamaConfig(
        vocab_size=shape["vocabulary"],
        hidden_size=shape["hidden"],
        intermediate_size=shape["ffn"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["key_value_heads"],
        head_dim=shape["hidden"] // shape["heads"],
        max_position_embeddings=8192,
    )
    config = HiggsAudioConfig(
        text_config=text_config,
        audio_adapter_type="dual_ffn_fast_forward",
        audio_dual_ffn_layers=list(range(shape["layers"])),
        encode_whisper_embed=False,
        skip_audio_tower=True,
        use_delay_pattern=True,
        audio_num_codebooks=NUM_CODEBOOKS,
        audio_codebook_size=CODEBOOK_SIZE,
        audio_in_token_idx=5,
        audio_out_token_idx=AUDIO_OUT,
        audio_out_bos_token_id=AUDIO_BOS,
        audio_eos_token_id=AUDIO_EOS,
        pad_token_id=PAD,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with device:
        model = HiggsAudioModel(config)
    torch.set_default_dtype(torch.float32)
    model.requires_grad_(False)
    return LossModel(add_lora(model.train(), Lora(dropout=dropout)))


def start_one_rank() -> torch.device:
    """The device to work on, after joining a process group of one rank."""
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    os.environ.setdefault("MASTER_PORT", "29555")
    zero.deepspeed.init_distributed()
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def build_engine(size: str, device: torch.device, dropout: float = 0.0):
    """The random model under the product's zero2.json, which makes its LoRA weights bf16, as in training."""
    recipe = load_recipe(ROOT / "launch" / "recipes" / "arabic_8xh200.yaml", ["batch.packs_per_step=1"])
    model = build_model(SIZES[size], device, dropout)
    print(describe_lora(model.model), flush=True)
    return zero.initialize_engine(model, zero.resolve_config(ROOT / "ds_configs" / "zero2.json", recipe, 1))


def draw_samples(max_tokens: int) -> list[ChatMLDatasetSample]:
    """Samples with one reference each, of lognormal durations with median 7 s, until `max_tokens` are full."""
    rng = np.random.default_rng(0)
    samples, num_tokens = [], 0
    while True:
        frames = (np.clip(rng.lognormal(np.log(7), 0.7, 2), 1, 30) * FRAME_RATE_HZ).astype(int)
        tokens, labels = [], []
        for number, audio in enumerate(frames.tolist()):
            text = rng.integers(6, 256, HEADER_TOKENS + audio // FRAME_RATE_HZ * TEXT_TOKENS_PER_SEC).tolist()
            turn = [AUDIO_BOS, AUDIO_OUT, AUDIO_EOS, END_OF_TURN]
            tokens += text + turn
            labels += [IGNORE_INDEX] * len(text) + (turn if number else [IGNORE_INDEX] * len(turn))
        num_tokens += len(tokens) - 2 + int(frames.sum()) + 2 * (NUM_CODEBOOKS + 1)
        if num_tokens > max_tokens:
            return samples
        empty = torch.zeros(0)
        samples.append(
            ChatMLDatasetSample(
                input_ids=torch.tensor(tokens),
                label_ids=torch.tensor(labels),
                audio_ids_concat=torch.from_numpy(rng.integers(CODEBOOK_SIZE, size=(NUM_CODEBOOKS, frames.sum()))),
                audio_ids_start=torch.tensor([0, int(frames[0])]),
                audio_waveforms_concat=empty,
                audio_waveforms_start=empty,
                audio_sample_rate=empty,
                audio_speaker_indices=empty,
            )
        )


def measure(engine, samples: list[ChatMLDatasetSample], make_batch, num_steps: int) -> dict:
    """Median time of a step and figures derived from it. The learning rate is 0, so that all steps are the same."""
    config, device = engine.module.higgs.config, engine.device
    stream = make_stream(fresh(samples), config)
    copies = fresh(samples)
    start = time.perf_counter()
    batch = make_batch(copies, config)
    layout_sec = time.perf_counter() - start
    batch = to_device(batch, device)
    text_count, audio_count = len(stream.text_labels), int((stream.audio_labels[:, 0] != IGNORE_INDEX).sum())
    weights = codebook_weights(Loss(), config.audio_num_codebooks).to(device)
    zero.set_lr(engine, 0.0)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    times, losses = [], []
    for _ in range(2 + num_steps):
        start = time.perf_counter()
        loss = weighted_loss(engine(batch), text_count, audio_count, Loss(), weights)
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())  # waits for the device
        times.append(time.perf_counter() - start)
    step_sec = statistics.median(times[2:])
    frames = sum(sample.get_audio_codes(1).shape[1] for sample in samples)
    flops = flop_rates(engine.module.higgs).of_pack(stream)
    peak = peak_flops(torch.cuda.get_device_name()) if device.type == "cuda" else None
    return {
        "tokens": len(stream.position_ids),
        "step_sec": step_sec,
        "layout_sec_of_one_loader_worker": layout_sec,
        "tokens_per_sec": len(stream.position_ids) / step_sec,
        "target_audio_sec_per_sec": frames / FRAME_RATE_HZ / step_sec,
        "tflops_per_step": flops / 1e12,
        "tflops_per_sec": flops / step_sec / 1e12,
        "mfu": flops / step_sec / peak if peak else None,
        "memory_peak_gb": torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else None,
        "loss": losses[-1],
        "grad_norm": float(engine.get_global_grad_norm()),
    }


def fresh(samples: list[ChatMLDatasetSample]) -> list[ChatMLDatasetSample]:
    """Copies whose labels Boson's collator may write into."""
    return [ChatMLDatasetSample(**{**vars(sample), "label_ids": sample.label_ids.clone()}) for sample in samples]


if __name__ == "__main__":
    main()
