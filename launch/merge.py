"""Merge: a checkpoint's adapter into its base, as a folder that Boson's own loaders open.

    python -m launch.merge --checkpoint runs/first/checkpoints/best --out merged/ [--base FOLDER]

The folder is complete (weights, config, tokenizer, voice_training.json) or absent.
"""

import argparse
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from preprocess.errors import InputError, exit_on_input_error

if TYPE_CHECKING:
    import torch

EXAMPLE = "python -m launch.merge --checkpoint runs/first/checkpoints/best --out merged/"


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; all missing flags are named at once."""
    parser = argparse.ArgumentParser(
        prog="python -m launch.merge",
        description="Merge a checkpoint's LoRA adapter into its base model: a folder that HiggsAudioModel and "
        "HiggsAudioServeEngine load.",
        epilog=f"example: {EXAMPLE}",
    )
    parser.add_argument("--checkpoint", metavar="FOLDER", type=Path, help="a checkpoint or a PEFT adapter folder")
    parser.add_argument("--out", metavar="FOLDER", type=Path, help="the merged model; must not exist or be empty")
    parser.add_argument("--base", metavar="FOLDER", type=Path, help="base model (default: the one trained on)")
    parser.add_argument("--dtype", choices=("bf16", "fp32"), help="of the weights (default: as the base has them)")
    parser.add_argument(
        "--no-verify",
        action="store_true",
        help="skip the comparison with base + adapter, which needs 4 bytes of memory a parameter",
    )
    arguments = parser.parse_args(argv)
    missing = [f"--{name}" for name in ("checkpoint", "out") if not getattr(arguments, name)]
    if missing:
        raise InputError("command line", f"no {', '.join(missing)}", "all of them", f"For example: {EXAMPLE}")
    return arguments


def merge(
    checkpoint: Path, base: Path | None, out: Path, verify: bool = True, dtype: "torch.dtype | None" = None
) -> None:
    """Write `out`: the base with the checkpoint's adapter in it, computed in fp32 and rounded once.

    base: None takes the folder the checkpoint was trained on. dtype: of the weights; None keeps each tensor's own.
    Of the base one tensor is in memory at a time; `verify` loads whole models (engine.merge_check). Raises
    InputError for what the user can mend, before anything is written.
    """
    from engine.merge_check import check_merge
    from engine.merged import copy_other_files, record_dtype, write_facts
    from engine.merging import assign_tensors, read_adapter, read_header, weight_files, write_merged_shard
    from engine.model import load_config

    checkpoint, out = checkpoint.resolve(), out.resolve()
    _refuse_used_folder(out)
    state = _read_state(checkpoint, base)
    base = Path(base or state["base"])
    _check_base(base, checkpoint, state)
    load_config(base)
    adapter = read_adapter(checkpoint)
    shards = weight_files(base)
    shapes = {name: entry["shape"] for shard in shards for name, entry in read_header(shard).items()}
    assigned = assign_tensors(adapter, shapes, base)
    print(
        f"{checkpoint}: {len(adapter.tensors)} tensors change {len(assigned)} of {len(shapes)} in {base}", flush=True
    )

    temporary = out.with_name(f".{out.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        for shard in shards:
            write_merged_shard(shard, temporary / shard.name, assigned, adapter, dtype)
        copy_other_files(base, temporary)
        if dtype is not None:
            record_dtype(temporary, str(dtype).removeprefix("torch."))
        write_facts(temporary, checkpoint, base, state)
        if verify:
            print("comparing the merged model's logits with base + adapter's", flush=True)
            check = check_merge(base, checkpoint, temporary)
            print(f"they differ by {check.difference:.1e} of their norm, and keep {check.kept:.1%} of the adapter")
            if check.kept < 0.9:
                print("warning: rounding loses much of so small a change; --dtype fp32 keeps it", flush=True)
        _finish(temporary, out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _refuse_used_folder(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(
            str(out), "something there already", "a folder that is new or empty", "Give another --out, or move it."
        )


def _read_state(checkpoint: Path, base: Path | None) -> dict:
    """What state.json says of a whole checkpoint; {} for a plain PEFT adapter, which needs `base`."""
    from engine.checkpoint import STATE_FILE, find_problem

    if not checkpoint.is_dir():
        raise InputError(
            str(checkpoint), "no such folder", "a checkpoint", "Give RUN/checkpoints/best, or latest, or a step-N."
        )
    if not (checkpoint / STATE_FILE).exists():
        if base is None:
            raise InputError(
                str(checkpoint),
                f"no {STATE_FILE}",
                "a checkpoint, or a PEFT adapter and its base",
                "Name the base model with --base, or give RUN/checkpoints/best.",
            )
        return {}
    problem = find_problem(checkpoint)
    if problem:
        raise InputError(
            str(checkpoint),
            problem,
            f"files with the sha256 of {STATE_FILE}",
            "Restore the checkpoint from a copy, or merge another step-N beside it.",
        )
    return json.loads((checkpoint / STATE_FILE).read_text())


def _check_base(base: Path, checkpoint: Path, state: dict) -> None:
    from engine.model import base_fingerprint

    if not (base / "config.json").is_file():
        raise InputError(
            str(base), "no config.json", "the base model's folder", "Name where the base model is now with --base."
        )
    expected = state["identity"]["base_fingerprint"] if state else None
    found = base_fingerprint(base)
    if expected not in (None, found):
        raise InputError(
            str(base),
            f"a model with fingerprint {found[:12]}",
            f"{expected[:12]}, the base that {checkpoint.name} was trained on ({state['base']})",
            "Name that model's folder with --base.",
        )


def _finish(temporary: Path, out: Path) -> None:
    """Make all bytes durable, then give the folder its name."""
    from preprocess.shards import sync_folder

    for path in temporary.rglob("*"):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    sync_folder(temporary)
    os.replace(temporary, out)
    sync_folder(out.parent)


def main(argv: list[str] | None = None) -> int:
    """Merge and say what to do next."""
    arguments = parse_arguments(argv)
    import torch

    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32, None: None}[arguments.dtype]
    merge(arguments.checkpoint, arguments.base, arguments.out, not arguments.no_verify, dtype)
    conditioning = _read_state(arguments.checkpoint, arguments.base).get("recipe", {}).get("conditioning", "codes")
    if conditioning != "codes":
        print(
            f"warning: this model was trained with conditioning={conditioning}: it expects to hear the reference as "
            "a 16 kHz waveform, which Boson's HiggsAudioServeEngine does not pass (its collator and "
            "HiggsAudioModel.generate do)"
        )
    size_gb = sum(path.stat().st_size for path in arguments.out.glob("*.safetensors")) / 1e9
    print(f"{arguments.out}: the merged model, {size_gb:.2f} GB of weights, with config, tokenizer and layout")
    print(
        f"next: python -m launch.generate --model {arguments.out} --audio-tokenizer CODEC --hubert HUBERT "
        '--reference voice.wav --reference-text "..." --text "..." --out out.wav'
    )
    return 0


if __name__ == "__main__":
    exit_on_input_error(main)
