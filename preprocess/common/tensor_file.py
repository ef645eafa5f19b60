"""Files of tensors, read as tensors and nothing else."""

import pickle  # noqa: S403 - for the name of an error alone
from pathlib import Path

import torch
from safetensors.torch import load_file

from preprocess.common.errors import InputError, first_line, join_some

_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_COUNTS = (torch.int64, torch.int32, torch.bool)  # of buffers, in codecs


def read_tensors(path: Path, action: str, counts: bool = True) -> dict[str, torch.Tensor]:
    """{name: tensor on CPU} of a torch or safetensors file. counts: whether int and bool are allowed beside float.

    Raises InputError for a file with anything else in it, which is never unpickled, and for NaN or infinity.
    """
    expected = "tensors alone, in the file as it was written"
    try:
        if path.suffix == ".safetensors":
            tensors = load_file(path)
        else:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # its text advises to unpickle all the same
        raise InputError(str(path), "a pickle of other things", expected, action) from error
    except MemoryError:
        raise
    except Exception as error:  # torch and safetensors raise errors of every kind
        raise InputError(str(path), f"no file of weights ({first_line(error)})", expected, action) from error
    if not isinstance(tensors, dict) or not all(isinstance(value, torch.Tensor) for value in tensors.values()):
        raise InputError(str(path), f"a {type(tensors).__name__} with other things", expected, action)
    for name, tensor in tensors.items():
        if not _is_plain(tensor):
            found = f"a tensor of layout {tensor.layout} on {tensor.device}, or without its numbers"
            raise InputError(f"{path}: {name}", found, "all its numbers in a row", action)
        if tensor.dtype not in (_FLOATS + _COUNTS if counts else _FLOATS):
            raise InputError(f"{path}: {name}", f"dtype {tensor.dtype}", "float weights", action)
    # As fp32 where they are weights: a larger number of fp64 is infinite to all that use them.
    used = tensors if counts else {name: tensor.float() for name, tensor in tensors.items()}
    strange = [str(name) for name, tensor in used.items() if not is_finite(tensor)]
    if strange:
        raise InputError(str(path), f"NaN or infinity in {join_some(strange, 3)}", "finite weights", action)
    return tensors


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether no number is NaN or infinite. A tenth of the time of `isfinite().all()` on bf16 (bench/LOG.md)."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    return all(bound.isfinite() for bound in tensor.aminmax())  # which hand on NaN


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether the file held each number of it: neither sparse, nor a view of few that stands for many."""
    if tensor.is_nested or tensor.layout != torch.strided or tensor.device.type != "cpu":
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
