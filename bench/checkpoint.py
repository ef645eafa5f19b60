"""Size of a checkpoint of the 3B model, and how long training waits for a save.

    python bench/checkpoint.py [--folder FOLDER] [--saves 5] [--out FILE]

Rank 32 on every linear layer and both heads of the released dimensions, random values. Times the product's
`write_checkpoint` on the disk of --folder and its parts: writing, fsync and rename, hashing, reading back. Gathering
the weights before a save is timed through DeepSpeed ZeRO-2 on one CPU rank.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from unittest import mock

import torch
from machine import describe_machine
from torch import nn
from train_step import SIZES, build_model

from engine.base import zero
from engine.base.recipe import load_recipe
from engine.base.zero import trainable_parameters
from engine.checkpoint import checkpoint

ROOT = Path(__file__).parents[1]
PHASES = {"save_file": "write", "finish_folder": "fsync", "sha256_file": "hash", "find_problem": "read_back"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where to write (default: the system's temporary folder)")
    parser.add_argument("--saves", type=int, default=5)
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "checkpoint.json")
    arguments = parser.parse_args()
    with torch.device("meta"):  # names and shapes alone
        model = build_model(SIZES["3b"], torch.device("meta"), dropout=0.0).model
    shapes = {f"model.{name}": parameter.shape for name, parameter in trainable_parameters(model)}
    num_weights = sum(shape.numel() for shape in shapes.values())
    gather_sec = gather(shapes)
    masters, *both = ({name: torch.randn(shape) for name, shape in shapes.items()} for _ in range(3))
    moments = dict(zip(zero.MOMENTS, both, strict=True))
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        root = Path(folder)
        runs = []
        for step in range(arguments.saves + 1):  # the first warms up
            os.sync()
            runs.append(timed_save(root, step, model, masters, moments))
            print(json.dumps(runs[-1]), flush=True)
            saved = checkpoint.step_folder(root, step)
            files = {path.name: path.stat().st_size for path in sorted(saved.iterdir())}
            started = time.perf_counter()
            assert checkpoint.find_problem(saved) is None
            check_sec = time.perf_counter() - started
            shutil.rmtree(saved)
        disk = subprocess.run(
            ["df", "--output=fstype", folder], check=True, capture_output=True, text=True
        ).stdout.split()[-1]
    weights_bytes = files[checkpoint.ADAPTER_FILE] + files[checkpoint.OPTIMIZER_FILE]
    result = {
        **describe_machine(torch.device("cpu")),
        "file_system": disk,
        "trainable_weights": num_weights,
        "file_bytes": files,
        "bytes_a_weight": sum(files.values()) / num_weights,
        "headers_and_json_bytes": sum(files.values()) - 12 * num_weights,
        "save_sec_median": statistics.median(run["save_sec"] for run in runs[1:]),
        "runs": runs[1:],
        "check_before_a_resume_sec": round(check_sec, 3),
        "gather_on_one_cpu_rank_sec": round(gather_sec, 3),
    }
    assert weights_bytes - 12 * num_weights < 2**20, "the files have more than weights and moments"
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    print(
        f"{result['bytes_a_weight']:.4f} bytes per weight, {result['save_sec_median']:.2f} s; wrote {arguments.out}"
    )


def timed_save(root: Path, step: int, model, masters: dict, moments: dict) -> dict:
    """Seconds of one save and of its parts; a part that runs in several threads counts their sum."""
    spent: dict[str, float] = defaultdict(float)

    def timed(name: str):
        original = getattr(checkpoint, name)

        def run(*arguments, **keywords):
            started = time.perf_counter()
            try:
                return original(*arguments, **keywords)
            finally:
                spent[PHASES[name]] += time.perf_counter() - started

        return mock.patch.object(checkpoint, name, run)

    patches = [timed(name) for name in PHASES]
    for patch in patches:
        patch.start()
    started = time.perf_counter()
    checkpoint.write_checkpoint(root, step, model, masters, moments, {})
    total = time.perf_counter() - started
    for patch in patches:
        patch.stop()
    return {"save_sec": round(total, 3), **{f"{name}_sec": round(value, 3) for name, value in spent.items()}}


def gather(shapes: dict[str, torch.Size]) -> float:
    """Seconds to gather masters and moments from DeepSpeed, on one CPU rank."""
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    os.environ.setdefault("MASTER_PORT", "29556")
    zero.deepspeed.init_distributed()
    recipe = load_recipe(ROOT / "launch" / "recipes" / "arabic_8xh200.yaml", ["batch.packs_per_step=1"])
    weights = nn.ParameterList([nn.Parameter(torch.zeros(shape)) for shape in shapes.values()])
    engine = zero.initialize_engine(weights, zero.resolve_config(ROOT / "ds_configs" / "zero2.json", recipe, 1))
    zero.gather_moments(engine)  # creates them
    started = time.perf_counter()
    zero.gather_masters(engine)
    zero.gather_moments(engine)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
