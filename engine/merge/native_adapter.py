"""Writes an adapter under the module names of transformers 5: plain PEFT then loads it on transformers' own class."""

import json
import re
import shutil
from pathlib import Path

from safetensors.torch import save_file

from engine.checkpoint.checkpoint import ADAPTER_CONFIG_FILE, ADAPTER_FILE, CARD_FILE
from engine.merge.weights import LORA_PARTS, PEFT_PREFIX, read_adapter
from preprocess.common.errors import InputError, explain_write_errors, join_some
from preprocess.common.files import finish_folder, refuse_used_folder, write_json
from preprocess.corpus.native_layout import boson_name, native_name


def convert_adapter(adapter: Path, out: Path) -> int:
    """Write the adapter in the folder `adapter` into the new or empty folder `out`; returns the number of tensors.

    Raises InputError for what is no LoRA adapter, and for modules that transformers' class does not have.
    """
    adapter, out = adapter.resolve(), out.resolve()
    refuse_used_folder(out)
    tensors = read_adapter(adapter).tensors
    wrong = sorted(name for name in tensors if not _is_known(_split(name)[0]))
    if wrong:
        action = "Merge it instead: launch.merge --format boson."
        raise InputError(str(adapter / ADAPTER_FILE), join_some(wrong, 3), "layers and heads", action)
    config = json.loads((adapter / ADAPTER_CONFIG_FILE).read_text())
    for key in ("target_modules", "exclude_modules", "modules_to_save"):
        config[key] = _rename(config.get(key))
    for key in ("rank_pattern", "alpha_pattern"):
        config[key] = {_native_module(name): value for name, value in (config.get(key) or {}).items()}
    temporary = out.with_name(f".{out.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with explain_write_errors(out.parent, "Free space or name another --out, then convert again."):
            temporary.mkdir(parents=True)
            renamed = {f"{PEFT_PREFIX}{_native_tensor(name)}": tensor for name, tensor in tensors.items()}
            save_file(renamed, temporary / ADAPTER_FILE, {"format": "pt"})
            write_json(temporary / ADAPTER_CONFIG_FILE, config, sort_keys=True)
            if (adapter / CARD_FILE).is_file():
                shutil.copyfile(adapter / CARD_FILE, temporary / CARD_FILE)
            finish_folder(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return len(tensors)


def _split(name: str) -> tuple[str, str]:
    """(module, part) of an adapter's tensor: ("layers.0.mlp.up_proj", "lora_A.weight"); ("x", "weight") if whole."""
    part = next((part for part in LORA_PARTS if name.endswith(f".{part}")), "weight")
    return name.removesuffix(f".{part}"), part


def _native_tensor(name: str) -> str:
    module, part = _split(name)
    return f"{_native_module(module)}.{part}"


def _is_known(module: str) -> bool:
    return boson_name(native_name(f"{module}.weight")) == f"{module}.weight"


def _native_module(module: str) -> str:
    """The native name of a module that Boson's model calls so; the end of a name, such as "q_proj", stays."""
    return native_name(f"{module}.weight").removesuffix(".weight") if _is_known(module) else module


def _rename(names: object) -> object:
    """PEFT's target_modules and the like: None, names in a list, or names as one regular expression, joined by |."""
    if isinstance(names, str):
        plain = [re.sub(r"\\(.)", r"\1", name) for name in names.split("|")]
        return "|".join(re.escape(_native_module(name)) for name in plain)
    return [_native_module(name) for name in names] if isinstance(names, list) else names
