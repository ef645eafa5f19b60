"""Which safetensors files a model folder has, and what their headers say."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, TypedDict

import torch
from safetensors import SafetensorError, safe_open

from preprocess.common.errors import InputError, first_line
from preprocess.common.json_file import read_json_object
from preprocess.corpus.base_model import how_to_name_a_base

WEIGHTS_FILE, WEIGHTS_INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
# Of a model's weights, by their names in a safetensors header.
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_FILE_NAME = re.compile(r"[\w-][\w.-]*\.safetensors")


class TensorEntry(TypedDict):
    """What a safetensors header says of one tensor. data_offsets: [begin, end) in bytes after the header."""

    dtype: str
    shape: list[int]
    data_offsets: list[int]


def weight_files(folder: Path, flag: str = "--model") -> list[Path]:
    """The safetensors files that transformers loads from a model folder. flag: the one that names it.

    Raises InputError if there is none or one is missing, and if the index names anything outside the folder.
    """
    index, action = folder / WEIGHTS_INDEX_FILE, how_to_name_a_base(flag)
    if (folder / WEIGHTS_FILE).is_file():
        return [folder / WEIGHTS_FILE]
    if not index.is_file():
        found = f"no {WEIGHTS_FILE} and no {WEIGHTS_INDEX_FILE}"
        raise InputError(str(folder), found, "all safetensors files of the base model", action)
    expected = "a weight_map with the name of a .safetensors file beside it for each tensor"
    weight_map = read_json_object(index, expected, action).get("weight_map")
    names = list(weight_map.values()) if isinstance(weight_map, dict) else []
    wrong = [name for name in names if not (isinstance(name, str) and _FILE_NAME.fullmatch(name))]
    if wrong or not names:
        found = f"{wrong[0]!r:.80}" if wrong else f"{weight_map!r:.80}"
        raise InputError(f"{index}: weight_map", found, expected, action)
    missing = [name for name in sorted(set(names)) if not (folder / name).is_file()]
    if missing:
        raise InputError(str(folder), f"no {', '.join(missing)}", "all safetensors files of the base model", action)
    return [folder / name for name in sorted(set(names))]


def read_header(path: Path, flag: str = "--model") -> dict[str, Any]:
    """The header of a safetensors file: {tensor name: TensorEntry}, and perhaps "__metadata__".

    Raises InputError unless it fits the file: safetensors checks every type, shape and offset.
    """
    try:
        with safe_open(path, "pt"):
            pass
    except (SafetensorError, OSError) as error:
        found = f"no safetensors file ({first_line(error)})"
        raise InputError(str(path), found, "weights of the base model", how_to_name_a_base(flag)) from error
    with open(path, "rb") as file:
        file.seek(8)
        header: dict[str, Any] = json.loads(file.read(header_bytes(path)))
    return header


def header_bytes(path: Path) -> int:
    """Length of a safetensors file's header; the tensors begin 8 bytes after it."""
    with open(path, "rb") as file:
        return int.from_bytes(file.read(8), "little")


def write_header(file: BinaryIO, header: dict[str, Any]) -> int:
    """Begin a safetensors file; the bytes written, after which the tensors follow at their data_offsets."""
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return file.write(len(text).to_bytes(8, "little") + text)


def num_bytes(entries: Iterable[TensorEntry]) -> int:
    """Bytes of all tensors together: the total_size of an index."""
    return sum(entry["data_offsets"][1] - entry["data_offsets"][0] for entry in entries)


def read_entries(folder: Path, flag: str = "--model") -> dict[str, TensorEntry]:
    """{tensor name: its header entry} of all weight files of a model folder. Raises InputError as the two above."""
    entries: dict[str, TensorEntry] = {}
    for path in weight_files(folder, flag):
        header, action = read_header(path, flag), how_to_name_a_base(flag)
        if header.pop("__metadata__", {}).get("format") != "pt":  # transformers does not load it
            raise InputError(str(path), "no format in its header", "weights of torch (format pt)", action)
        twice = sorted(header.keys() & entries.keys())
        if twice:
            raise InputError(f"{path}: {twice[0]}", "a tensor that another file has too", "each tensor once", action)
        entries |= header
    return entries
