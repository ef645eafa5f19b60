"""A base in the layout of transformers 5 becomes the one in Boson's that it was, to the bit, or nothing."""

import dataclasses
import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from boson_multimodal.data_collator.higgs_audio_collator import HiggsAudioBatchInput
from boson_multimodal.model.higgs_audio import HiggsAudioModel
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from engine.merge.check import _logits, random_prompt
from engine.model.native_layout import boson_name, native_name
from engine.model.weight_files import read_entries
from engine.model.weights import load_base
from launch.convert import main
from launch.demo.small_model import build_model
from preprocess.common.errors import InputError
from preprocess.corpus.base_model import read_base_model
from preprocess.corpus.text import tokenizer_fingerprint
from tests.fixtures.native import build_native
from tests.fixtures.steps import ROOT
from tests.preprocess.helpers import assert_parts


@pytest.fixture(scope="module")
def boson(tmp_path_factory):
    """A base that the native layout can express: both FFNs in every layer, of one size."""
    folder = tmp_path_factory.mktemp("boson") / "base"
    return build_model(folder, num_layers=2, dual_ffn_layers=(0, 1), num_codebooks=4, codebook_size=64)


def convert(native, out):
    return main(["--model", str(native), "--out", str(out)])


def refusal(native, out):
    with pytest.raises(InputError) as caught:
        convert(native, out)
    assert not out.exists()
    assert not list(out.parent.glob(".*.partial"))
    return caught.value


def read_tensors(folder):
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


@pytest.mark.parametrize("files", [1, 3])
def test_what_comes_back_is_the_base_to_the_bit(files, boson, tmp_path, capsys):
    native, out = build_native(boson, tmp_path / "native", files), tmp_path / "base"
    assert convert(native, out) == 0
    assert "in Boson's layout, each with the bits it had" in capsys.readouterr().out
    expected, found = read_tensors(boson), read_tensors(out)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert len(list(out.glob("*.safetensors"))) == files
    one, other = read_base_model(boson), read_base_model(out)
    assert tokenizer_fingerprint(one.tokenizer) == tokenizer_fingerprint(other.tokenizer)
    assert one.special_tokens == other.special_tokens
    assert one.tokenizer.eos_token_id == other.tokenizer.eos_token_id
    prompt = random_prompt(boson)
    logits = [_logits(load_base(folder, torch.float32).eval(), prompt) for folder in (boson, out)]
    assert torch.equal(*logits)
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == one.tokenizer.eos_token_id


def test_boson_s_own_loader_opens_it(boson, tmp_path):
    convert(build_native(boson, tmp_path / "native"), tmp_path / "base")
    model = HiggsAudioModel.from_pretrained(tmp_path / "base", local_files_only=True)
    assert isinstance(random_prompt(tmp_path / "base"), HiggsAudioBatchInput)
    assert model.config.audio_dual_ffn_layers == [0, 1]


@settings(max_examples=10, deadline=None)
@given(
    num_layers=st.integers(1, 4),
    num_codebooks=st.integers(1, 9),
    codebook_size=st.integers(2, 64),
    num_key_value_heads=st.sampled_from([1, 2, 4]),
)
def test_every_tensor_is_in_the_mapping_once_both_ways(tmp_path_factory, **shape):
    folder = tmp_path_factory.mktemp("shape") / "base"
    names = read_entries(build_model(folder, dual_ffn_layers=tuple(range(shape["num_layers"])), **shape)).keys()
    native = {native_name(name) for name in names}
    assert len(native) == len(names)
    assert {boson_name(name) for name in native} == names


def without(name):
    def spoil(folder):
        tensors = load_file(folder / "model.safetensors")
        del tensors[name]
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return spoil


def with_config(**values):
    def spoil(folder):
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return spoil


def without_token(folder):
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace("<|audio_eos|>", "<|other|>"))


SPOILT = {
    "no head": (without("text_lm_head.weight"), "no audio_decoder_proj.text_lm_head.weight"),
    "no layer": (without("model.layers.1.audio_mlp.up_proj.weight"), "no layers.1.audio_mlp.up_proj.weight"),
    "more layers": (with_config(num_hidden_layers=3), "no layers.2."),
    "fewer layers": (with_config(num_hidden_layers=1), "layers.1."),
    "another size": (with_config(intermediate_size=7), "instead of"),
    "codebooks": (with_config(num_codebooks=3), "instead of"),
    "stream": (with_config(audio_stream_bos_id=3), "audio_stream_bos_id 3"),
    "no rope": (with_config(rope_parameters=None), "rope_parameters = None"),
    "a text": (with_config(hidden_size="x"), "text_config.hidden_size 'x'"),
    "NaN": (with_config(rms_norm_eps=float("nan")), "rms_norm_eps = nan"),
    "code": (with_config(auto_map={"AutoConfig": "evil.C"}), "code that would run"),
    "Boson's": (with_config(model_type="higgs_audio"), "Boson's own layout already"),
    "no token": (without_token, "no token <|audio_eos|>"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer.json"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "no model.safetensors"),
    "cut": (lambda folder: os.truncate(folder / "model.safetensors", 5000), "no safetensors file"),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_what_is_no_whole_base_leaves_nothing(kind, boson, tmp_path):
    native = build_native(boson, tmp_path / "native")
    spoil, found = SPOILT[kind]
    spoil(native)
    error = refusal(native, tmp_path / "base")
    assert error.where.startswith(str(native))
    assert found in error.found


def test_a_folder_with_something_in_it_is_not_overwritten(boson, tmp_path):
    with pytest.raises(InputError) as caught:
        convert(build_native(boson, tmp_path / "native"), tmp_path)
    assert_parts(caught.value, str(tmp_path), "something there already", "new or empty", "another --out")


def test_other_commands_say_how_to_convert(boson, tmp_path):
    native = build_native(boson, tmp_path / "native")
    with pytest.raises(InputError) as caught:
        read_base_model(native)
    assert f"python -m launch.convert --model {native} --out BASE" in caught.value.action


def native_inputs(batch, config):
    """A batch of one sample as transformers' class takes it: a placeholder for each column, all audios in a row."""
    ends = [*batch.audio_out_ids_start[1:].tolist(), batch.audio_out_ids.shape[1]]
    lengths = iter(end - start for start, end in zip(batch.audio_out_ids_start.tolist(), ends, strict=True))
    placeholder, ids = config.audio_out_token_idx, []
    for number in batch.input_ids[0].tolist():
        ids += [number] * (next(lengths) if number == placeholder else 1)
    return {"input_ids": torch.tensor([ids]), "audio_input_ids": batch.audio_out_ids.T[None].contiguous()}


@pytest.mark.export
@torch.no_grad()
def test_transformers_own_class_gives_the_same_logits(boson, tmp_path):
    """A folder that transformers 5 made and saved; text logits everywhere, audio logits of all columns."""
    script = [str(ROOT / ".venv-export" / "bin" / "python"), str(Path(__file__).with_name("native_logits.py"))]
    subprocess.run([*script, "make", str(boson), str(tmp_path)], check=True)
    convert(tmp_path / "native", tmp_path / "base")
    batch, config = random_prompt(tmp_path / "base"), read_base_model(tmp_path / "base").config
    save_file(native_inputs(batch, config), tmp_path / "inputs.safetensors")
    subprocess.run([*script, "run", str(tmp_path)], check=True)
    expected = load_file(tmp_path / "logits.safetensors")
    model = load_base(tmp_path / "base", torch.float32).eval()
    found = model(**{field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)})
    whole = found.attention_mask[0].bool()  # Boson rounds the length up
    assert torch.allclose(found.logits[0][whole], expected["text"], atol=1e-5)
    columns = found.audio_logits.flatten(1)
    spoken = native_inputs(batch, config)["input_ids"][0] == config.audio_out_token_idx
    assert len(columns) == int(spoken.sum()) > 8
    assert torch.allclose(columns, expected["audio"][spoken], atol=1e-5)
