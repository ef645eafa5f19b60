"""What is loaded is what was named: a base whose tensors are not those of its config is refused before any work."""

import json
import re
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from engine.model.base_tensors import check_tensors
from engine.model.weights import load_base
from launch.demo.small_model import build_model
from preprocess.common.errors import InputError
from preprocess.corpus.base_model import read_base_model


@pytest.fixture(scope="module")
def small_base(tmp_path_factory):
    """A base of 2 layers, quick to write again."""
    return build_model(tmp_path_factory.mktemp("base"), num_layers=2, dual_ffn_layers=(0,), codebook_size=64)


def refusal(folder):
    read_base_model.cache_clear()
    with pytest.raises(InputError) as caught:
        load_base(folder, torch.float32)
    assert caught.value.where.startswith(str(folder))
    assert re.search("Download|Use the released base", caught.value.action)
    return caught.value


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_no_tensor_can_be_missing_or_another(data, small_base, tmp_path_factory):
    """Whichever tensor, whatever is done to it: nothing is loaded."""
    folder = shutil.copytree(small_base, tmp_path_factory.mktemp("spoilt") / "base")
    tensors = load_file(folder / "model.safetensors")
    name = data.draw(st.sampled_from(sorted(tensors)))
    how = data.draw(st.sampled_from(["gone", "renamed", "twice", "cut", "flat", "int8", "fp8", "nan", "infinity"]))
    tensor = tensors.pop(name)
    if how == "renamed":
        tensors[f"{name}.other"] = tensor
    elif how == "twice":
        tensors |= {name: tensor, f"{name}_scale": tensor.clone()}
    elif how == "cut":
        tensors[name] = tensor[:-1].clone()
    elif how == "flat":
        tensors[name] = tensor.reshape(-1, 1)
    elif how in ("int8", "fp8"):
        tensors[name] = tensor.to(torch.int8 if how == "int8" else torch.float8_e4m3fn)
    elif how in ("nan", "infinity"):
        tensor.view(-1)[-1] = float(how)
        tensors[name] = tensor
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert name in refusal(folder).found
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    "changed",
    [
        *({"text_config": {"num_hidden_layers": number}} for number in (1, 3, 40_000_000)),
        {"text_config": {"attention_bias": True}},
        {"text_config": {"intermediate_size": 24}},
        {"text_config": {"rms_norm_eps": -1.0}},
        {"text_config": {"rms_norm_eps": float("nan")}},
        {"text_config": {"num_hidden_layers": 10**10}},
        *({"text_config": {"rms_norm_eps": eps}} for eps in (5e-324, 1.0)),
        *({"text_config": {"rope_theta": theta}} for theta in (0.0, 1e-300, -5.0)),
        *({"text_config": {"rope_scaling": {"rope_type": "linear", "factor": factor}}} for factor in (0.0, 1e-300)),
        {"text_config": {"rope_scaling": {"rope_type": "longrope", "short_factor": [float("nan")]}}},
        {"text_config": {"attention_dropout": 5.0}},
        {"text_config": {"pretraining_tp": 4}},
        {"text_config": {"partial_rotary_factor": 0.5}},
        {"text_config": {"head_dim": 3, "num_attention_heads": 32, "num_key_value_heads": 16}},
        {"text_config": {"hidden_act": "CUDA"}},
        {"text_config": {"label2id": 7}},
        {"id2label": 5},
        {"return_dict": False},
        {"torchscript": True},
        {"audio_out_bos_token_id": 5},
        {"audio_eos_token_id": 10**7},
        {"text_config": {"pruned_heads": {"0": [1]}}},
        {"text_config": {"num_labels": 3_000_000}},
        {"num_labels": 3_000_000},
        {"id2label": {str(number): "x" for number in range(2000)}},
        {"quantization_config": {"load_in_8bit": True, "quant_method": "bitsandbytes"}},
        *({"audio_dual_ffn_layers": layers} for layers in ([0, 99], [0, -1], [0, 0], [0, 1], [])),
        {"skip_audio_tower": False},
        *({"audio_stream_bos_id": number} for number in (0, 65, 66, -1)),
        {"audio_stream_eos_id": 64},
        {"audio_codebook_size": 63},
        {"audio_num_codebooks": 7},
    ],
    ids=lambda changed: json.dumps(changed)[:50],
)
def test_no_config_can_describe_another_model(changed, small_base, tmp_path):
    folder = shutil.copytree(small_base, tmp_path / "base")
    config = json.loads((folder / "config.json").read_text())
    for key, value in changed.items():
        config[key] = {**config[key], **value} if key == "text_config" else value
    (folder / "config.json").write_text(json.dumps(config))
    refusal(folder)


def test_a_tensor_of_another_float_is_cast_and_too_large_a_one_refused(small_base, tmp_path):
    folder = shutil.copytree(small_base, tmp_path / "base")
    tensors = load_file(folder / "model.safetensors")
    tensors["norm.weight"] = tensors["norm.weight"].double()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert {parameter.dtype for parameter in load_base(folder, torch.bfloat16).parameters()} == {torch.bfloat16}
    tensors["norm.weight"][0] = 1e300
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert "NaN or infinity in norm.weight" in refusal(folder).found


def test_a_tensor_in_two_files_and_a_file_without_a_format_are_refused(small_base, tmp_path):
    folder = shutil.copytree(small_base, tmp_path / "base")
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors, folder / "model.safetensors")
    assert "no format" in refusal(folder).found
    (folder / "model.safetensors").unlink()
    save_file(tensors, folder / "a.safetensors", {"format": "pt"})
    save_file({"norm.weight": tensors["norm.weight"]}, folder / "b.safetensors", {"format": "pt"})
    names = dict.fromkeys(tensors, "a.safetensors") | {"norm.weight": "b.safetensors"}
    index = {"metadata": {}, "weight_map": names}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "another file has too" in refusal(folder).found


def test_a_head_dim_that_transformers_derives_is_no_fault(small_base, tmp_path):
    folder = shutil.copytree(small_base, tmp_path / "base")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["head_dim"] = None
    (folder / "config.json").write_text(json.dumps(config))
    derived, given = (load_base(each, torch.float32) for each in (folder, small_base))
    assert derived.config.text_config.head_dim == given.config.text_config.head_dim
    assert torch.equal(derived.rotary_emb.inv_freq, given.rotary_emb.inv_freq)


def test_what_older_code_stored_and_the_model_computes_is_no_fault(small_base, tmp_path):
    folder = shutil.copytree(small_base, tmp_path / "base")
    tensors = load_file(folder / "model.safetensors")
    tensors |= {"audio_codebook_weights": torch.ones(8), "layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    check_tensors(folder)
    expected = load_base(small_base, torch.float32).state_dict()
    assert all(
        torch.equal(tensor, expected[name]) for name, tensor in load_base(folder, torch.float32).state_dict().items()
    )
