"""Where the time of one packed training step goes: a torch profile and a table by part and by call.

    python bench/profile_step.py [--size small|3b] [--max-tokens 8192] [--dropout 0.05] [--out FOLDER]

Writes trace.json (open in chrome://tracing or ui.perfetto.dev), profile.json and profile.txt: each part's share of
the step, then every matmul and attention call with shapes, input dtypes, kernel, count and time. On a GPU the time is
that of the kernels; on a CPU that of the operators.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import torch
from counting import ATTENTION, MATMULS
from machine import describe_machine
from torch.profiler import ProfilerActivity, profile
from train_step import SIZES, build_engine, draw_samples, start_one_rank

from engine.base import zero
from engine.base.recipe import Lora, Loss
from engine.batch.stream import Stream, make_stream
from engine.model.forward import to_device
from engine.model.losses import codebook_weights, weighted_loss

ROOT = Path(__file__).parents[1]
LOSSES = ("log_softmax", "nll_loss", "argmax", "cross_entropy")
OPTIMIZER = ("adam", "c10d", "allreduce", "all_gather", "reduce_scatter", "norm", "foreach")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="3b" if torch.cuda.is_available() else "small")
    parser.add_argument("--max-tokens", type=int, default=8192)
    parser.add_argument("--dropout", type=float, default=0.05)
    parser.add_argument("--out", type=Path, help="folder (default: bench/results/profile_SIZE)")
    arguments = parser.parse_args()
    device = start_one_rank()
    engine = build_engine(arguments.size, device, arguments.dropout)
    stream = make_stream(draw_samples(arguments.max_tokens), engine.module.higgs.config)
    out = arguments.out or ROOT / "bench" / "results" / f"profile_{arguments.size}"
    out.mkdir(parents=True, exist_ok=True)
    trace = profile_step(engine, stream, out)
    calls = group_calls(leaf_operators(trace), sorter(SIZES[arguments.size], stream))
    report = tabulate(calls)
    settings = {"size": arguments.size, "tokens": len(stream.position_ids), "dropout": arguments.dropout}
    (out / "profile.json").write_text(json.dumps(describe_machine(device) | settings | report, indent=2) + "\n")
    text = as_text(report)
    (out / "profile.txt").write_text(text)
    print(text + f"wrote {out}")


def profile_step(engine, stream: Stream, out: Path) -> list[dict]:
    """Events of one step after two to warm up, also written as trace.json."""
    batch = to_device(stream, engine.device)
    weights = codebook_weights(Loss(), engine.module.higgs.config.audio_num_codebooks).to(engine.device)
    zero.set_lr(engine, 0.0)

    def step() -> None:
        engine.backward(weighted_loss(engine(batch), 100, 100, Loss(), weights))
        engine.step()
        if engine.device.type == "cuda":
            torch.cuda.synchronize()

    step()
    step()
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if engine.device.type == "cuda" else [])
    with profile(activities=activities, record_shapes=True) as recorded:
        step()
    recorded.export_chrome_trace(str(out / "trace.json"))
    return json.loads((out / "trace.json").read_text())["traceEvents"]


def leaf_operators(trace: list[dict]) -> list[dict]:
    """Operators with their own time: on a GPU that of their kernels, on a CPU theirs minus that of their callees."""
    operators = [event for event in trace if event.get("cat") == "cpu_op"]
    kernels = defaultdict(list)
    for event in trace:
        if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset"):
            kernels[event["args"].get("External id")].append(event)
    own = {id(event): event["dur"] for event in operators}
    by_thread = defaultdict(list)
    for event in operators:
        by_thread[event["tid"]].append(event)
    for events in by_thread.values():
        open_events = []
        for event in sorted(events, key=lambda event: (event["ts"], -event["dur"])):
            while open_events and event["ts"] >= open_events[-1]["ts"] + open_events[-1]["dur"]:
                open_events.pop()
            if open_events:
                own[id(open_events[-1])] -= event["dur"]
            open_events.append(event)
    found = []
    for event in operators:
        launched = kernels.get(event["args"].get("External id"), [])
        time_us = sum(kernel["dur"] for kernel in launched) if kernels else own[id(event)]
        if time_us > 0:
            found.append(
                {
                    "operator": event["name"].removeprefix("aten::"),
                    "shapes": event["args"].get("Input Dims", []),
                    "dtypes": [name for name in event["args"].get("Input type", []) if name],
                    "kernel": launched[0]["name"] if launched else "",
                    "us": time_us,
                }
            )
    return found


def sorter(size: dict, stream: Stream):
    """A function (operator, shapes) -> part of the step, recognised by the dimensions that only this part has."""
    ranks = {Lora().rank * layers for layers in (1, 2, 3)}
    head_widths = {size["vocabulary"], 8 * 1026}
    num_text, num_audio = len(stream.text_tokens), stream.audio_columns.shape[1]

    def part_of(operator: str, shapes: list) -> str:
        dimensions = {dimension for shape in shapes for dimension in shape if isinstance(dimension, int)}
        if any(word in operator.lower() for word in OPTIMIZER) and "rms_norm" not in operator:
            return "optimizer and reduction"
        if operator.startswith(LOSSES) or (operator not in MATMULS and dimensions & {size["vocabulary"], 1026}):
            return "losses"
        if operator in ATTENTION or "flash_attention" in operator:
            return "attention"
        if operator not in MATMULS:
            return f"other: {operator}"
        if dimensions & ranks:
            return "lora matmuls"
        if dimensions & head_widths:
            return "heads"
        if size["ffn"] in dimensions:
            return "audio mlp" if num_audio in dimensions else "mlp" if num_text in dimensions else "mlp, all rows"
        return "attention projections"

    return part_of


def group_calls(operators: list[dict], part_of) -> list[dict]:
    """Operators grouped by name, shapes, dtypes and kernel, longest time first."""
    groups: dict[str, dict] = {}
    for operator in operators:
        identity = {key: operator[key] for key in ("operator", "shapes", "dtypes", "kernel")}
        group = groups.setdefault(
            json.dumps(identity),
            identity | {"part": part_of(operator["operator"], operator["shapes"]), "count": 0, "us": 0.0},
        )
        group["count"] += 1
        group["us"] += operator["us"]
    return sorted(groups.values(), key=lambda group: -group["us"])


def tabulate(calls: list[dict]) -> dict:
    """Time of each part, and the matmul and attention calls one by one."""
    parts: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    for call in calls:
        parts[call["part"]] += call["us"]
        counts[call["part"]] += call["count"]
    total = sum(parts.values())
    rows = [
        {"part": part, "ms": us / 1e3, "share": us / total, "calls": counts[part]}
        for part, us in sorted(parts.items(), key=lambda item: -item[1])
    ]
    products = [call for call in calls if call["operator"] in (*MATMULS, *ATTENTION) or call["part"] == "attention"]
    return {"total_ms": total / 1e3, "parts": rows, "matmuls_and_attention": products}


def as_text(report: dict) -> str:
    lines = [f"{report['total_ms']:.1f} ms in operators", "", f"{'part':34}{'ms':>10}{'share':>8}{'calls':>8}"]
    lines += [f"{r['part']:34}{r['ms']:10.2f}{r['share']:8.1%}{r['calls']:8}" for r in report["parts"][:24]]
    lines += ["", f"{'matmul or attention':24}{'part':24}{'ms':>9}{'calls':>7}  dtypes, shapes, kernel"]
    for call in report["matmuls_and_attention"]:
        dtypes = "/".join(sorted(set(call["dtypes"]) - {"Scalar", "ScalarList"}))
        shapes = " ".join(str(shape) for shape in call["shapes"] if shape)
        lines.append(
            f"{call['operator'][:23]:24}{call['part']:24}{call['us'] / 1e3:9.2f}{call['count']:7}  "
            f"{dtypes} {shapes} {call['kernel'][:60]}"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
