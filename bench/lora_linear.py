"""The LoRA projections of one layer: PEFT's module forward and the fused one, side by side in one run.

    python bench/lora_linear.py [--hidden 3072] [--ffn 8192] [--tokens 2048] [--dtype bfloat16] [--out FILE]

For each group (q/k/v, o, gate/up, down), forward + backward of the bare frozen layers, of PEFT's and of the fused
ones: time, operators, bytes they move, bytes kept for backward. Counts hold on any device; times are this machine's.
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path

import torch
from counting import OperatorTally, saved_bytes
from machine import describe_machine
from peft import LoraConfig, get_peft_model
from torch import nn

from engine.model.lora_linear import project

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=3072)
    parser.add_argument("--ffn", type=int, default=8192)
    parser.add_argument("--key-value-width", type=int, default=1024)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--dropout", type=float, nargs="+", default=[0.0, 0.05])
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--dtype", nargs="+", default=["bfloat16"], help="bfloat16, float32")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "lora_linear.json")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    wide, narrow, ffn = arguments.hidden, arguments.key_value_width, arguments.ffn
    groups = {
        "q/k/v": (wide, [wide, narrow, narrow]),
        "o": (wide, [wide]),
        "gate/up": (wide, [ffn, ffn]),
        "down": (ffn, [wide]),
    }
    runs = []
    for dtype in arguments.dtype:
        for dropout in arguments.dropout:
            for name, (width, outputs) in groups.items():
                layers = adapted_layers(width, outputs, arguments.rank, dropout, getattr(torch, dtype), device)
                rows = torch.randn(arguments.tokens, width, dtype=getattr(torch, dtype), device=device)
                run = {"group": name, "dtype": dtype, "dropout": dropout} | measure(layers, rows, arguments.repeats)
                print(json.dumps(run), flush=True)
                runs.append(run)
    totals = [total(runs, dtype, dropout) for dtype in arguments.dtype for dropout in arguments.dropout]
    settings = {key: value for key, value in vars(arguments).items() if key != "out"}
    result = {**describe_machine(device), **settings, "layer": totals, "runs": runs}
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    print("\n".join(json.dumps(line) for line in totals), f"wrote {arguments.out}", sep="\n")


def adapted_layers(width: int, outputs: list[int], rank: int, dropout: float, dtype, device) -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(*(nn.Linear(width, out, bias=False) for out in outputs))
    names = [str(number) for number in range(len(outputs))]
    config = LoraConfig(
        target_modules=names, r=rank, lora_alpha=2 * rank, lora_dropout=dropout, init_lora_weights=False
    )
    return get_peft_model(layers.to(device), config).base_model.model.to(dtype)


VARIANTS = {
    "bare": lambda layers, rows: [layer.get_base_layer()(rows) for layer in layers],
    "peft": lambda layers, rows: [layer(rows) for layer in layers],
    "fused": lambda layers, rows: project(rows, *layers),
}


def measure(layers: nn.Module, rows: torch.Tensor, repeats: int) -> dict:
    """{variant: median seconds, operators, bytes moved, bytes saved for backward}; the variants alternate."""
    inputs = rows.requires_grad_()
    with torch.no_grad():
        upstream = [torch.randn_like(out) for out in VARIANTS["bare"](layers, rows)]
    times = {variant: [] for variant in VARIANTS}
    for number in range(repeats + 1):
        for variant, forward in VARIANTS.items():
            start = time.perf_counter()
            torch.autograd.backward(forward(layers, inputs), upstream)
            if rows.is_cuda:
                torch.cuda.synchronize()
            if number:
                times[variant].append(time.perf_counter() - start)
    result = {}
    for variant, forward in VARIANTS.items():
        layers.zero_grad(set_to_none=True)
        inputs.grad = None
        tally = OperatorTally()
        with tally, saved_bytes(layers) as saved:
            outputs = forward(layers, inputs)
        kept_bytes = saved.total
        with tally:
            torch.autograd.backward(outputs, upstream)
        result[variant] = {
            "sec": statistics.median(times[variant]),
            "matmuls": tally.num_matmuls,
            "other_operators": tally.num_others,
            "other_bytes": tally.other_bytes,
            "saved_bytes": kept_bytes,
        }
    return result


def total(runs: list[dict], dtype: str, dropout: float) -> dict:
    """Sums over the groups: one layer with one FFN."""
    chosen = [run for run in runs if (run["dtype"], run["dropout"]) == (dtype, dropout)]
    sums = {
        variant: {key: sum(run[variant][key] for run in chosen) for key in chosen[0][variant]} for variant in VARIANTS
    }
    return {"dtype": dtype, "dropout": dropout, **sums}


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
