"""How far three codes are from each other on one model: Boson's class, the packed forward, transformers 5's class.

    make .venv-export/.installed && python bench/fidelity.py [--out FILE]

A model in the form of the released 3B, tiny and random; one sample with a reference. Logits as shares of the norm of
Boson's, losses in nats: means over labelled positions, that of the audio summed over codebooks.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch
from machine import describe_machine

from engine.model.convert import convert
from tests.fixtures.released import build_released
from tests.fixtures.second_opinion import differences

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "fidelity.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        boson, native = build_released(Path(folder) / "boson"), Path(folder) / "native"
        convert(boson, native, "transformers")
        dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
        found = {name: differences(boson, native, Path(folder), dtype) for name, dtype in dtypes.items()}
    result = describe_machine(torch.device("cpu")) | found
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
