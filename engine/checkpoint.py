"""Checkpoints that are valid or absent: one topology-free training state, without pickle.

    checkpoints/step-000500/
        adapter_model.safetensors   fp32 masters under PEFT's names: what evaluation, resume and merge start from
        adapter_config.json         PEFT's own config
        optimizer.safetensors       both AdamW moments, "exp_avg." and "exp_avg_sq." + PEFT's names
        state.json                  step, recipe, layout, fingerprints, sha256 of the files above
    checkpoints/latest, checkpoints/best   symbolic links

A checkpoint is written into a hidden folder, fsynced, read back, renamed; the links move after that.
"""

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from preprocess.errors import InputError
from preprocess.shards import sha256_file, sync_folder, write_atomically

ADAPTER_FILE = "adapter_model.safetensors"
ADAPTER_CONFIG_FILE = "adapter_config.json"
OPTIMIZER_FILE = "optimizer.safetensors"
STATE_FILE = "state.json"
_HASHED_FILES = (ADAPTER_FILE, ADAPTER_CONFIG_FILE, OPTIMIZER_FILE)


@dataclass
class TrainingState:
    """What a checkpoint gives back. masters and moments are fp32 by the live model's parameter names."""

    state: dict
    masters: dict[str, torch.Tensor]
    moments: dict[str, dict[str, torch.Tensor]]


def peft_names(model: PeftModel, parameter_names: list[str]) -> dict[str, str]:
    """{parameter name: name in a saved adapter}, by PEFT's own renaming.

    PEFT renames keys of a state dict; giving each key its number as value tells which became which.
    """
    prefix = "model."  # of LossModel around the PeftModel
    numbered = {name.removeprefix(prefix): torch.tensor(number) for number, name in enumerate(parameter_names)}
    saved = get_peft_model_state_dict(model, state_dict=numbered, save_embedding_layers=False)
    assert len(saved) == len(parameter_names), "PEFT does not save every trainable parameter"
    return {parameter_names[int(number)]: name for name, number in saved.items()}


def write_adapter(folder: Path, model: PeftModel, masters: dict[str, torch.Tensor]) -> None:
    """Write the two files of a standard PEFT adapter, weights in fp32, bytes that depend on nothing else."""
    names = peft_names(model, list(masters))
    tensors = {names[name]: tensor.contiguous() for name, tensor in masters.items()}
    save_file(tensors, folder / ADAPTER_FILE, metadata={"format": "pt"})
    config = model.peft_config["default"].to_dict()
    config["inference_mode"] = True
    config = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    (folder / ADAPTER_CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def save(
    root: Path,
    step: int,
    model: PeftModel,
    masters: dict[str, torch.Tensor],
    moments: dict[str, dict[str, torch.Tensor]],
    state: dict,
) -> Path:
    """Write checkpoints/step-N under `root` and point `latest` at it. One rank calls it, with gathered tensors."""
    folder = root / f"step-{step:06d}"
    temporary = root / f".{folder.name}.partial"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    write_adapter(temporary, model, masters)
    names = peft_names(model, list(masters))
    save_file(
        {
            f"{moment}.{names[name]}": tensor.contiguous()
            for moment, tensors in moments.items()
            for name, tensor in tensors.items()
        },
        temporary / OPTIMIZER_FILE,
    )
    for name in _HASHED_FILES:
        _sync_file(temporary / name)
    state = {**state, "step": step, "sha256": {name: sha256_file(temporary / name) for name in _HASHED_FILES}}
    write_atomically(temporary / STATE_FILE, (json.dumps(state, indent=2, sort_keys=True) + "\n").encode())
    problem = find_problem(temporary)
    if problem is not None:
        raise OSError(f"{temporary} reads back otherwise than it was written: {problem}")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)
    sync_folder(root)
    point(root, "latest", folder)
    return folder


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def point(root: Path, name: str, folder: Path) -> None:
    """Make `root/name` a link to `folder`, in one move."""
    temporary = root / f".{name}.partial"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(folder.name)
    os.replace(temporary, root / name)
    sync_folder(root)


def find_problem(folder: Path) -> str | None:
    """Why the checkpoint can't be used, or None: every file is there with the hash that state.json says."""
    try:
        state = json.loads((folder / STATE_FILE).read_text())
    except (OSError, json.JSONDecodeError) as error:
        return f"{STATE_FILE} can't be read: {error}"
    for name in _HASHED_FILES:
        if not (folder / name).is_file():
            return f"{name} is missing"
        if sha256_file(folder / name) != state.get("sha256", {}).get(name):
            return f"{name} has another sha256 than {STATE_FILE} says"
    return None


def list_checkpoints(root: Path) -> list[Path]:
    """Folders step-N under `root`, oldest first; unfinished ones have other names and are not among them."""
    return sorted(path for path in root.glob("step-*") if re.fullmatch(r"step-\d{6,}", path.name) and path.is_dir())


def find_newest(root: Path, log) -> Path | None:
    """The newest checkpoint whose hashes hold, or None where there is no checkpoint at all.

    log: called with a line for each one passed over. Raises InputError where there are some and none is whole:
    a run never starts over in silence.
    """
    folders = list_checkpoints(root)
    for folder in reversed(folders):
        problem = find_problem(folder)
        if problem is None:
            return folder
        log(f"checkpoint {folder} is passed over: {problem}")
    if folders:
        raise InputError(
            str(root),
            f"{len(folders)} checkpoints, none of them whole",
            "one whose files have the hashes of its state.json",
            "Restore one from a copy, or start anew with another --out.",
        )
    return None


def load(folder: Path, model: PeftModel, parameter_names: list[str]) -> TrainingState:
    """Read a checkpoint found by `find_newest` for the live `model`.

    Raises InputError where the adapter's tensors are not those of the model.
    """
    names = peft_names(model, parameter_names)
    adapter = load_file(folder / ADAPTER_FILE)
    optimizer = load_file(folder / OPTIMIZER_FILE)
    shapes = dict(model.named_parameters())
    for name, saved in names.items():
        expected = shapes[name.removeprefix("model.")].shape
        found = adapter[saved].shape if saved in adapter else None
        if found != expected or len(adapter) != len(names):
            raise InputError(
                f"{folder / ADAPTER_FILE}: {saved}",
                f"{'no tensor' if found is None else list(found)} among {len(adapter)}",
                f"{list(expected)} among {len(names)}, as the recipe's LoRA has it",
                "Resume with the recipe of the run (recipe.yaml in its folder), or use another --out.",
            )
    return TrainingState(
        state=json.loads((folder / STATE_FILE).read_text()),
        masters={name: adapter[saved] for name, saved in names.items()},
        moments={
            moment: {name: optimizer[f"{moment}.{saved}"] for name, saved in names.items()}
            for moment in ("exp_avg", "exp_avg_sq")
        },
    )


def refuse_other_run(folder: Path, expected: dict) -> None:
    """Raise InputError naming each fact of the checkpoint's `identity` that differs from this run's."""
    found = json.loads((folder / STATE_FILE).read_text())["identity"]
    different = [key for key in sorted(expected) if found.get(key) != expected[key]]
    if different:
        raise InputError(
            f"{folder}: {', '.join(different)}",
            "; ".join(f"{key} {found.get(key)} in the checkpoint" for key in different),
            "; ".join(f"{key} {expected[key]}, as this command says" for key in different),
            "Resume with the same base, corpus and recipe, or start a new run with another --out.",
        )


def prune(root: Path, keep: int) -> None:
    """Delete all checkpoints but the newest `keep` and the best."""
    best = (root / "best").resolve()
    for folder in list_checkpoints(root)[:-keep]:
        if folder.resolve() != best:
            # Renamed first, so that a kill in mid-way leaves no half checkpoint under its name.
            os.replace(folder, root / f".{folder.name}.partial")
    for leftover in root.glob(".step-*.partial"):
        shutil.rmtree(leftover)
