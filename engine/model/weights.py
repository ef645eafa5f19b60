"""Loading the base model's weights, and the fingerprint that identifies them."""

import contextlib
import copy
import hashlib
from collections.abc import Iterator
from pathlib import Path

import torch
from boson_multimodal.model.higgs_audio import HiggsAudioModel

from engine.base.trainable_base import read_trainable_base
from engine.model.weight_files import read_header, weight_files
from preprocess.common.errors import InputError, first_line
from preprocess.corpus.base_model import how_to_name_a_base

# The fingerprint covers the header of each weight file (names, shapes, dtypes) and this many blocks spread over it.
# Hashing all 12 GB of a base at every start would take too long.
_FINGERPRINT_BLOCKS = 64
_FINGERPRINT_BLOCK_BYTES = 65536


def load_base(folder: Path | str, dtype: torch.dtype, flag: str = "--model") -> HiggsAudioModel:
    """Boson's model with the base weights in `dtype`, all frozen, in training mode.

    flag: the command-line flag that names the folder. Raises InputError for a folder that can't be loaded or trained.
    """
    config = copy.deepcopy(read_trainable_base(folder, flag).config)
    weight_files(Path(folder), flag)
    with explain_load_errors(folder, flag):
        model = HiggsAudioModel.from_pretrained(
            folder,
            config=config,
            torch_dtype=dtype,
            attn_implementation="sdpa",
            local_files_only=True,
            use_safetensors=True,
        )
    model.requires_grad_(False)
    return model.train()


def weight_dtype(precision: str) -> torch.dtype:
    """The dtype of the model's weights under a recipe's `run.precision`."""
    return torch.bfloat16 if precision == "bf16" else torch.float32


@contextlib.contextmanager
def explain_load_errors(folder: Path | str, flag: str = "--model") -> Iterator[None]:
    """Inside, an error from Boson's code or transformers becomes an InputError, unless memory or CUDA failed."""
    try:
        yield
    except Exception as error:  # they raise errors of many types
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "CUDA" in str(error):
            raise
        raise InputError(
            str(folder),
            f"a model that can't be loaded ({first_line(error)})",
            "config.json and weights of one Higgs Audio v2 model",
            how_to_name_a_base(flag),
        ) from error


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
            header_bytes = int.from_bytes(file.read(8), "little")
            digest.update(file.read(header_bytes))
            for block in range(_FINGERPRINT_BLOCKS):
                file.seek(block * size_bytes // _FINGERPRINT_BLOCKS)
                digest.update(file.read(_FINGERPRINT_BLOCK_BYTES))
    return digest.hexdigest()
