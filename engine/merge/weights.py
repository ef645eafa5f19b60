"""An adapter into its base, one tensor at a time: safetensors shards written again with PEFT's own arithmetic.

Each adapted layer is built alone, as one nn.Linear under PEFT with the adapter's config, and merged there: scale,
rsLoRA, DoRA and per-layer ranks are PEFT's. A shard keeps its name, the order of its tensors and its metadata;
of the base, one tensor is in memory at a time.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.tuners_utils import check_target_module_exists
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn
from tqdm import tqdm

from engine.checkpoint.checkpoint import ADAPTER_CONFIG_FILE, ADAPTER_FILE
from preprocess.common.errors import InputError

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_PEFT_PREFIX = "base_model.model."
_LORA_PARTS = ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector")


@dataclass(frozen=True)
class Adapter:
    """A PEFT LoRA adapter. `tensors` is by name in the base model: "layers.0.mlp.up_proj.lora_A.weight"."""

    folder: Path
    config: LoraConfig
    tensors: dict[str, torch.Tensor]


def read_adapter(folder: Path) -> Adapter:
    """The adapter in `folder`. Raises InputError for a missing or broken file, or what can't become plain weights."""
    for name in (ADAPTER_FILE, ADAPTER_CONFIG_FILE):
        if not (folder / name).is_file():
            raise InputError(
                str(folder), f"no {name}", "a checkpoint or a PEFT adapter folder", "Give its folder to --checkpoint."
            )
    try:
        config = PeftConfig.from_pretrained(folder)
        tensors = load_file(folder / ADAPTER_FILE)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            str(folder), f"files that can't be read ({error})", "a PEFT adapter", "Restore it from a copy."
        ) from error
    # Biases, and LoRA that works on some positions only, have no place in the base's weights.
    if not isinstance(config, LoraConfig) or config.bias != "none" or config.alora_invocation_tokens:
        raise InputError(
            str(folder / ADAPTER_CONFIG_FILE),
            f"peft_type {config.peft_type}, bias {getattr(config, 'bias', None)!r}",
            "a LoRA adapter of weights alone (peft_type LORA, bias 'none', no alora_invocation_tokens)",
            "Merge it with the software that trained it.",
        )
    not_finite = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if not_finite:
        raise InputError(
            f"{folder / ADAPTER_FILE}: {not_finite[0]}",
            f"NaN or infinity in {len(not_finite)} tensors",
            "finite weights",
            "Merge an earlier checkpoint.",
        )
    return Adapter(folder, config, {name.removeprefix(_PEFT_PREFIX): tensor for name, tensor in tensors.items()})


def weight_files(base: Path) -> list[Path]:
    """The safetensors files that transformers loads of the folder `base`. Raises InputError where one is missing."""
    index = base / "model.safetensors.index.json"
    if (base / "model.safetensors").is_file():
        return [base / "model.safetensors"]
    names = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.is_file() else []
    missing = [name for name in names if not (base / name).is_file()]
    if missing or not names:
        raise InputError(
            str(base),
            f"no {', '.join(missing) or 'model.safetensors and no model.safetensors.index.json'}",
            "all safetensors files of the base model",
            "Download the base model again and name its folder with --base.",
        )
    return [base / name for name in names]


def read_header(path: Path) -> dict[str, dict]:
    """{name: {dtype, shape, data_offsets}} of a safetensors file, in the header's order."""
    header = _whole_header(path)
    header.pop("__metadata__", None)
    return header


def _whole_header(path: Path) -> dict[str, dict]:
    with open(path, "rb") as file:
        return json.loads(file.read(int.from_bytes(file.read(8), "little")))


def assign_tensors(adapter: Adapter, base_shapes: dict[str, list[int]], base: Path) -> dict[str, dict]:
    """{base tensor: {part: adapter tensor}}: every tensor of the adapter exactly once, before anything is written.

    A part is "lora_A.weight", "lora_B.weight", "lora_magnitude_vector", or "" for a tensor trained whole. Raises
    InputError naming what has no place in the base, what has another shape, and layers that the adapter's config
    adapts and its file lacks.
    """
    assigned: dict[str, dict] = {}
    wrong = []
    for name, tensor in adapter.tensors.items():
        part = next((part for part in _LORA_PARTS if name.endswith(f".{part}")), "")
        target = f"{name.removesuffix(part)}weight" if part else name
        shape = base_shapes.get(target)
        if shape is not None and _fits(part, tensor, shape):
            assigned.setdefault(target, {})[part] = tensor
        else:
            wrong.append(f"{name} {list(tensor.shape)} for {'no tensor' if shape is None else shape}")
    wrong += [
        f"nothing for {name}, which the adapter's config adapts"
        for name, shape in base_shapes.items()
        if len(shape) == 2 and name.endswith(".weight") and name not in assigned
        if check_target_module_exists(adapter.config, name.removesuffix(".weight"))
    ]
    if wrong:
        raise InputError(
            str(adapter.folder / ADAPTER_FILE),
            "; ".join(wrong[:5]) + (f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""),
            f"an adapter whose every tensor belongs to {base}",
            "Name the base model it was trained on with --base.",
        )
    return assigned


def _fits(part: str, tensor: torch.Tensor, shape: list[int]) -> bool:
    """Whether an adapter's tensor has the sizes that a base tensor of `shape` gives its part."""
    if part == "lora_A.weight":
        return tensor.dim() == len(shape) == 2 and tensor.shape[1] == shape[1]
    if part == "lora_B.weight":
        return tensor.dim() == len(shape) == 2 and tensor.shape[0] == shape[0]
    return list(tensor.shape) == (shape[:1] if part else shape)


def merge_tensor(name: str, weight: torch.Tensor, parts: dict[str, torch.Tensor], adapter: Adapter) -> torch.Tensor:
    """fp32 [out, in]: the base tensor `name` with its part of the adapter in it, by PEFT.

    Raises InputError where the adapter lacks a part that its config calls for, or has one too many.
    """
    if "" in parts:
        return parts[""].float()
    path = name.removesuffix(".weight")
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight.float(), requires_grad=False)
    root = _tree(path, linear)
    inject_adapter_in_model(adapter.config, root)
    result = set_peft_model_state_dict(root, {f"{path}.{part}": tensor for part, tensor in parts.items()})
    missing = [key for key in result.missing_keys if ".lora_" in key]
    if missing or result.unexpected_keys:
        raise InputError(
            f"{adapter.folder / ADAPTER_FILE}: {path}",
            f"parts {', '.join(sorted(parts))}",
            f"those that {ADAPTER_CONFIG_FILE} calls for",
            "The two files are of different adapters: restore the folder from a copy.",
        )
    layer = root.get_submodule(path)
    layer.merge()
    return layer.get_base_layer().weight.data


def _tree(path: str, module: nn.Module) -> nn.Module:
    """A module that holds nothing but `module` at the dotted `path`, where PEFT's config looks for it."""
    root = parent = nn.Module()
    *parents, last = path.split(".")
    for name in parents:
        child = nn.Module()
        parent.add_module(name, child)
        parent = child
    parent.add_module(last, module)
    return root


def write_merged_shard(
    source: Path, target: Path, assigned: dict[str, dict], adapter: Adapter, dtype: torch.dtype | None = None
) -> None:
    """Write `source` again as `target`, its assigned tensors merged in fp32 and rounded once.

    dtype: of the float tensors written; None keeps each tensor's own. Names, order and metadata stay.
    """
    header = _whole_header(source)
    names = sorted(read_header(source), key=lambda name: header[name]["data_offsets"])
    codes = {value: key for key, value in DTYPES.items()}
    offset = 0
    for name in names:
        entry = header[name]
        begin, end = entry["data_offsets"]
        if dtype is not None and entry["dtype"] in DTYPES:
            num_bytes = (end - begin) // DTYPES[entry["dtype"]].itemsize * dtype.itemsize
            entry["dtype"] = codes[dtype]
        else:
            num_bytes = end - begin
        entry["data_offsets"] = [offset, offset + num_bytes]
        offset += num_bytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with open(target, "wb") as file, safe_open(source, "pt") as tensors:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in tqdm(names, desc=target.name, unit=" tensors", mininterval=1):
            tensor = tensors.get_tensor(name)
            if name in assigned:
                tensor = merge_tensor(name, tensor, assigned[name], adapter)
            if header[name]["dtype"] in DTYPES:
                tensor = tensor.to(DTYPES[header[name]["dtype"]])
            file.write(tensor.contiguous().flatten().view(torch.uint8).numpy())
        assert file.tell() == 8 + len(text) + offset, f"{target} has another size than its header says"
