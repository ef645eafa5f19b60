"""Checkpoints: complete or absent, independent of the number of ranks, without pickle.

    checkpoints/step-000500/
        adapter_model.safetensors   fp32 master weights under PEFT's names: for resume, merge and PEFT itself
        adapter_config.json         PEFT's own config
        optimizer.safetensors       both AdamW moments, "exp_avg." and "exp_avg_sq." + PEFT's names
        README.md                   a model card
        state.json                  a record: step, recipe, fingerprints, lineage; size and sha256 of each file
    checkpoints/latest, checkpoints/best   symbolic links

A checkpoint is written into a hidden folder, read back, fsynced and renamed; then the links are moved.
"""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import save_file

from engine.checkpoint.state_form import StateForm
from preprocess.common.errors import InputError
from preprocess.common.files import finish_folder, replace_link, sha256_file, write_json
from preprocess.common.json_file import JsonObject, read_file
from preprocess.common.record import read_record, write_record
from preprocess.common.tensor_file import read_tensors

ADAPTER_FILE = "adapter_model.safetensors"
ADAPTER_CONFIG_FILE = "adapter_config.json"
OPTIMIZER_FILE = "optimizer.safetensors"
STATE_FILE = "state.json"
CARD_FILE = "README.md"
LINKS = ("latest", "best")
_RESTORE = "Restore it from a copy, or take the checkpoint before it."
_HASHED_FILES = (ADAPTER_FILE, ADAPTER_CONFIG_FILE, OPTIMIZER_FILE)


def peft_names(model: PeftModel, parameter_names: list[str]) -> dict[str, str]:
    """{parameter name: name in a saved adapter}, by PEFT's own renaming.

    PEFT renames the keys of a state dict. Here each value is the number of its key, which shows how PEFT renamed it.
    """
    prefix = "model."  # of LossModel around the PeftModel
    numbered = {name.removeprefix(prefix): torch.tensor(number) for number, name in enumerate(parameter_names)}
    saved = get_peft_model_state_dict(model, state_dict=numbered, save_embedding_layers=False)
    assert len(saved) == len(parameter_names), "PEFT does not save every trainable parameter"
    return {parameter_names[int(number)]: name for name, number in saved.items()}


def _save_tensors(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file. Raises OSError, as other writers do, if it can't be written."""
    try:
        save_file(tensors, path, metadata=metadata)
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def write_checkpoint(
    root: Path,
    step: int,
    model: PeftModel,
    masters: dict[str, torch.Tensor],
    moments: dict[str, dict[str, torch.Tensor]],
    state: JsonObject,
    card: str = "",
) -> Path:
    """The folder step-N under `root`, written complete, with `latest` pointing to it. Rank 0 calls this.

    masters, moments: gathered fp32 tensors by parameter name. card: the text of its README.md. Raises OSError if what
    was written reads back wrong.
    """
    folder = step_folder(root, step)
    temporary = root / f".{folder.name}.partial"
    _remove_leftovers(root)
    temporary.mkdir(parents=True, exist_ok=True)
    names = peft_names(model, list(masters))
    tensors = {names[name]: tensor.contiguous() for name, tensor in masters.items()}
    _save_tensors(tensors, temporary / ADAPTER_FILE, {"format": "pt"})
    named = {"base_model_name_or_path": (state.get("base") or {}).get("id")}  # PEFT's own is a path on this machine
    config = {**model.peft_config["default"].to_dict(), "inference_mode": True, **named}
    # JSON has no sets; sorted, the same adapter always gives the same bytes.
    config = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    write_json(temporary / ADAPTER_CONFIG_FILE, config, sort_keys=True)
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
    write_record(temporary / STATE_FILE, state)
    (temporary / CARD_FILE).write_text(card, encoding="utf-8")
    problem = find_problem(temporary)
    if problem is not None:
        raise OSError(f"{temporary} does not read back as it was written: {problem}")
    if folder.exists():  # a damaged one, which the run skipped when it resumed
        os.replace(folder, root / f".{folder.name}.removed.partial")
    finish_folder(temporary, folder)
    replace_link(root / "latest", folder.name)
    return folder


def update_state(folder: Path, facts: JsonObject) -> None:
    """Replace these `facts` in the state.json of a complete checkpoint, atomically."""
    write_record(folder / STATE_FILE, {**read_state(folder), **facts})


def step_folder(root: Path, step: int) -> Path:
    """The folder of the checkpoint after global step `step`."""
    return root / f"step-{step:06d}"


def find_problem(folder: Path) -> str | None:
    """Why the checkpoint can't be used; None if each file has the size and sha256 that state.json records."""
    try:
        state = read_state(folder)
    except InputError as error:
        return f"{STATE_FILE} can't be used: {error.found}"
    number = re.fullmatch(r"step-(\d+)", folder.name)
    if number and int(number[1]) != state["step"]:
        return f"{STATE_FILE} is of step {state['step']}"
    for name in _HASHED_FILES:
        if not (folder / name).is_file():
            return f"{name} is missing"
        found_bytes, num_bytes = (folder / name).stat().st_size, state["bytes"].get(name, 0)
        if found_bytes != num_bytes:
            return f"{name} has {found_bytes:,} bytes, {num_bytes:,} were written"
        if sha256_file(folder / name) != state["sha256"].get(name):
            return f"{name} has another sha256 than {STATE_FILE} records"
    return None


def list_checkpoints(root: Path) -> list[Path]:
    """Folders step-N under `root`, oldest first, damaged ones too; unfinished saves have other names."""
    folders = [path for path in root.glob("step-*") if re.fullmatch(r"step-\d{6,}", path.name) and path.is_dir()]
    return sorted(folders, key=lambda path: int(path.name.removeprefix("step-")))


def find_newest(root: Path, log: Callable[[str], None]) -> Path | None:
    """The newest undamaged checkpoint under `root`, or None if there is no checkpoint at all.

    log: called with a line for each checkpoint or link that is passed over. Raises InputError if all checkpoints are
    damaged: a run never starts over unnoticed.
    """
    folders = list_checkpoints(root)
    for leftover in _list_leftovers(root):
        log(f"{leftover} is passed over: its save or removal was interrupted")
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
            "Restore one from a copy, or start again with another --out.",
        )
    return None


def read_state(folder: Path) -> JsonObject:
    """The state.json of a complete checkpoint. Raises InputError for a missing or damaged one."""
    path, expected, action = folder / STATE_FILE, "a record as it was written", "Restore it from a copy."
    return read_record(str(path), read_file(path, expected, action), StateForm, action)


def load_masters(folder: Path, model: PeftModel, parameter_names: list[str]) -> dict[str, torch.Tensor]:
    """{parameter name of `model`: fp32 weight} from a checkpoint or a PEFT adapter.

    Raises InputError if the adapter's tensors do not match the model's.
    """
    names = peft_names(model, parameter_names)
    adapter = read_tensors(folder / ADAPTER_FILE, _RESTORE, counts=False)
    shapes = dict(model.named_parameters())
    for name, saved in names.items():
        expected = shapes[name.removeprefix("model.")].shape
        found = adapter[saved].shape if saved in adapter else None
        if found != expected or len(adapter) != len(names):
            raise InputError(
                f"{folder / ADAPTER_FILE}: {saved}",
                f"{'no tensor' if found is None else f'shape {list(found)}'}, {len(adapter)} tensors in the file",
                f"shape {list(expected)}, {len(names)} tensors, by the recipe's lora",
                "Use the recipe of the run that wrote the adapter (recipe.yaml in its folder).",
            )
    return {name: adapter[saved].float() for name, saved in names.items()}


def load_moments(folder: Path, model: PeftModel, parameter_names: list[str]) -> dict[str, dict[str, torch.Tensor]]:
    """{exp_avg, exp_avg_sq: {parameter name of `model`: fp32 tensor}}: AdamW's moments from a complete checkpoint.

    Raises InputError unless each parameter has both, in its shape, with no negative second moment.
    """
    path = folder / OPTIMIZER_FILE
    optimizer, shapes = read_tensors(path, _RESTORE, counts=False), dict(model.named_parameters())
    moments: dict[str, dict[str, torch.Tensor]] = {}
    for name, saved in peft_names(model, parameter_names).items():
        expected = shapes[name.removeprefix("model.")].shape
        for moment in ("exp_avg", "exp_avg_sq"):
            tensor = optimizer.get(f"{moment}.{saved}")
            if tensor is None or tensor.shape != expected:
                found = "no tensor" if tensor is None else f"shape {list(tensor.shape)}"
                raise InputError(f"{path}: {moment}.{saved}", found, f"shape {list(expected)}", _RESTORE)
            if moment == "exp_avg_sq" and tensor.numel() and tensor.min() < 0:
                raise InputError(f"{path}: {moment}.{saved}", f"{tensor.min():.3g}", "means of squares", _RESTORE)
            moments.setdefault(moment, {})[name] = tensor.float()
    if len(optimizer) != 2 * len(parameter_names):
        expected_count = f"{2 * len(parameter_names)}, two for each trained weight"
        raise InputError(str(path), f"{len(optimizer)} tensors", expected_count, _RESTORE)
    return moments


def prune_checkpoints(root: Path, keep: int, newest: Path) -> None:
    """Delete all checkpoints but `newest`, the `keep` - 1 before it and the best; and what interrupted saves left.

    Checkpoints of later steps than `newest` were skipped as damaged when the run resumed: they stay and do not count.
    """
    best = (root / "best").resolve()
    folders = list_checkpoints(root)
    for folder in folders[: folders.index(newest) + 1][:-keep]:
        if folder.resolve() != best:
            # Renamed first, so that a kill during the removal leaves no half checkpoint under its name.
            os.replace(folder, root / f".{folder.name}.removed.partial")
    _remove_leftovers(root)


def _remove_leftovers(root: Path) -> None:
    """Remove what interrupted saves and removals left; a file that is open on NFS stays until the next call."""
    for leftover in _list_leftovers(root):
        shutil.rmtree(leftover, ignore_errors=True)


def _list_leftovers(root: Path) -> list[Path]:
    return sorted(root.glob(".step-*.partial"))
