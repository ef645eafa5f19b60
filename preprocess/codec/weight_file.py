"""Weights of codec and HuBERT folders, read as tensors and nothing else."""

import pickle  # noqa: S403 - for the name of an error alone
from pathlib import Path

import torch
from safetensors.torch import load_file

from preprocess.common.errors import InputError, first_line, join_some


def read_weights(path: Path, action: str) -> dict[str, torch.Tensor]:
    """{name: tensor on CPU} of a torch or safetensors file.

    Raises InputError for a file with anything else in it, which is never unpickled, and for NaN or infinity.
    """
    expected = "tensors alone, in the file as it was downloaded"
    try:
        if path.suffix == ".safetensors":
            weights = load_file(path)
        else:
            weights = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # its text advises to unpickle all the same
        raise InputError(str(path), "a pickle of other things", expected, action) from error
    except Exception as error:  # torch and safetensors raise errors of every kind
        raise InputError(str(path), f"no file of weights ({first_line(error)})", expected, action) from error
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise InputError(str(path), f"a {type(weights).__name__} with other things", expected, action)
    strange = [str(name) for name, tensor in weights.items() if not tensor.isfinite().all()]
    if strange:
        raise InputError(str(path), f"NaN or infinity in {join_some(strange, 3)}", "finite weights", action)
    return weights
