"""Which safetensors files a base has, and where in them the tensors of Boson's model are.

Names differ between the layouts of a base, and its oldest files hold two tensors in two pieces each: the rest of the
code knows Boson's names and whole tensors alone.
"""

import io
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypedDict

import torch
from safetensors import SafetensorError, safe_open

from preprocess.common.errors import InputError, first_line
from preprocess.common.json_file import read_json_object
from preprocess.corpus.base_model import BaseModel, how_to_name_a_base
from preprocess.corpus.native_layout import COMPUTED, boson_name

WEIGHTS_FILE, WEIGHTS_INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
# Of a model's weights, by their names in a safetensors header.
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_BLOCK_BYTES = 1 << 20  # which stays in a processor's cache (bench/LOG.md)
_FILE_NAME = re.compile(r"[\w-][\w.-]*\.safetensors")
# Boson's PartiallyFrozenEmbedding and PartiallyFrozenLinear: the frozen rows come first.
_PIECE = re.compile(r"(.+)\.(?:embedding|linear)_(frozen|trainable)\.weight")


class TensorEntry(TypedDict):
    """What a safetensors header says of one tensor. data_offsets: [begin, end) in bytes after the header."""

    dtype: str
    shape: list[int]
    data_offsets: list[int]


@dataclass(frozen=True)
class Piece:
    """Bytes [begin, end) of a file that hold a tensor, called `name` there."""

    path: Path
    name: str
    begin: int
    end: int


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of the base in its files. pieces: one, or several whose rows follow each other."""

    dtype: str
    shape: list[int]
    pieces: tuple[Piece, ...]

    @property
    def num_bytes(self) -> int:
        return sum(piece.end - piece.begin for piece in self.pieces)

    def blocks(self, rows: int | None = None) -> Iterator[torch.Tensor]:
        """The tensor's rows in order, in blocks read from the files: memory does not grow with the tensor.

        rows: of a block; the last one of a piece takes the remainder too. None is about 1 MB.
        """
        shape = self.shape[1:]
        row_bytes = DTYPES[self.dtype].itemsize * math.prod(shape)
        block_bytes = (rows or max(1, _BLOCK_BYTES // row_bytes)) * row_bytes
        for piece in self.pieces:
            with open(piece.path, "rb", buffering=0) as file:
                file.seek(piece.begin)
                left = piece.end - piece.begin
                while left:
                    data = bytearray(left if left < (2 if rows else 1) * block_bytes else block_bytes)
                    read_exactly(file, memoryview(data))
                    numbers = torch.frombuffer(data, dtype=DTYPES[self.dtype])
                    yield numbers.view(-1, *shape) if self.shape else numbers.view(())
                    left -= len(data)

    def load(self) -> torch.Tensor:
        """The tensor; one of a single piece is mapped from the file: it takes memory as it is read, and shares it."""
        tensors = []
        for piece in self.pieces:
            with safe_open(piece.path, "pt") as file:
                tensors.append(file.get_tensor(piece.name))
        return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def read_exactly(file: io.RawIOBase, block: memoryview) -> None:
    """Fill `block` from a file that is long enough, by its header."""
    while len(block):
        length = file.readinto(block)
        assert length, "a weight file is shorter than its header says"
        block = block[length:]


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


def stored_tensors(base: BaseModel, flag: str = "--model") -> dict[str, StoredTensor]:
    """{Boson's name: tensor} of all weight files of a base, in their order. What nothing reads is left out.

    Raises InputError as `weight_files` and `read_header` do, and for a tensor that is there twice.
    """
    found: dict[str, dict[str, tuple[Piece, TensorEntry]]] = {}
    action = how_to_name_a_base(flag)
    for path in weight_files(base.folder, flag):
        header = read_header(path, flag)
        if header.pop("__metadata__", {}).get("format") != "pt":  # transformers does not load it
            raise InputError(str(path), "no format in its header", "weights of torch (format pt)", action)
        start = 8 + header_bytes(path)
        for name in sorted(header, key=lambda name: header[name]["data_offsets"]):
            entry: TensorEntry = header[name]
            whole, part = _whole_name(name, base)
            if whole is None:
                continue
            parts = found.setdefault(whole, {})
            if part in parts or (parts and "" in (part, *parts)):
                raise InputError(f"{path}: {name}", "a tensor that another file has too", "each tensor once", action)
            begin, end = entry["data_offsets"]
            parts[part] = Piece(path, name, start + begin, start + end), entry
    return {name: _join(name, parts, action) for name, parts in found.items()}


def _whole_name(name: str, base: BaseModel) -> tuple[str | None, str]:
    """(Boson's name of the tensor, which piece of it: "" for all of it); (None, "") for what nothing reads."""
    if base.layout == "transformers":
        return boson_name(name), ""
    piece = _PIECE.fullmatch(name)
    if piece:
        return f"{piece[1]}.weight", piece[2]
    return (None if COMPUTED.fullmatch(name) else name), ""


def _join(name: str, parts: dict[str, tuple[Piece, TensorEntry]], action: str) -> StoredTensor:
    pieces, entries = zip(*(parts[part] for part in sorted(parts)), strict=True)
    kinds = {(entry["dtype"], *entry["shape"][1:]) for entry in entries}
    if len(entries) == 1:
        return StoredTensor(entries[0]["dtype"], entries[0]["shape"], pieces)
    if len(kinds) > 1 or not all(entry["shape"] for entry in entries):
        found = f"pieces of {' and '.join(str(kind) for kind in sorted(kinds, key=str))}"
        raise InputError(f"{pieces[0].path}: {name}", found, "rows of one length and dtype", action)
    rows = sum(entry["shape"][0] for entry in entries)
    return StoredTensor(entries[0]["dtype"], [rows, *entries[0]["shape"][1:]], pieces)
