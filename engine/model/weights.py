"""The base model: load it, refuse what can't be trained, and name it by a fingerprint."""

import hashlib
from pathlib import Path

import torch
from boson_multimodal.model.higgs_audio import HiggsAudioModel

from engine.base.base_config import load_config

# Of each weight file: its header (names, shapes, dtypes) and this many blocks spread over it. Hashing all of a
# 12 GB base on every start would cost more than it tells.
_FINGERPRINT_BLOCKS = 64
_FINGERPRINT_BLOCK_BYTES = 65536


def load_base(folder: Path | str, dtype: torch.dtype) -> HiggsAudioModel:
    """Boson's model with the base weights in `dtype`, all frozen, in training mode."""
    model = HiggsAudioModel.from_pretrained(
        folder, config=load_config(folder), torch_dtype=dtype, attn_implementation="sdpa", local_files_only=True
    )
    model.requires_grad_(False)
    return model.train()


def weight_dtype(precision: str) -> torch.dtype:
    """The dtype of the model's weights under a recipe's `run.precision`."""
    return torch.bfloat16 if precision == "bf16" else torch.float32


def base_fingerprint(folder: Path | str) -> str:
    """sha256 over config.json and, of each weight file, its size, its header and blocks spread over its bytes."""
    folder = Path(folder)
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for path in sorted(folder.glob("*.safetensors")):
        size_bytes = path.stat().st_size
        digest.update(f"{path.name}:{size_bytes}".encode())
        with open(path, "rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            digest.update(file.read(header_bytes))
            for block in range(_FINGERPRINT_BLOCKS):
                file.seek(block * size_bytes // _FINGERPRINT_BLOCKS)
                digest.update(file.read(_FINGERPRINT_BLOCK_BYTES))
    return digest.hexdigest()
