"""Checkpoints that are valid or absent: one topology-free training state, without pickle.

    checkpoints/step-000500/
        adapter_model.safetensors   fp32 masters under PEFT's names: what evaluation, resume and merge start from
        adapter_config.json         PEFT's own config
        optimizer.safetensors       both AdamW moments, "exp_avg." and "exp_avg_sq." + PEFT's names
        state.json                  step, recipe, fingerprints, lineage; size and sha256 of each file
    checkpoints/latest, checkpoints/best   symbolic links

A checkpoint is written into a hidden folder, read back, fsynced, renamed; the links move after that.
"""

import hashlib
import json
import os
import re
import shutil
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from preprocess.common.errors import InputError
from preprocess.common.files import finish_folder, replace_link, sha256_file, write_json

ADAPTER_FILE = "adapter_model.safetensors"
ADAPTER_CONFIG_FILE = "adapter_config.json"
OPTIMIZER_FILE = "optimizer.safetensors"
STATE_FILE = "state.json"
LINKS = ("latest", "best")
_HASHED_FILES = (ADAPTER_FILE, ADAPTER_CONFIG_FILE, OPTIMIZER_FILE)


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
    _save_tensors(tensors, folder / ADAPTER_FILE, {"format": "pt"})
    config = model.peft_config["default"].to_dict()
    config["inference_mode"] = True
    config = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    write_json(folder / ADAPTER_CONFIG_FILE, config, sort_keys=True)


def _save_tensors(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file. Raises OSError where it can't be written, as any other writer does."""
    try:
        save_file(tensors, path, metadata=metadata)
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def save(
    root: Path,
    step: int,
    model: PeftModel,
    masters: dict[str, torch.Tensor],
    moments: dict[str, dict[str, torch.Tensor]],
    state: dict,
) -> Path:
    """Write checkpoints/step-N under `root` and point `latest` at it. One rank calls it, with gathered tensors."""
    folder = step_folder(root, step)
    temporary = root / f".{folder.name}.partial"
    _remove_leftovers(root)
    temporary.mkdir(parents=True, exist_ok=True)
    write_adapter(temporary, model, masters)
    names = peft_names(model, list(masters))
    _save_tensors(
        {
            f"{moment}.{names[name]}": tensor.contiguous()
            for moment, tensors in moments.items()
            for name, tensor in tensors.items()
        },
        temporary / OPTIMIZER_FILE,
    )
    state = {
        **state,
        "step": step,
        "bytes": {name: (temporary / name).stat().st_size for name in _HASHED_FILES},
        "sha256": {name: sha256_file(temporary / name) for name in _HASHED_FILES},
    }
    _write_state(temporary, state)
    problem = find_problem(temporary)
    if problem is not None:
        raise OSError(f"{temporary} reads back otherwise than it was written: {problem}")
    if folder.exists():  # a damaged one, which the run passed over when it resumed
        os.replace(folder, root / f".{folder.name}.removed.partial")
    finish_folder(temporary, folder)
    replace_link(root / "latest", folder.name)
    return folder


def update_state(folder: Path, facts: dict) -> None:
    """Give the state.json of a whole checkpoint other `facts`, in one move."""
    _write_state(folder, {**read_state(folder), **facts})


def _write_state(folder: Path, state: dict) -> None:
    state = {**state, "state_sha256": _state_sha256(state)}
    write_json(folder / STATE_FILE, state, sort_keys=True)


def step_folder(root: Path, step: int) -> Path:
    """Where the checkpoint after global step `step` lies."""
    return root / f"step-{step:06d}"


def find_problem(folder: Path) -> str | None:
    """Why the checkpoint can't be used, or None: every file is there with the size and hash that state.json says."""
    try:
        state = json.loads((folder / STATE_FILE).read_text())
        recorded = {name: (state["bytes"][name], state["sha256"][name]) for name in _HASHED_FILES}
        if state["state_sha256"] != _state_sha256(state):
            return f"{STATE_FILE} has another sha256 than it says itself"
    except (OSError, ValueError, TypeError, KeyError) as error:
        return f"{STATE_FILE} can't be read ({type(error).__name__}: {error})"
    for name, (num_bytes, sha256) in recorded.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if (found_bytes := (folder / name).stat().st_size) != num_bytes:
            return f"{name} has {found_bytes:,} bytes, {num_bytes:,} were written"
        if sha256_file(folder / name) != sha256:
            return f"{name} has another sha256 than {STATE_FILE} says"
    return None


def _state_sha256(state: dict) -> str:
    rest = {key: value for key, value in state.items() if key != "state_sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def list_checkpoints(root: Path) -> list[Path]:
    """Folders step-N under `root`, oldest first; unfinished ones have other names and are not among them."""
    return sorted(path for path in root.glob("step-*") if re.fullmatch(r"step-\d{6,}", path.name) and path.is_dir())


def find_newest(root: Path, log) -> Path | None:
    """The newest checkpoint whose hashes hold, or None where there is no checkpoint at all.

    log: called with a line for each one passed over. Raises InputError where there are some and none is whole:
    a run never starts over in silence.
    """
    folders = list_checkpoints(root)
    for leftover in _leftovers(root):
        log(f"{leftover} is passed over: a save or a removal that was cut short")
    for name in LINKS:
        if (root / name).is_symlink() and not (root / name).exists():
            log(f"{root / name} is passed over: it points to {os.readlink(root / name)}, which is not there")
    for folder in reversed(folders):
        problem = find_problem(folder)
        if problem is None:
            return folder
        log(f"checkpoint {folder} is passed over: {problem}")
    if folders or (root / "latest").is_symlink():
        raise InputError(
            str(root),
            f"{len(folders)} checkpoints, none of them whole",
            "one whose files have the hashes of its state.json",
            "Restore one from a copy, or start anew with another --out.",
        )
    return None


def read_adapter_config(folder: Path) -> dict:
    """PEFT's config of an adapter. Raises InputError where it can't be read."""
    path = folder / ADAPTER_CONFIG_FILE
    try:
        config = json.loads(path.read_text())
        return {key: config[key] for key in ("r", "lora_alpha", "use_rslora", "use_dora")}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            str(path), f"text that can't be read ({error})", "PEFT's LoRA config", "Restore it."
        ) from error


def read_state(folder: Path) -> dict:
    """What state.json of a whole checkpoint says."""
    return json.loads((folder / STATE_FILE).read_text())


def load_masters(folder: Path, model: PeftModel, parameter_names: list[str]) -> dict[str, torch.Tensor]:
    """fp32 weights by the live model's parameter names, of a checkpoint or of a PEFT adapter.

    Raises InputError where the adapter's tensors are not those of the model.
    """
    names = peft_names(model, parameter_names)
    adapter = load_file(folder / ADAPTER_FILE)
    shapes = dict(model.named_parameters())
    for name, saved in names.items():
        expected = shapes[name.removeprefix("model.")].shape
        found = adapter[saved].shape if saved in adapter else None
        if found != expected or len(adapter) != len(names):
            raise InputError(
                f"{folder / ADAPTER_FILE}: {saved}",
                f"{'no tensor' if found is None else list(found)} among {len(adapter)}",
                f"{list(expected)} among {len(names)}, as the recipe's LoRA has it",
                "Use the recipe of the run that wrote it (recipe.yaml in its folder).",
            )
    return {name: adapter[saved].float() for name, saved in names.items()}


def load_moments(folder: Path, model: PeftModel, parameter_names: list[str]) -> dict[str, dict[str, torch.Tensor]]:
    """AdamW's exp_avg and exp_avg_sq, fp32 by the live model's parameter names, of a whole checkpoint."""
    optimizer = load_file(folder / OPTIMIZER_FILE)
    names = peft_names(model, parameter_names)
    return {
        moment: {name: optimizer[f"{moment}.{saved}"] for name, saved in names.items()}
        for moment in ("exp_avg", "exp_avg_sq")
    }


def prune(root: Path, keep: int, newest: Path) -> None:
    """Delete all checkpoints but `newest`, the `keep` - 1 before it and the best; then what was cut short before.

    What stands behind `newest` was passed over as damaged when the run resumed: it stays, and counts for nothing.
    """
    best = (root / "best").resolve()
    folders = list_checkpoints(root)
    for folder in folders[: folders.index(newest) + 1][:-keep]:
        if folder.resolve() != best:
            # Renamed first, so that a kill in mid-way leaves no half checkpoint under its name.
            os.replace(folder, root / f".{folder.name}.removed.partial")
    _remove_leftovers(root)


def _remove_leftovers(root: Path) -> None:
    """What can't be removed now (NFS keeps a file that somebody has open) is tried again at the next save."""
    for leftover in _leftovers(root):
        shutil.rmtree(leftover, ignore_errors=True)


def _leftovers(root: Path) -> list[Path]:
    return sorted(root.glob(".step-*.partial"))
