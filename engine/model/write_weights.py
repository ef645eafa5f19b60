"""Writes the tensors of a base as safetensors files, in either layout.

Blocks of rows pass through memory, so that it does not grow with the model; a second thread writes them.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

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

_MOST_WAITING = 2  # blocks for the second thread
# The blocks of a tensor as they are to be written, in order: (Boson's name, the stored tensor, dtype to write).
Blocks = Callable[[str, StoredTensor, torch.dtype], Iterable[torch.Tensor]]


def as_stored(name: str, tensor: StoredTensor, dtype: torch.dtype) -> Iterable[torch.Tensor]:
    """The stored bits."""
    assert dtype == DTYPES[tensor.dtype], f"{name} would have to be cast"
    return tensor.blocks()


def write_weights(
    tensors: Mapping[str, StoredTensor],
    folder: Path,
    layout: Layout,
    blocks: Blocks = as_stored,
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
        written = (
            block
            for name in with_progress(names, len(names), source.name, "tensors")
            for block in blocks(name, tensors[name], DTYPES[dtypes[name]])
        )
        _write_file(folder / source.name, header, written, offset)
        total_bytes += offset
    if set(weight_map.values()) != {WEIGHTS_FILE}:
        index = {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(weight_map.items()))}
        write_json(folder / WEIGHTS_INDEX_FILE, index)


def _write_file(path: Path, header: dict[str, Any], blocks: Iterable[torch.Tensor], num_bytes: int) -> None:
    waiting: deque[Future[int]] = deque()
    with open(path, "wb", buffering=0) as file, ThreadPoolExecutor(1) as writer:
        begin = write_header(file, header)
        for block in blocks:
            data: Any = block.contiguous().flatten().view(torch.uint8).numpy()
            waiting.append(writer.submit(_write_all, file, memoryview(data)))
            if len(waiting) > _MOST_WAITING:
                waiting.popleft().result()  # raises what the write raised
        for each in waiting:
            each.result()
        assert file.tell() == begin + num_bytes, f"{path} has another size than its header says"


def _write_all(file: Any, data: memoryview) -> int:
    length = len(data)
    while data:
        data = data[file.write(data) :]
    return length
