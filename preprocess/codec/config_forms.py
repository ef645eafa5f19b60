"""The forms of config.json in codec and HuBERT folders. A wrong size would fill the memory, or never end."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field, ValidationError

from preprocess.common.errors import InputError
from preprocess.common.json_file import JsonObject
from preprocess.common.record import Form, first_problem

Size = Annotated[int, Field(ge=1, le=1 << 16)]
Sizes = Annotated[list[Size], Field(min_length=1, max_length=64)]
Share = Annotated[float, Field(ge=0, le=1)]
SampleRateHz = Annotated[int, Field(ge=1_000, le=192_000)]


class CodecForm(Form):
    """Arguments of boson_multimodal's HiggsAudioTokenizer; what is missing has Boson's default."""

    n_filters: Size = 1
    D: Size = 1
    bins: Size = 1
    n_q: Size = 1
    codebook_dim: Size | None = None
    ratios: Sizes = Field(default=[1])
    target_bandwidths: Annotated[list[float], Field(min_length=1, max_length=64)] = Field(default=[1.0])
    sample_rate: SampleRateHz = 24_000
    semantic_sample_rate: SampleRateHz | None = None


class HubertForm(Form):
    """Sizes of transformers' HubertConfig; what is missing has its default."""

    hidden_size: Size = 1
    intermediate_size: Size = 1
    num_hidden_layers: Size = 1
    num_attention_heads: Size = 1
    num_conv_pos_embeddings: Size = 1
    num_conv_pos_embedding_groups: Size = 1
    conv_dim: Sizes = Field(default=[1])
    conv_kernel: Sizes = Field(default=[1])
    conv_stride: Sizes = Field(default=[1])
    hidden_dropout: Share = 0.0
    activation_dropout: Share = 0.0
    attention_dropout: Share = 0.0
    feat_proj_dropout: Share = 0.0
    final_dropout: Share = 0.0
    layer_norm_eps: Annotated[float, Field(gt=0, le=0.1)] = 1e-5
    layerdrop: Share = 0.0


# Numbers that are no sizes of weights; HuBERT's dropouts are small enough.
_NO_SIZES = {"layer_norm_eps", "sample_rate", "semantic_sample_rate", "target_bandwidths", "ratios", "conv_stride"}


def check_config(
    path: Path, config: JsonObject, form: type[Form], weights: Mapping[str, torch.Tensor], action: str
) -> None:
    """Raise InputError for values of other types, and for sizes that none of the weights has."""
    expected = "the file as it was downloaded"
    try:
        form.model_validate(config)
    except ValidationError as error:
        raise InputError(str(path), first_problem(error), expected, action) from error
    largest = max([len(weights), *(size for tensor in weights.values() for size in tensor.shape)])
    for name in sorted(form.model_fields.keys() & config.keys() - _NO_SIZES):
        values = config[name] if isinstance(config[name], list) else [config[name] or 0]
        if max(values) > largest:
            expected = f"at most {largest}, by the weights beside it"
            raise InputError(str(path), f"{name} = {config[name]}", expected, action)
