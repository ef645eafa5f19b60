"""Loading the base model's weights."""

import copy
from pathlib import Path

import torch
from accelerate import init_empty_weights
from boson_multimodal.model.higgs_audio import HiggsAudioModel
from transformers import GenerationConfig

from engine.base.trainable_base import read_trainable_base
from engine.model.base_tensors import check_tensors, refuse_not_finite
from preprocess.common.errors import explain_model_errors
from preprocess.common.json_file import read_json_object
from preprocess.corpus.base_model import BaseModel, how_to_name_a_base

GENERATION_FILE = "generation_config.json"
# Of transformers 5's file; the rest is of its own generation.
_GENERATION_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id")


def load_base(folder: Path | str, dtype: torch.dtype | None, flag: str = "--model") -> HiggsAudioModel:
    """Boson's model with the base weights in `dtype`, all frozen, in training mode.

    folder: of either layout. Weights that have the dtype are mapped from the files: the processes of a machine share
    them, until they go to a GPU. dtype: None is the one that config.json names, or fp32. flag: the command-line flag
    that names the folder. Raises InputError for a folder that can't be loaded or trained, or whose weights are not
    those of its config.
    """
    base = read_trainable_base(folder, flag)
    config, tensors = copy.deepcopy(base.config), check_tensors(folder, flag)
    dtype = dtype or config.torch_dtype or torch.float32
    with explain_model_errors(folder, how_to_name_a_base(flag)):
        with init_empty_weights():  # of parameters; buffers are computed
            model = HiggsAudioModel._from_config(config, attn_implementation="sdpa", torch_dtype=dtype)
        state = {name: tensor.load().to(dtype) for name, tensor in tensors.items()}
        model.load_state_dict(state, assign=True)
        model.generation_config = read_generation_config(base, flag)
    model.config.torch_dtype = dtype
    refuse_not_finite(folder, model, flag)
    model.requires_grad_(False)
    return model.train()


def read_generation_config(base: BaseModel, flag: str = "--model") -> GenerationConfig:
    """What the base's folder says about generation, or else its config. Raises InputError for a broken file."""
    path = base.folder / GENERATION_FILE
    if not path.exists():
        return GenerationConfig.from_model_config(base.config)
    if base.layout == "boson":
        return GenerationConfig.from_pretrained(base.folder, local_files_only=True)
    given = read_json_object(path, "the file as it was downloaded", how_to_name_a_base(flag))
    return GenerationConfig(**{key: given[key] for key in _GENERATION_KEYS if key in given})


def weight_dtype(precision: str) -> torch.dtype:
    """The dtype of the model's weights under a recipe's `run.precision`."""
    return torch.bfloat16 if precision == "bf16" else torch.float32
