"""Loading the base model's weights, and the fingerprint that identifies them."""

import copy
import hashlib
from pathlib import Path

import torch
from boson_multimodal.model.higgs_audio import HiggsAudioModel

from engine.base.trainable_base import read_trainable_base
from engine.model.base_tensors import check_tensors, refuse_not_finite
from engine.model.weight_files import header_bytes, read_header
from preprocess.common.errors import explain_model_errors
from preprocess.corpus.base_model import how_to_name_a_base

# The fingerprint covers the header of each weight file (names, shapes, dtypes) and this many blocks spread over it.
# Hashing all 12 GB of a base at every start would take too long.
_FINGERPRINT_BLOCKS = 64
_FINGERPRINT_BLOCK_BYTES = 65536


def load_base(folder: Path | str, dtype: torch.dtype, flag: str = "--model") -> HiggsAudioModel:
    """Boson's model with the base weights in `dtype`, all frozen, in training mode.

    flag: the command-line flag that names the folder. Raises InputError for a folder that can't be loaded or trained,
    or whose weights are not those of its config.
    """
    config = copy.deepcopy(read_trainable_base(folder, flag).config)
    check_tensors(folder, flag)
    with explain_model_errors(folder, how_to_name_a_base(flag)):
        model = HiggsAudioModel.from_pretrained(
            folder,
            config=config,
            torch_dtype=dtype,
            attn_implementation="sdpa",
            local_files_only=True,
            use_safetensors=True,
        )
        for parameter in model.parameters():  # not the buffers: RoPE's frequencies stay fp32
            parameter.data = parameter.data.to(
                dtype
            )  # transformers keeps another dtype that a tensor has in its file
    refuse_not_finite(folder, model, flag)
    model.requires_grad_(False)
    return model.train()


def weight_dtype(precision: str) -> torch.dtype:
    """The dtype of the model's weights under a recipe's `run.precision`."""
    return torch.bfloat16 if precision == "bf16" else torch.float32


def base_fingerprint(folder: Path | str, flag: str = "--model") -> str:
    """Hex sha256 over config.json and, for each weight file, its name, size, header and blocks spread over it.

    Raises InputError for a weight file without a header that fits it.
    """
    folder = Path(folder)
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for path in sorted(path for path in folder.glob("*.safetensors") if path.is_file()):  # a pipe would never end
        read_header(path, flag)
        size_bytes = path.stat().st_size
        digest.update(f"{path.name}:{size_bytes}".encode())
        with open(path, "rb") as file:
            file.seek(8)
            digest.update(file.read(header_bytes(path)))
            for block in range(_FINGERPRINT_BLOCKS):
                file.seek(block * size_bytes // _FINGERPRINT_BLOCKS)
                digest.update(file.read(_FINGERPRINT_BLOCK_BYTES))
    return digest.hexdigest()
