"""Writes the tensors of a base as safetensors files, in either layout."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from engine.model.weight_files import (
    DTYPES,
    WEIGHTS_FILE,
    WEIGHTS_INDEX_FILE,
    StoredTensor,
    read_header,
    write_header,
)
from preprocess.common.files import write_json
from preprocess.common.progress import with_progress
from preprocess.corpus.native_layout import Layout, native_name

_BLOCK_BYTES = 1 << 24
# Writes the bytes of a tensor: (file, Boson's name, the tensor as it is stored, dtype to write).
WriteTensor = Callable[[BinaryIO, str, StoredTensor, str], None]


def copy_tensor(file: BinaryIO, name: str, tensor: StoredTensor, dtype: str) -> None:
    """Write the stored bytes, in blocks. dtype: the tensor's own."""
    assert dtype == tensor.dtype, f"{name} would have to be cast"
    for piece in tensor.pieces:
        with open(piece.path, "rb") as source:
            source.seek(piece.begin)
            left = piece.end - piece.begin
            while left:
                block = source.read(min(left, _BLOCK_BYTES))
                assert block, f"{piece.path} is shorter than its header says"
                file.write(block)
                left -= len(block)


def write_weights(
    tensors: Mapping[str, StoredTensor],
    folder: Path,
    layout: Layout,
    write_tensor: WriteTensor = copy_tensor,
    dtype: torch.dtype | None = None,
) -> None:
    """Write `tensors`, here under Boson's names, into files called as those they are stored in; of several an index.

    Order and metadata stay as they are. dtype: of all tensors written; None keeps each one's own.
    """
    code = None if dtype is None else next(code for code, value in DTYPES.items() if value == dtype)
    files: dict[Path, list[str]] = {}
    for name, tensor in tensors.items():
        files.setdefault(tensor.pieces[0].path, []).append(name)
    weight_map, total_bytes = {}, 0
    for source, names in files.items():
        header: dict[str, Any] = {"__metadata__": {**read_header(source).get("__metadata__", {}), "format": "pt"}}
        offset, dtypes = 0, {name: code or tensors[name].dtype for name in names}
        for name in names:
            tensor, written_name = tensors[name], native_name(name) if layout == "transformers" else name
            length = tensor.num_bytes // DTYPES[tensor.dtype].itemsize * DTYPES[dtypes[name]].itemsize
            offsets = [offset, offset + length]
            header[written_name] = {"dtype": dtypes[name], "shape": tensor.shape, "data_offsets": offsets}
            weight_map[written_name] = source.name
            offset += length
        with open(folder / source.name, "wb") as file:
            begin = write_header(file, header)
            for name in with_progress(names, len(names), source.name, "tensors"):
                write_tensor(file, name, tensors[name], dtypes[name])
            assert file.tell() == begin + offset, f"{source.name} has another size than its header says"
        total_bytes += offset
    if set(weight_map.values()) != {WEIGHTS_FILE}:
        index = {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(weight_map.items()))}
        write_json(folder / WEIGHTS_INDEX_FILE, index)
