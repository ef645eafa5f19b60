"""Peak memory of a step, forward to backward, by vocabulary: Boson's padded forward and the packed one, in one run.

    python bench/memory.py [--max-tokens 2048] [--vocabulary 1024 128256] [--out FILE]

Counts the bytes that tensors occupy at one time, without weights. Apart from the workspaces of kernels this is the
same on any device. `real_size` has the bytes kept for backward per layer at the dimensions of the 3B model, from
shapes alone (torch's meta device): nothing is computed there.
"""

import argparse
import json
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import torch
from counting import PeakBytes, saved_bytes
from machine import describe_machine
from train_step import SIZES, build_model, draw_samples, fresh

from engine.base.recipe import Loss
from engine.batch.sample import make_padded_batch
from engine.batch.stream import make_stream, map_tensors
from engine.model.attention import VARLEN
from engine.model.losses import codebook_weights, weighted_loss

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max-tokens", type=int, default=2048)
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[1024, 128256])
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "memory.json")
    arguments = parser.parse_args()
    samples = draw_samples(arguments.max_tokens)
    runs = []
    real = [kept_at_real_size(max_tokens) for max_tokens in (8192, 16384)]
    for vocabulary in arguments.vocabulary:
        shape = SIZES["small"] | {"layers": 2, "vocabulary": vocabulary}
        model = build_model(shape, torch.device("cpu"), dropout=0.05)
        for forward, make_batch in (("boson", make_padded_batch), ("packed", make_stream)):
            batch = make_batch(fresh(samples), model.higgs.config)
            runs.append({"vocabulary": vocabulary, "forward": forward, "peak_bytes": peak_bytes(model, batch)})
            print(json.dumps(runs[-1]), flush=True)
    result = {**describe_machine(torch.device("cpu")), "max_tokens": arguments.max_tokens, "runs": runs}
    arguments.out.write_text(json.dumps(result | {"real_size": real}, indent=2) + "\n")
    print(*map(json.dumps, real), f"wrote {arguments.out}", sep="\n")


def peak_bytes(model, batch) -> int:
    with PeakBytes() as held:
        sums = model(batch)
        weighted_loss(sums, 100, 100, Loss(), codebook_weights(Loss(), len(sums.audio))).backward()
    model.zero_grad(set_to_none=True)
    return held.peak


def kept_at_real_size(max_tokens: int) -> dict:
    """Bytes that the packed forward of the 3B model keeps for backward, no layer checkpointed."""
    samples = draw_samples(max_tokens)
    layers = {}
    no_autocast = patch("torch.autocast", lambda **_: nullcontext())  # the meta device has none
    with patch("engine.model.attention.attention_backend", lambda *_: VARLEN), no_autocast:
        for number in (1, 3):
            model = build_model(SIZES["3b"] | {"layers": number}, torch.device("meta"), dropout=0.05).bfloat16()
            stream = map_tensors(make_stream(fresh(samples), model.higgs.config), lambda tensor: tensor.to("meta"))
            with saved_bytes(model) as saved:
                model(stream)
            layers[number] = saved.total
    per_layer = (layers[3] - layers[1]) // 2
    num_layers = SIZES["3b"]["layers"]
    return {
        "max_tokens": max_tokens,
        "tokens": len(stream.position_ids),
        "kept_bytes_a_layer": per_layer,
        "kept_bytes_a_layer_and_token": per_layer // len(stream.position_ids),
        "kept_bytes_all": layers[1] + (num_layers - 1) * per_layer,
    }


if __name__ == "__main__":
    main()
