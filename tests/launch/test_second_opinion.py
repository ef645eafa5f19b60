"""transformers 5's own classes, in an environment of their own, say what this code says of the folders it writes."""

import pytest
import torch

from engine.base.recipe import Lora
from engine.merge.folder import merge_checkpoint
from launch.convert import main as convert
from launch.demo.small_model import build_model
from tests.fixtures.adapter import random_lora, save_checkpoint
from tests.fixtures.released import build_released
from tests.fixtures.second_opinion import differences, run_transformers_5

pytestmark = pytest.mark.export

ODD = {"num_layers": 3, "dual_ffn_layers": (0, 1, 2), "num_codebooks": 5, "codebook_size": 67}
# As shares of the norm: the order of additions differs. bf16 has 8 bits.
TOLERANCES = {torch.float32: 2e-6, torch.bfloat16: 2e-2}


@pytest.fixture(scope="module", params=["released form", "odd shapes", "of transformers"])
def both_layouts(request, tmp_path_factory):
    """One base in Boson's layout and in the other one."""
    folder = tmp_path_factory.mktemp("both")
    boson, native = folder / "boson", folder / "native"
    if request.param == "of transformers":
        run_transformers_5("save", build_model(folder / "other", **ODD), native)
        convert(["--model", str(native), "--format", "boson", "--out", str(boson)])
        return boson, native
    if request.param == "released form":
        build_released(boson)
    else:
        build_model(boson, hidden_size=72, num_key_value_heads=1, **ODD)
    convert(["--model", str(boson), "--format", "transformers", "--out", str(native)])
    return boson, native


def assert_agree(boson, native, work, dtype, adapters=None):
    found = differences(boson, native, work, dtype, adapters)
    tolerance = TOLERANCES[dtype]
    for name in ("packed_text", "packed_audio", "transformers_text", "transformers_audio"):
        assert found[name] <= tolerance, found
    for branch in ("text", "audio"):
        expected = found[f"boson_{branch}_loss"]
        assert found[f"packed_{branch}_loss"] == pytest.approx(expected, rel=tolerance), found
        assert found[f"transformers_{branch}_loss"] == pytest.approx(expected, rel=tolerance), found


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_logits_and_losses_of_a_base(dtype, both_layouts, tmp_path):
    assert_agree(*both_layouts, tmp_path, dtype)


@pytest.mark.parametrize(
    "lora", [Lora(rank=4), Lora(rank=4, rslora=True, dora=True, train_whole=["audio_head"])], ids=str
)
def test_logits_and_losses_with_an_adapter_under_peft(more, both_layouts, tmp_path):
    boson, native = both_layouts
    checkpoint = save_checkpoint(tmp_path / "run", boson, random_lora(boson, Lora(rank=4, **more)))
    adapters = checkpoint, tmp_path / "adapter"
    convert(["--adapter", str(checkpoint), "--format", "transformers", "--out", str(adapters[1])])
    assert_agree(boson, native, tmp_path, torch.float32, adapters)


def test_logits_and_losses_of_a_merged_model(both_layouts, tmp_path):
    boson, native = both_layouts
    model = random_lora(boson, Lora(rank=4, mode="full"))
    checkpoint = save_checkpoint(tmp_path / "run", boson, model)
    for base, layout in ((native, "boson"), (boson, "transformers")):  # each from the other one
        merge_checkpoint(checkpoint, base, tmp_path / layout, verify="none", layout=layout)
    assert_agree(tmp_path / "boson", tmp_path / "transformers", tmp_path, torch.float32)
    untouched = differences(boson, native, tmp_path, torch.float32)
    merged = differences(tmp_path / "boson", tmp_path / "transformers", tmp_path, torch.float32)
    assert merged["boson_audio_loss"] != pytest.approx(untouched["boson_audio_loss"], rel=1e-4)
