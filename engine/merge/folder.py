"""Merges a checkpoint's adapter and its base into one complete model folder."""

import json
import shutil
from pathlib import Path
from typing import Literal

import torch

from engine.base.hub_origin import hub_origin
from engine.base.run_record import RUN_FILE, read_run
from engine.checkpoint.checkpoint import ADAPTER_FILE, CARD_FILE, STATE_FILE, find_problem, read_state
from engine.merge.check import MergeCheck, check_merge
from engine.merge.check_layers import check_layers
from engine.merge.weights import assign_tensors, merged_blocks, read_adapter
from engine.model.base_tensors import check_tensors
from engine.model.fingerprint import base_fingerprint
from engine.model.folder_files import write_folder_files
from engine.model.write_weights import write_weights
from engine.speak.model_card import model_card
from engine.speak.voice_training import FACTS_FILE, merged_adapters, write_facts
from preprocess.common.errors import InputError, explain_write_errors
from preprocess.common.files import finish_folder, refuse_used_folder, sha256_file, write_json
from preprocess.common.json_file import JsonObject
from preprocess.common.say import say
from preprocess.corpus.base_model import read_base_model
from preprocess.corpus.native_layout import Layout

Verify = Literal["layers", "model", "none"]


def merge_checkpoint(
    checkpoint: Path,
    base: Path | None,
    out: Path,
    verify: Verify = "layers",
    dtype: torch.dtype | None = None,
    layout: Layout = "boson",
    base_id: str | None = None,
) -> JsonObject:
    """Write the merged model into `out`, computed in fp32 and rounded once; returns the checkpoint's state.json.

    That is {} for a plain PEFT adapter.

    base: of either layout; None is the folder that the checkpoint was trained on. dtype: of the weights; None keeps
    each tensor's own. layout: of the merged folder. base_id: "ORG/NAME[@REVISION]" of the base on the hub.

    Blocks of rows are in memory at a time. verify: "layers" reads the written files again
    (engine.merge.check_layers), "model" loads whole models (engine.merge.check). Raises InputError, before anything
    is written, for what a user can mend, and RuntimeError for a merge that is not right.
    """
    checkpoint, out = checkpoint.resolve(), out.resolve()
    refuse_used_folder(out)
    state = _read_state(checkpoint, base)
    base = base or _recorded_base(checkpoint)
    tensors = check_tensors(base, "--base")
    _refuse_other_base(base, checkpoint, state)
    _refuse_merging_twice(base, checkpoint)
    adapter = read_adapter(checkpoint)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    assigned = assign_tensors(adapter, shapes, base)
    say(f"{checkpoint}: {len(adapter.tensors)} tensors change {len(assigned)} of {len(shapes)} in {base}")

    temporary = out.with_name(f".{out.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with explain_write_errors(out.parent, "Free space or name another --out, then merge again."):
            temporary.mkdir(parents=True)
            write_folder_files(read_base_model(base, "--base"), temporary, layout, "--base")
            write_weights(tensors, temporary, layout, merged_blocks(assigned, adapter), dtype)
            if dtype is not None:
                _record_dtype(temporary, str(dtype).removeprefix("torch."))
            facts = write_facts(temporary, checkpoint, base, state, hub_origin(base, base_id))
            card = model_card(layout, facts["training"], state.get("recipe", {}), facts["layout"]["system_text"])
            (temporary / CARD_FILE).write_text(card, encoding="utf-8")
            if verify == "layers":
                _describe_check("the outputs of its layers", check_layers(tensors, assigned, adapter, temporary))
            elif verify == "model":
                _describe_check("its logits", check_merge(base, checkpoint, temporary))
            finish_folder(temporary, out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return state


def _describe_check(what: str, check: MergeCheck) -> None:
    say(f"checked: {what} differ from base + adapter's by {check.difference:.1e} of their norm")
    say(f"of the adapter's effect, {check.kept:.1%} is kept")
    if check.kept < 0.9:
        say("warning: rounding loses much of so small a change; --dtype fp32 keeps it")


def _read_state(checkpoint: Path, base: Path | None) -> JsonObject:
    """state.json of a checkpoint, whose hashes are checked; {} for a plain PEFT adapter, which needs `base`."""
    if not checkpoint.is_dir():
        action = "Name RUN/checkpoints/best, or latest, or a step-N beside them."
        raise InputError(str(checkpoint), "no such folder", "a checkpoint", action)
    if not (checkpoint / STATE_FILE).exists():
        if base is None:
            expected = "a checkpoint, or a PEFT adapter and its base"
            action = "Name the base model with --base, or give RUN/checkpoints/best."
            raise InputError(str(checkpoint), f"no {STATE_FILE}", expected, action)
        return {}
    problem = find_problem(checkpoint)
    if problem:
        action = "Restore the checkpoint from a copy, or merge another step-N beside it."
        raise InputError(str(checkpoint), problem, f"files with the sha256 of {STATE_FILE}", action)
    return read_state(checkpoint)


def _recorded_base(checkpoint: Path) -> Path:
    """The base's folder, by run.json of the run that the checkpoint is in."""
    run = checkpoint.parent.parent
    folder = read_run(run).get("base_folder") if (run / RUN_FILE).exists() else None
    if not isinstance(folder, str):
        action = "Name the base model it was trained on with --base."
        raise InputError(
            str(checkpoint), f"no {RUN_FILE} of its run in {run}", "a checkpoint in its run folder", action
        )
    return Path(folder)


def _refuse_other_base(base: Path, checkpoint: Path, state: JsonObject) -> None:
    expected = state["identity"]["base_fingerprint"] if state else None
    found = base_fingerprint(base, "--base")
    if expected not in (None, found):
        described = f"{expected[:12]}, the base that {checkpoint.name} was trained on"
        action = "Name that model's folder with --base."
        raise InputError(str(base), f"a model with fingerprint {found[:12]}", described, action)


def _refuse_merging_twice(base: Path, checkpoint: Path) -> None:
    if (checkpoint / ADAPTER_FILE).is_file() and sha256_file(checkpoint / ADAPTER_FILE) in merged_adapters(base):
        found = f"a model that has {checkpoint.name} merged into it already, as its {FACTS_FILE} says"
        action = (
            "Name the base that the adapter was trained on with --base. Twice merged, its change would be doubled."
        )
        raise InputError(str(base), found, "a base without this adapter", action)


def _record_dtype(folder: Path, dtype: str) -> None:
    """Write the weights' new dtype into config.json, which the engines go by."""
    config = json.loads((folder / "config.json").read_text())
    key = "dtype" if "dtype" in config else "torch_dtype"  # transformers 5 and Boson
    write_json(folder / "config.json", {**config, key: dtype})
