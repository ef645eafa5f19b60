"""Tensors of adapters and optimizers: floats, finite, one for each parameter in its shape, or one sentence."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.base.recipe import Lora
from engine.base.zero import trainable_parameters
from engine.checkpoint.checkpoint import ADAPTER_FILE, OPTIMIZER_FILE, load_masters, load_moments
from engine.merge.folder import merge_checkpoint
from engine.model.lora import add_lora
from engine.model.weights import load_base
from preprocess.common.errors import InputError
from tests.fixtures.adapter import random_lora, save_checkpoint


@pytest.fixture(scope="module")
def saved(tmp_path_factory, model_folder):
    """(a checkpoint, its model, the names of its parameters)"""
    model = add_lora(load_base(model_folder, torch.float32), Lora(rank=4))
    step = save_checkpoint(tmp_path_factory.mktemp("run"), model_folder, random_lora(model_folder, Lora(rank=4)))
    return step, model, [f"model.{name}" for name, _ in trainable_parameters(model)]


def with_first(change):
    """A change of a file: its first tensor becomes `change` of it; none where that is None."""

    def spoil(path):
        tensors = load_file(path)
        name = min(tensors)
        tensors |= {name: change(tensors[name].clone())}
        save_file({key: tensor for key, tensor in tensors.items() if tensor is not None}, path, {"format": "pt"})

    return spoil


def one_nan(tensor):
    tensor.view(-1)[-1] = torch.nan
    return tensor


SPOILT = {
    "NaN": with_first(one_nan),
    "infinity": with_first(lambda tensor: tensor + torch.inf),
    "infinite as fp32": with_first(lambda tensor: tensor.double() + 1e300),
    "int8": with_first(lambda tensor: tensor.to(torch.int8)),
    "int64": with_first(lambda tensor: tensor.to(torch.int64)),
    "fp8": with_first(lambda tensor: tensor.to(torch.float8_e4m3fn)),
    "bool": with_first(lambda tensor: tensor.to(torch.bool)),
    "rank 0": with_first(lambda tensor: tensor[:0]),
    "another rank": with_first(lambda tensor: tensor[:3]),
    "a number": with_first(lambda tensor: tensor.sum()),
    "missing": with_first(lambda tensor: None),
    "junk": lambda path: path.write_bytes(b"junk" * 100),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-5]),
    "empty": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("kind", SPOILT)
@pytest.mark.parametrize("file", [ADAPTER_FILE, OPTIMIZER_FILE])
def test_a_spoilt_file_begins_no_run_and_is_not_merged(kind, file, saved, model_folder, tmp_path):
    step, model, names = saved
    folder = shutil.copytree(step, tmp_path / "adapter")
    (folder / "state.json").unlink()  # a plain adapter: no hashes
    SPOILT[kind](folder / file)
    acts = {OPTIMIZER_FILE: [lambda: load_moments(folder, model, names)]}
    acts[ADAPTER_FILE] = [
        lambda: load_masters(folder, model, names),
        lambda: merge_checkpoint(folder, model_folder, tmp_path / "merged", verify="none"),
    ]
    for act in acts[file]:
        with pytest.raises(InputError) as caught:
            act()
        assert caught.value.where.startswith(str(folder))
        assert caught.value.found
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda moments: {**moments, "more": torch.ones(1)}, "tensors"),
        (lambda moments: dict(negative(moments)), "-1"),
    ],
)
def test_moments_that_adamw_does_not_make_are_refused(change, found, saved, tmp_path):
    step, model, names = saved
    folder = shutil.copytree(step, tmp_path / "step")
    save_file(change(load_file(folder / OPTIMIZER_FILE)), folder / OPTIMIZER_FILE)
    with pytest.raises(InputError) as caught:
        load_moments(folder, model, names)
    assert found in caught.value.found


def negative(moments):
    """One second moment of -1: AdamW would take its root."""
    name = max(moments)
    return {**moments, name: torch.full_like(moments[name], -1.0)}


def test_what_was_saved_is_read(saved):
    step, model, names = saved
    assert load_masters(step, model, names).keys() == set(names)
    assert {moment: tensors.keys() for moment, tensors in load_moments(step, model, names).items()} == {
        "exp_avg": set(names),
        "exp_avg_sq": set(names),
    }
