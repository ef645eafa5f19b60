"""A checkpoint's adapter and its base become one complete folder."""

import json
import shutil
from pathlib import Path

import torch

from engine.base.trainable_base import read_trainable_base
from engine.checkpoint.checkpoint import STATE_FILE, find_problem
from engine.merge.check import check_merge
from engine.merge.weights import assign_tensors, read_adapter, read_header, weight_files, write_merged_shard
from engine.model.weights import base_fingerprint
from engine.speak.voice_training import write_facts
from preprocess.common.errors import InputError, explain_write_errors
from preprocess.common.files import finish_folder, write_json


def merge(
    checkpoint: Path, base: Path | None, out: Path, verify: bool = True, dtype: torch.dtype | None = None
) -> dict:
    """Write `out`: the base with the checkpoint's adapter in it, computed in fp32 and rounded once.

    Returns what state.json says of the checkpoint; {} for a plain PEFT adapter.

    base: None takes the folder the checkpoint was trained on. dtype: of the weights; None keeps each tensor's own.
    Of the base one tensor is in memory at a time; `verify` loads whole models (engine.merge.check). Raises
    InputError for what the user can mend, before anything is written.
    """
    checkpoint, out = checkpoint.resolve(), out.resolve()
    _refuse_used_folder(out)
    state = _read_state(checkpoint, base)
    base = Path(base or state["base"])
    read_trainable_base(base, "--base")
    _refuse_other_base(base, checkpoint, state)
    adapter = read_adapter(checkpoint)
    shards = weight_files(base)
    shapes = {name: entry["shape"] for shard in shards for name, entry in read_header(shard).items()}
    assigned = assign_tensors(adapter, shapes, base)
    print(
        f"{checkpoint}: {len(adapter.tensors)} tensors change {len(assigned)} of {len(shapes)} in {base}", flush=True
    )

    temporary = out.with_name(f".{out.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with explain_write_errors(out.parent, "Free space or name another --out, then merge again."):
            temporary.mkdir(parents=True)
            for shard in shards:
                write_merged_shard(shard, temporary / shard.name, assigned, adapter, dtype)
            copy_other_files(base, temporary)
            if dtype is not None:
                record_dtype(temporary, str(dtype).removeprefix("torch."))
            write_facts(temporary, checkpoint, base, state)
            if verify:
                _compare_logits(base, checkpoint, temporary)
            finish_folder(temporary, out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return state


def _compare_logits(base: Path, checkpoint: Path, merged: Path) -> None:
    print("comparing the merged model's logits with base + adapter's", flush=True)
    check = check_merge(base, checkpoint, merged)
    print(f"they differ by {check.difference:.1e} of their norm, and keep {check.kept:.1%} of the adapter")
    if check.kept < 0.9:
        print("warning: rounding loses much of so small a change; --dtype fp32 keeps it", flush=True)


def _refuse_used_folder(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(
            str(out), "something there already", "a folder that is new or empty", "Give another --out, or move it."
        )


def _read_state(checkpoint: Path, base: Path | None) -> dict:
    """What state.json says of a whole checkpoint; {} for a plain PEFT adapter, which needs `base`."""
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


def _refuse_other_base(base: Path, checkpoint: Path, state: dict) -> None:
    expected = state["identity"]["base_fingerprint"] if state else None
    found = base_fingerprint(base)
    if expected not in (None, found):
        raise InputError(
            str(base),
            f"a model with fingerprint {found[:12]}",
            f"{expected[:12]}, the base that {checkpoint.name} was trained on ({state['base']})",
            "Name that model's folder with --base.",
        )


_WEIGHT_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth", ".gguf"}


def copy_other_files(base: Path, target: Path) -> None:
    """Config, tokenizer, index, licence: all of the base folder that is neither weights nor hidden."""
    for path in sorted(base.rglob("*")):
        relative = path.relative_to(base)
        hidden = any(part.startswith(".") for part in relative.parts)
        if path.is_file() and path.suffix not in _WEIGHT_SUFFIXES and not hidden:
            (target / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / relative)


def record_dtype(folder: Path, dtype: str) -> None:
    """Say in config.json and the shards' index what the weights are now; Boson's engine loads them so."""
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", {**config, "torch_dtype": dtype})
    index_path = folder / "model.safetensors.index.json"
    if index_path.is_file():
        index = json.loads(index_path.read_text())
        index["metadata"]["total_size"] = sum(
            entry["data_offsets"][1] - entry["data_offsets"][0]
            for path in weight_files(folder)
            for entry in read_header(path).values()
        )
        write_json(index_path, index)
