"""Memory and CPU time of merge, export and convert beside those of copying the same files.

    python bench/merge.py [--layers 2] [--rounds 3] [--out FILE]

The base has the matrices of the released 3B in bf16, in few layers; the adapter is of rank 32 on every layer and both
heads, random. Each command runs in a process of its own, in turns; memory is the peak above that of its imports.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from machine import describe_machine

ROOT = Path(__file__).parents[1]
KINDS = ("copy", "merge, verify none", "merge, verify layers", "merge, format transformers", "convert")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "merge.json")
    parser.add_argument("--child", nargs=2, metavar=("KIND", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(run_one(arguments.child[0], Path(arguments.child[1]))))
        return
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        subprocess.run([sys.executable, "-c", BUILD, folder, str(arguments.layers)], cwd=ROOT, check=True)
        size = sum(path.stat().st_size for path in (work / "base").glob("*.safetensors"))
        runs: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
        for _ in range(arguments.rounds):
            for kind, found in runs.items():
                command = [sys.executable, __file__, "--child", kind, folder]
                done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
                found.append(json.loads(done.stdout.splitlines()[-1]))
    table = {
        kind: {name: round(median(run[name] for run in found), 2) for name in found[0]}
        for kind, found in runs.items()
    }
    for kind in table:
        table[kind]["cpu_of_a_copy"] = round(table[kind]["cpu_sec"] / table["copy"]["cpu_sec"], 2)
    result = describe_machine(torch.device("cpu")) | {"base_gb": round(size / 1e9, 2), "layers": arguments.layers}
    arguments.out.write_text(json.dumps(result | {"runs": table}, indent=2) + "\n")
    print(json.dumps(table, indent=2))


BUILD = """
import sys
from pathlib import Path
import torch
from engine.base.recipe import Lora
from launch.demo.small_model import build_model
from tests.fixtures.adapter import random_lora, save_checkpoint
from tests.fixtures.native import build_native
work, layers = Path(sys.argv[1]), int(sys.argv[2])
torch.set_default_dtype(torch.bfloat16)
base = build_model(work / "base", hidden_size=3072, num_layers=layers, dual_ffn_layers=tuple(range(layers)),
                   num_key_value_heads=4, dtype=torch.bfloat16, vocab_size=128256, intermediate_size=8192)
torch.set_default_dtype(torch.float32)
save_checkpoint(work / "run", base, random_lora(base, Lora(rank=32)))
"""


def run_one(kind: str, work: Path) -> dict[str, float]:
    """CPU and wall seconds, and memory above the imports in MB, of one command."""
    from engine.merge.folder import merge_checkpoint
    from engine.model.convert import convert

    out, checkpoint = work / "out", work / "run" / "checkpoints" / "step-000007"
    shutil.rmtree(out, ignore_errors=True)
    torch.set_num_threads(1)
    before, began, cpu = _peak_mb(), time.perf_counter(), time.process_time()
    if kind == "copy":
        shutil.copytree(work / "base", out)
    elif kind == "convert":
        convert(work / "base", out, "transformers")
    else:
        verify = "layers" if "layers" in kind else "none"
        merge_checkpoint(checkpoint, None, out, verify, layout="transformers" if "format" in kind else "boson")
    return {
        "cpu_sec": time.process_time() - cpu,
        "wall_sec": time.perf_counter() - began,
        "memory_mb": _peak_mb() - before,
    }


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


if __name__ == "__main__":
    main()
