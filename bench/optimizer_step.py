"""Cost of DeepSpeed over a bare torch loop with the same packed forward, and effect of its settings, in one run.

    python bench/optimizer_step.py [--size small|3b] [--ranks 1] [--max-tokens 2048] [--steps 10] [--deepspeed-adam]

Variants: `bare` (bf16 weights, fp32 masters, all-reduce of one flat gradient, clipping, fused AdamW), `deepspeed`
(the product's zero2.json as the product uses it), `each gradient checked` (with DeepSpeed's own overflow check),
`overlap_comm`, and with --deepspeed-adam its FusedAdam, which compiles a CUDA kernel. One pack per rank and step.
Prints and writes the median time of a step, its parts, and the operators of an update.
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from counting import OperatorTally
from machine import describe_machine
from train_step import ROOT, SIZES, build_model, draw_samples

from engine.base import zero
from engine.base.recipe import Loss, load_recipe
from engine.base.zero import trainable_parameters
from engine.batch.stream import make_stream
from engine.model.forward import to_device
from engine.model.losses import codebook_weights, weighted_loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="3b" if torch.cuda.is_available() else "small")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--max-tokens", type=int, default=8192 if torch.cuda.is_available() else 2048)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--deepspeed-adam", action="store_true")
    parser.add_argument("--out", type=Path, help="JSON (default: bench/results/optimizer_step_SIZE_RANKS.json)")
    arguments = parser.parse_args()
    name = f"optimizer_step_{arguments.size}_{arguments.ranks}.json"
    arguments.out = arguments.out or ROOT / "bench" / "results" / name
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": str(arguments.ranks)}
    os.environ.setdefault("MASTER_PORT", "29556")
    multiprocessing.spawn(run_rank, (arguments,), nprocs=arguments.ranks)


def run_rank(rank: int, arguments: argparse.Namespace) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    zero.deepspeed.init_distributed()
    device = torch.device("cuda", rank) if torch.cuda.is_available() else torch.device("cpu")
    variants = {
        "bare": bare,
        "deepspeed": with_deepspeed(),
        "each gradient checked": with_deepspeed(check_each=True),
    }
    variants["overlap_comm"] = with_deepspeed({"zero_optimization.overlap_comm": True})
    if arguments.deepspeed_adam:
        variants["FusedAdam"] = with_deepspeed({"optimizer.params.torch_adam": False, "optimizer.params.fused": None})
    runs = {}
    for variant, build in variants.items():
        model = build_model(SIZES[arguments.size], device, dropout=0.05)
        batch = to_device(make_stream(draw_samples(arguments.max_tokens), model.higgs.config), device)
        runs[variant] = measure(*build(model, arguments.ranks), batch, device, arguments.steps)
        if rank == 0:
            print(json.dumps({variant: runs[variant]}), flush=True)
        del model
    if rank:
        return
    for run in runs.values():
        run["over_bare"] = run["step_sec"] / runs["bare"]["step_sec"]
    settings = {key: getattr(arguments, key) for key in ("size", "ranks", "max_tokens", "steps")}
    arguments.out.write_text(json.dumps(describe_machine(device) | settings | {"runs": runs}, indent=2) + "\n")
    print({variant: round(run["over_bare"], 4) for variant, run in runs.items()}, f"wrote {arguments.out}")


def bare(model, world_size: int):
    """(forward, backward, update) in plain torch."""
    parameters = [parameter for _, parameter in trainable_parameters(model)]
    masters = [parameter.detach().float().clone() for parameter in parameters]
    for parameter in parameters:
        parameter.data = parameter.data.bfloat16()
    optimizer = torch.optim.AdamW(masters, lr=0.0, fused=True)

    def update() -> None:
        gradients = [parameter.grad.float() for parameter in parameters]
        if world_size > 1:
            flat = torch.cat([gradient.flatten() for gradient in gradients]) / world_size
            dist.all_reduce(flat)
            split = flat.split([gradient.numel() for gradient in gradients])
            gradients = [part.view_as(gradient) for part, gradient in zip(split, gradients, strict=True)]
        for master, gradient in zip(masters, gradients, strict=True):
            master.grad = gradient
        torch.nn.utils.clip_grad_norm_(masters, 1.0)
        optimizer.step()
        torch._foreach_copy_([parameter.data for parameter in parameters], masters)
        for parameter in parameters:
            parameter.grad = None

    return model, lambda loss: loss.backward(), update


def with_deepspeed(changes: dict | None = None, check_each: bool = False):
    """A function like `bare`, through DeepSpeed. changes: {dotted key of its JSON: value; None removes the key}."""

    def build(model, world_size: int):
        recipe = load_recipe(
            ROOT / "launch" / "recipes" / "arabic_8xh200.yaml", [f"batch.packs_per_step={world_size}"]
        )
        config = zero.resolve_config(ROOT / "ds_configs" / "zero2.json", recipe, world_size)
        for key, value in (changes or {}).items():
            *path, last = key.split(".")
            group = config
            for part in path:
                group = group[part]
            group[last] = value
            if value is None:
                del group[last]
        engine = zero.initialize_engine(model, zero.fit_buckets(config, model))
        zero.set_lr(engine, 0.0)
        if check_each:
            del engine.optimizer.check_overflow  # ours, on the instance: DeepSpeed's own method applies again
        return engine, engine.backward, engine.step

    return build


def measure(forward, backward, update, batch, device: torch.device, num_steps: int) -> dict:
    """Median seconds of a step and its parts, and the numbers of operators in backward and update."""
    weights = codebook_weights(Loss(), batch.audio_labels.shape[1]).to(device)
    times: dict[str, list[float]] = {"forward_sec": [], "backward_sec": [], "update_sec": [], "step_sec": []}

    def clock() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    for _ in range(2 + num_steps):
        begin = clock()
        loss = weighted_loss(forward(batch), 100, 100, Loss(), weights)
        forwarded = clock()
        backward(loss)
        backwarded = clock()
        update()
        end = clock()
        spans = (forwarded - begin, backwarded - forwarded, end - backwarded, end - begin)
        for name, span in zip(times, spans, strict=True):
            times[name].append(span)
    loss = weighted_loss(forward(batch), 100, 100, Loss(), weights)
    with OperatorTally() as in_backward:
        backward(loss)
    with OperatorTally() as in_update:
        update()
    medians = {name: statistics.median(values[2:]) for name, values in times.items()}
    counts = {"operators_of_backward": in_backward.calls.total(), "operators_of_update": in_update.calls.total()}
    return medians | counts


if __name__ == "__main__":
    main()
