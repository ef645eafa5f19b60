"""What is loaded is what was named: the tensors of a base are those of the model that its config describes."""

import copy
from collections.abc import Iterator
from pathlib import Path

import torch
from boson_multimodal.model.higgs_audio import HiggsAudioModel

from engine.base.trainable_base import read_trainable_base
from engine.model.weight_files import DTYPES, StoredTensor, stored_tensors
from preprocess.common.errors import InputError, explain_model_errors, join_some
from preprocess.common.tensor_file import is_finite
from preprocess.corpus.base_model import how_to_name_a_base


def check_tensors(folder: Path | str, flag: str = "--model") -> dict[str, StoredTensor]:
    """{Boson's name: tensor} of a base. Raises InputError unless they are those of the model, each in its shape.

    Only headers are read. transformers would leave random weights for a missing tensor, and say so in a warning.
    flag: the command-line flag that names the folder.
    """
    base, action = read_trainable_base(folder, flag), how_to_name_a_base(flag)
    tensors = stored_tensors(base, flag)
    found = {name: tensor.shape for name, tensor in tensors.items()}
    config, path = copy.deepcopy(base.config), str(base.folder / "config.json")
    for name, layers in (
        ("text_config.num_hidden_layers", config.text_config.num_hidden_layers),
        ("audio_encoder_config.encoder_layers", config.audio_encoder_config.encoder_layers),
    ):
        if layers > len(found) and not (name.startswith("audio") and config.skip_audio_tower):  # building takes long
            raise InputError(path, f"{name} = {layers:,}", f"at most {len(found)}, by the weights beside it", action)
    with explain_model_errors(folder, action), torch.device("meta"):
        model = HiggsAudioModel(config)
    expected = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    wrong = [f"{name} of dtype {each.dtype}" for name, each in tensors.items() if each.dtype not in DTYPES]
    wrong += _differences(found, expected)
    if wrong:
        raise InputError(
            str(folder), join_some(wrong, 3), "the weights of the model that config.json describes", action
        )
    return tensors


def _differences(found: dict[str, list[int]], expected: dict[str, list[int]]) -> Iterator[str]:
    for name in expected.keys() - found.keys():
        yield f"no {name}"
    for name, shape in found.items():
        if name not in expected:
            yield f"{name}, which the model does not have"
        elif shape != expected[name]:
            yield f"{name} {shape} instead of {expected[name]}"


def refuse_not_finite(folder: Path | str, model: HiggsAudioModel, flag: str = "--model") -> None:
    """Raise InputError for NaN or infinity among the loaded weights of a base, and what its config makes of RoPE."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    strange = [name for name, tensor in tensors if not is_finite(tensor)]
    if strange:
        found = f"NaN or infinity in {join_some(strange, 3)}"
        raise InputError(str(folder), found, "finite weights", how_to_name_a_base(flag))
