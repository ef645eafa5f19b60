"""Merges an adapter into the base's tensors, in blocks of rows, with PEFT's own arithmetic.

PEFT's merge of a whole tensor makes three copies in fp32: 4.8 GB for the text head of the 3B.
"""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.tuners_utils import check_target_module_exists
from torch import nn

from engine.checkpoint.adapter_config import read_adapter_config
from engine.checkpoint.checkpoint import ADAPTER_CONFIG_FILE, ADAPTER_FILE
from engine.model.weight_files import StoredTensor
from engine.model.write_weights import Blocks
from preprocess.common.errors import InputError, first_line
from preprocess.common.tensor_file import is_finite, read_tensors
from preprocess.corpus.base_model import how_to_name_a_base

PEFT_PREFIX = "base_model.model."
# Of so many rows, BLAS gives the bits that it gives of the whole (bench/LOG.md), on AVX2 as on AVX-512.
_BLOCK_ROWS = 256
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


class AdaptedLayer:
    """One layer of the base under PEFT with its part of an adapter: PEFT itself applies scale, rsLoRA and DoRA.

    The base's weight is given block by block, except with DoRA and the like, which need it whole. Raises InputError
    if the adapter lacks a part that its config calls for, or has one too many.
    """

    def __init__(self, name: str, stored: StoredTensor, parts: Parts, adapter: Adapter) -> None:
        self.name, self._stored, self._adapter = name, stored, adapter
        variants = [field.name for field in fields(LoraConfig) if field.metadata.get("is_lora_variant")]
        self.is_whole = any(getattr(adapter.config, name) for name in variants)
        path = name.removesuffix(".weight")
        rows, columns = stored.shape
        linear = nn.Linear(columns, rows, bias=False, device="meta")
        # One number that stands for all: no memory for a weight that is never used.
        weight = stored.load().float() if self.is_whole else torch.zeros(()).expand(rows, columns)
        linear.weight = nn.Parameter(weight, requires_grad=False)
        root = _module_at(path, linear)
        with _explain_peft_errors(adapter):
            inject_adapter_in_model(adapter.config, root)
            given = {f"{path}.{part}": tensor for part, tensor in parts.items()}
            result: Any = set_peft_model_state_dict(root, given)
        missing = [key for key in result.missing_keys if ".lora_" in key]
        if missing or result.unexpected_keys:
            where, found = f"{adapter.folder / ADAPTER_FILE}: {path}", f"parts {', '.join(sorted(parts))}"
            action = "The two files belong to different adapters: restore the folder from a copy."
            raise InputError(where, found, f"those that {ADAPTER_CONFIG_FILE} calls for", action)
        layer = root.get_submodule(path)
        assert isinstance(layer, LoraLinear)
        self._layer: Any = layer.eval()
        self._lora_b = parts["lora_B.weight"].float()

    def blocks(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """(base rows as stored, merged rows in fp32) of each block of rows; with DoRA one block of all."""
        if self.is_whole:
            weight = self._layer.get_base_layer().weight
            before = weight.data.clone()
            self._layer.merge()
            merged = weight.data.clone()
            weight.data = before  # for the live layer
            self._layer.merged_adapters.clear()
            yield before, merged
            return
        first = 0
        for rows in self._stored.blocks(_BLOCK_ROWS):
            self._take_rows(first, len(rows))
            yield rows, rows.to(torch.float32, copy=True).add_(self._layer.get_delta_weight("default"))
            first += len(rows)

    @torch.no_grad()
    def live(self, inputs: torch.Tensor, rows: torch.Tensor, first: int) -> torch.Tensor:
        """fp32 [n, len(rows)]: PEFT's live layer on inputs [n, columns]; `rows` of the base begin at row `first`."""
        if not self.is_whole:
            self._take_rows(first, len(rows))
            self._layer.get_base_layer().weight.data = rows.float()
        outputs: torch.Tensor = self._layer(inputs)
        return outputs

    def _take_rows(self, first: int, count: int) -> None:
        self._layer.lora_B["default"].weight.data = self._lora_b[first : first + count]


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


def merged_blocks(assigned: dict[str, Parts], adapter: Adapter) -> Blocks:
    """The blocks of a tensor of the base with its assigned parts merged in fp32 and rounded once; others as they are.

    They raise InputError for NaN or infinity in the base, or that the adapter makes.
    """

    def blocks(name: str, stored: StoredTensor, dtype: torch.dtype) -> Iterator[torch.Tensor]:
        parts = assigned.get(name)
        pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]
        if parts is None or "" in parts:
            pairs = ((rows, rows) for rows in (stored.blocks() if parts is None else [parts[""]]))
        else:
            pairs = AdaptedLayer(name, stored, parts, adapter).blocks()
        for before, after in pairs:
            written = after.to(dtype)
            if not is_finite(written):  # which NaN and infinity come through to
                raise _explain_not_finite(f"{stored.pieces[0].path}: {name}", before, after, dtype, adapter)
            yield written

    return blocks


def _explain_not_finite(
    where: str, before: torch.Tensor, after: torch.Tensor, dtype: torch.dtype, adapter: Adapter
) -> InputError:
    """Who is to blame for NaN or infinity in merged rows: the base, the adapter, or the dtype to write."""
    if not is_finite(before):
        return InputError(where, "NaN or infinity", "finite weights", how_to_name_a_base("--base"))
    if not is_finite(after):
        config, action = adapter.folder / ADAPTER_CONFIG_FILE, "Restore it from a copy, or merge another one."
        return InputError(str(config), f"a scale that makes {where} infinite or NaN", "finite weights", action)
    return InputError(where, f"a number too large for {dtype}", "finite weights", "Merge with --dtype fp32.")
