"""Merges an adapter into the base's tensors, one at a time, with PEFT's own arithmetic.

For each adapted weight one nn.Linear is built, put under PEFT with the adapter's config, and merged: PEFT itself
applies scale, rsLoRA, DoRA and per-layer ranks.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from peft import LoraConfig, PeftConfig, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.tuners_utils import check_target_module_exists
from torch import nn

from engine.checkpoint.adapter_config import read_adapter_config
from engine.checkpoint.checkpoint import ADAPTER_CONFIG_FILE, ADAPTER_FILE
from engine.model.weight_files import DTYPES, StoredTensor
from engine.model.write_weights import WriteTensor
from preprocess.common.errors import InputError, first_line
from preprocess.common.tensor_file import is_finite, read_tensors
from preprocess.corpus.base_model import how_to_name_a_base

PEFT_PREFIX = "base_model.model."
LORA_PARTS = ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector")


@dataclass(frozen=True)
class Adapter:
    """A PEFT LoRA adapter. `tensors` has names of the base model: "layers.0.mlp.up_proj.lora_A.weight"."""

    folder: Path
    config: LoraConfig
    tensors: dict[str, torch.Tensor]


# The adapter's tensors for one tensor of the base, by part: one of LORA_PARTS, or "" for a tensor trained whole.
Parts = dict[str, torch.Tensor]


def read_adapter(folder: Path) -> Adapter:
    """The adapter in `folder`. Raises InputError if a file is missing or broken, or can't become plain weights."""
    for name in (ADAPTER_FILE, ADAPTER_CONFIG_FILE):
        if not (folder / name).is_file():
            expected = "a checkpoint or a PEFT adapter folder"
            raise InputError(str(folder), f"no {name}", expected, "Name one with --checkpoint.")
    read_adapter_config(folder)
    action = "Restore it from a copy, or merge an earlier checkpoint."
    tensors = read_tensors(folder / ADAPTER_FILE, action, counts=False)
    try:
        config = PeftConfig.from_pretrained(str(folder))
    except Exception as error:  # PEFT raises errors of every kind
        found = f"files that can't be read ({first_line(error)})"
        raise InputError(str(folder), found, "a PEFT adapter", "Restore it from a copy.") from error
    # The base's weights have no place for biases, or for LoRA that applies to some positions only.
    if not isinstance(config, LoraConfig) or config.bias != "none" or config.alora_invocation_tokens:
        found = f"peft_type {config.peft_type}, bias {getattr(config, 'bias', None)!r}"
        expected = "a LoRA adapter of weights only (peft_type LORA, bias 'none', no alora_invocation_tokens)"
        action = "Merge it with the software that trained it."
        raise InputError(str(folder / ADAPTER_CONFIG_FILE), found, expected, action)
    return Adapter(folder, config, {name.removeprefix(PEFT_PREFIX): tensor for name, tensor in tensors.items()})


def assign_tensors(adapter: Adapter, base_shapes: dict[str, list[int]], base: Path) -> dict[str, Parts]:
    """{name of a base tensor: the adapter's tensors for it}; each tensor of the adapter is assigned exactly once.

    Raises InputError that names tensors without a counterpart in the base, tensors of another shape, and layers that
    the adapter's config adapts but its file lacks.
    """
    assigned: dict[str, Parts] = {}
    wrong = []
    for name, tensor in adapter.tensors.items():
        part = next((part for part in LORA_PARTS if name.endswith(f".{part}")), "")
        target = f"{name.removesuffix(part)}weight" if part else name
        shape = base_shapes.get(target)
        if shape is not None and _shape_fits(part, tensor, shape):
            assigned.setdefault(target, {})[part] = tensor
        else:
            wrong.append(f"{name} {list(tensor.shape)} for {'no tensor' if shape is None else shape}")
    with _explain_peft_errors(adapter):
        wrong += [
            f"nothing for {name}, which the adapter's config adapts"
            for name, shape in base_shapes.items()
            if len(shape) == 2 and name.endswith(".weight") and name not in assigned
            if check_target_module_exists(adapter.config, name.removesuffix(".weight"))
        ]
    if wrong:
        found = "; ".join(wrong[:5]) + (f"; and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        expected = f"an adapter whose every tensor belongs to {base}"
        action = "Name the base model it was trained on with --base."
        raise InputError(str(adapter.folder / ADAPTER_FILE), found, expected, action)
    return assigned


def _shape_fits(part: str, tensor: torch.Tensor, shape: list[int]) -> bool:
    """Whether an adapter's tensor can be this part of a base tensor of `shape`."""
    if part == "lora_A.weight":
        return tensor.dim() == len(shape) == 2 and tensor.shape[1] == shape[1]
    if part == "lora_B.weight":
        return tensor.dim() == len(shape) == 2 and tensor.shape[0] == shape[0]
    return list(tensor.shape) == (shape[:1] if part else shape)


def merge_tensor(name: str, weight: torch.Tensor, parts: Parts, adapter: Adapter) -> torch.Tensor:
    """fp32 [out, in]: the base tensor `name` with the adapter merged into it by PEFT.

    Raises InputError if the adapter lacks a part that its config calls for, or has one too many.
    """
    if "" in parts:
        return parts[""].float()
    path = name.removesuffix(".weight")
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight.float(), requires_grad=False)
    root = _module_at(path, linear)
    with _explain_peft_errors(adapter):
        inject_adapter_in_model(adapter.config, root)
        result: Any = set_peft_model_state_dict(root, {f"{path}.{part}": tensor for part, tensor in parts.items()})
    missing = [key for key in result.missing_keys if ".lora_" in key]
    if missing or result.unexpected_keys:
        where, found = f"{adapter.folder / ADAPTER_FILE}: {path}", f"parts {', '.join(sorted(parts))}"
        action = "The two files belong to different adapters: restore the folder from a copy."
        raise InputError(where, found, f"those that {ADAPTER_CONFIG_FILE} calls for", action)
    layer = root.get_submodule(path)
    assert isinstance(layer, LoraLinear)
    layer.merge()  # into the weight of `linear`, which it wraps
    if not is_finite(linear.weight):
        where, found = str(adapter.folder / ADAPTER_CONFIG_FILE), f"a scale that makes {name} infinite or NaN"
        raise InputError(where, found, "finite weights", "Restore the adapter from a copy, or merge another one.")
    return linear.weight.data


@contextlib.contextmanager
def _explain_peft_errors(adapter: Adapter) -> Iterator[None]:
    """Inside, an error of PEFT's about the adapter's config becomes an InputError."""
    try:
        yield
    except Exception as error:  # PEFT raises errors of every kind
        if isinstance(error, InputError | MemoryError):
            raise
        where, found = (
            str(adapter.folder / ADAPTER_CONFIG_FILE),
            f"values that PEFT can't apply ({first_line(error)})",
        )
        raise InputError(where, found, "a LoRA adapter of this base", "Restore it from a copy.") from error


def _module_at(path: str, module: nn.Module) -> nn.Module:
    """A module that contains only `module`, at the dotted `path` by which PEFT's config selects it."""
    root = parent = nn.Module()
    *parents, last = path.split(".")
    for name in parents:
        child = nn.Module()
        parent.add_module(name, child)
        parent = child
    parent.add_module(last, module)
    return root


def write_merged(assigned: dict[str, Parts], adapter: Adapter) -> WriteTensor:
    """What writes a tensor of the base merged with its assigned parts, in fp32 and rounded once; others as they are.

    It raises InputError for NaN or infinity in the base, or that the adapter makes.
    """

    def write(file: BinaryIO, name: str, stored: StoredTensor, dtype: str) -> None:
        tensor, where = stored.load(), f"{stored.pieces[0].path}: {name}"
        if not is_finite(tensor):
            raise InputError(where, "NaN or infinity", "finite weights", how_to_name_a_base("--base"))
        if name in assigned:
            tensor = merge_tensor(name, tensor, assigned[name], adapter)
        tensor = tensor.to(DTYPES[dtype])
        if not is_finite(tensor):
            raise InputError(where, f"a number too large for {dtype}", "finite weights", "Merge with --dtype fp32.")
        data: Any = tensor.contiguous().flatten().view(torch.uint8).numpy()
        file.write(data)

    return write
