"""A base in either layout is one base: weights, prompts, fingerprint. It becomes the other to the bit, or nothing."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from boson_multimodal.model.higgs_audio import HiggsAudioModel
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from engine.base.recipe import Lora
from engine.merge.check import _logits, random_prompt
from engine.model.fingerprint import base_fingerprint
from engine.model.weights import load_base
from launch.convert import main
from launch.demo.small_model import build_model
from preprocess.common.errors import InputError
from preprocess.corpus.base_model import read_base_model
from preprocess.corpus.native_layout import boson_name, native_name
from preprocess.corpus.text import tokenizer_fingerprint
from tests.fixtures.adapter import random_lora, save_checkpoint
from tests.fixtures.native import build_native, read
from tests.fixtures.released import build_released
from tests.preprocess.helpers import assert_parts


@pytest.fixture(scope="module")
def boson(tmp_path_factory):
    """A base that the native layout can express: both FFNs in every layer, of one size."""
    folder = tmp_path_factory.mktemp("boson") / "base"
    return build_model(folder, num_layers=2, dual_ffn_layers=(0, 1), num_codebooks=4, codebook_size=64)


@pytest.fixture(scope="module", params=["small", "released"])
def base(request, tmp_path_factory, boson):
    """That base, and one in the form in which Boson has released the 3B."""
    return boson if request.param == "small" else build_released(tmp_path_factory.mktemp("released") / "base", 2)


def convert(source, out, layout="boson"):
    return main(["--model", str(source), "--format", layout, "--out", str(out)])


def refusal(source, out, layout="boson"):
    with pytest.raises(InputError) as caught:
        convert(source, out, layout)
    assert not out.exists()
    assert not list(out.parent.glob(".*.partial"))
    return caught.value


def read_tensors(folder):
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def assert_same_tensors(found, expected):
    found, expected = read_tensors(found), read_tensors(expected)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("files", [1, 3])
def test_there_and_back_is_the_base_to_the_bit(files, base, tmp_path, capsys):
    native, out = build_native(base, tmp_path / "native", files), tmp_path / "base"
    assert convert(native, out) == 0
    assert "in the layout of boson, each with the bits it had" in capsys.readouterr().out
    assert_same_tensors(out, base)
    assert len(list(out.glob("*.safetensors"))) == files
    assert (
        read(out / "generation_config.json")["eos_token_id"] == read(base / "generation_config.json")["eos_token_id"]
    )
    assert convert(out, tmp_path / "back", "transformers") == 0
    back, given = read_tensors(tmp_path / "back"), read_tensors(native)
    for copy in ("audio_decoder_proj.text_lm_head.weight", "audio_decoder_proj.audio_lm_head.weight"):
        del given[copy]  # the hub keeps them and nothing reads them
    assert back.keys() == given.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in given.items())
    written, config = (read(folder / "config.json") for folder in (tmp_path / "back", native))
    assert written == {key: config[key] for key in written}


@pytest.mark.parametrize("files", [1, 3])
def test_either_layout_is_the_same_base(files, base, tmp_path):
    """Weights, logits, prompts and fingerprints, with no second copy on disk."""
    native = build_native(base, tmp_path / "native", files)
    one, other = read_base_model(base), read_base_model(native)
    assert tokenizer_fingerprint(one.tokenizer) == tokenizer_fingerprint(other.tokenizer)
    assert one.special_tokens == other.special_tokens
    assert one.tokenizer.eos_token_id == other.tokenizer.eos_token_id
    assert base_fingerprint(base) == base_fingerprint(native)
    prompts = [random_prompt(folder) for folder in (base, native)]
    assert torch.equal(prompts[0].input_ids, prompts[1].input_ids)
    models = [load_base(folder, torch.float32).eval() for folder in (base, native)]
    states = [model.state_dict() for model in models]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert torch.equal(*(_logits(model, prompts[0]) for model in models))
    numbers = [model.generation_config for model in models]
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert getattr(numbers[0], key) == getattr(numbers[1], key)


def test_llama_3_s_scaling_has_one_fingerprint_however_it_is_spelt(boson, tmp_path):
    """transformers' default has the numbers of a context eight times as short: the same wavelengths."""
    rope = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    spellings = [
        rope | {"original_max_position_embeddings": 8192},
        {**rope, "low_freq_factor": 0.125, "high_freq_factor": 0.5, "original_max_position_embeddings": 1024},
        rope | {"original_max_position_embeddings": 4096},
    ]
    found, frequencies = [], []
    for number, spelling in enumerate(spellings):
        folder = shutil.copytree(boson, tmp_path / str(number))
        config = read(folder / "config.json")
        config["text_config"]["rope_scaling"] = spelling
        (folder / "config.json").write_text(json.dumps(config))
        found.append(base_fingerprint(folder))
        frequencies.append(load_base(folder, torch.float32).rotary_emb.inv_freq)
    assert found[0] == found[1] != found[2]
    assert torch.equal(frequencies[0], frequencies[1])
    assert not torch.equal(frequencies[0], frequencies[2])
    assert base_fingerprint(build_native(tmp_path / "0", tmp_path / "native")) == found[0]


def test_boson_s_own_loader_opens_what_was_converted(boson, tmp_path):
    convert(build_native(boson, tmp_path / "native"), tmp_path / "base")
    model = HiggsAudioModel.from_pretrained(tmp_path / "base", local_files_only=True)
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
    build_model(folder, dual_ffn_layers=tuple(range(shape["num_layers"])), **shape)
    names = read_tensors(folder).keys()
    native = {native_name(name) for name in names}
    assert len(native) == len(names)
    assert {boson_name(name) for name in native} == names


@pytest.mark.parametrize("missing", [None, "frozen", "trainable"])
def test_the_oldest_checkpoints_hold_two_tensors_in_pieces(missing, boson, tmp_path):
    """Boson's PartiallyFrozenEmbedding and PartiallyFrozenLinear, whose rows follow each other."""
    folder = shutil.copytree(boson, tmp_path / "oldest")
    tensors = load_file(folder / "model.safetensors")
    for name, kind in (("embed_tokens", "embedding"), ("audio_decoder_proj.text_lm_head", "linear")):
        whole = tensors.pop(f"{name}.weight")
        pieces = {"frozen": whole[:100].clone(), "trainable": whole[100:].clone()}
        tensors |= {f"{name}.{kind}_{part}.weight": piece for part, piece in pieces.items() if part != missing}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    if missing:
        with pytest.raises(InputError, match=r"embed_tokens.weight \[\d+, 96\] instead of"):
            load_base(folder, torch.float32)
        return
    assert base_fingerprint(folder) == base_fingerprint(boson)
    found, expected = (load_base(each, torch.float32).state_dict() for each in (folder, boson))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    convert(folder, tmp_path / "native", "transformers")
    convert(tmp_path / "native", tmp_path / "base")
    assert_same_tensors(tmp_path / "base", boson)


def test_weights_of_the_wanted_dtype_are_mapped_and_the_file_stays_as_it_is(boson, tmp_path):
    """What a process does to its weights is its own: neither the file nor other processes see it."""
    folder = shutil.copytree(boson, tmp_path / "base")
    before = (folder / "model.safetensors").read_bytes()
    model = load_base(folder, torch.float32)
    mapped = Path("/proc/self/maps").read_text()
    assert str(folder / "model.safetensors") in mapped
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7)
    assert (folder / "model.safetensors").read_bytes() == before
    assert not torch.equal(load_base(folder, torch.float32).norm.weight, model.norm.weight)


def without(name):
    def spoil(folder):
        tensors = load_file(folder / "model.safetensors")
        del tensors[name]
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return spoil


def with_tensor(name):
    def spoil(folder):
        tensors = load_file(folder / "model.safetensors")
        save_file({**tensors, name: torch.ones(3)}, folder / "model.safetensors", {"format": "pt"})

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
    "one more": (with_tensor("model.rotary.weight"), "model.rotary.weight, which the model does not have"),
    "Boson's name": (with_tensor("layers.0.mlp.up_proj.weight"), "another file has too"),
    "more layers": (with_config(num_hidden_layers=3), "no layers.2."),
    "fewer layers": (with_config(num_hidden_layers=1), "layers.1."),
    "another size": (with_config(intermediate_size=7), "instead of"),
    "codebooks": (with_config(num_codebooks=3), "instead of"),
    "stream": (with_config(audio_stream_bos_id=3), "audio_stream_bos_id 3"),
    "no rope": (with_config(rope_parameters=None), "rope_parameters = None"),
    "a text": (with_config(hidden_size="x"), "text_config.hidden_size 'x'"),
    "NaN": (with_config(rms_norm_eps=float("nan")), "rms_norm_eps = nan"),
    "code": (with_config(auto_map={"AutoConfig": "evil.C"}), "code that would run"),
    "no token": (without_token, "no token <|audio_eos|>"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer.json"),
    "no settings": (lambda folder: (folder / "tokenizer_config.json").unlink(), "no tokenizer_config.json"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "no model.safetensors"),
    "cut": (lambda folder: os.truncate(folder / "model.safetensors", 5000), "no safetensors file"),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_what_is_no_whole_base_is_neither_loaded_nor_converted(kind, boson, tmp_path):
    native = build_native(boson, tmp_path / "native")
    spoil, found = SPOILT[kind]
    spoil(native)
    error = refusal(native, tmp_path / "base")
    assert error.where.startswith(str(native))
    assert found in error.found
    with pytest.raises(InputError) as caught:
        load_base(native, torch.float32)
    assert caught.value.found == error.found


def test_a_folder_with_something_in_it_is_not_overwritten(boson, tmp_path):
    with pytest.raises(InputError) as caught:
        convert(build_native(boson, tmp_path / "native"), tmp_path)
    assert_parts(caught.value, str(tmp_path), "something there already", "new or empty", "another --out")


def test_a_base_in_the_layout_already_is_not_written_again(boson, tmp_path):
    error = refusal(boson, tmp_path / "base")
    assert_parts(error, str(boson), "in the layout of boson already", "the other layout", "every command reads both")


@pytest.mark.parametrize(
    ("shape", "found"),
    [
        ({"dual_ffn_layers": (0,)}, "audio_dual_ffn_layers = [0]"),
        ({"audio_tower": True}, "skip_audio_tower = False"),
        ({"special_tokens": 1}, "a tokenizer without <|reserved_special_token_6|>"),
    ],
)
def test_what_the_other_layout_can_not_express_is_refused_by_name(shape, found, tmp_path):
    shape = {"num_layers": 2, "dual_ffn_layers": (0, 1), "codebook_size": 64} | shape
    no_delay = shape.pop("special_tokens", None)
    base = build_model(tmp_path / "base", **shape)
    if no_delay:
        for path in base.glob("*token*.json"):
            path.write_text(path.read_text().replace("<|reserved_special_token_6|>", "<|another|>"))
    error = refusal(base, tmp_path / "native", "transformers")
    assert error.where == str(base / "config.json")
    assert found in error.found
    assert "--format boson" in error.action


@pytest.mark.parametrize(
    "more", [{}, {"dora": True, "train_whole": ["audio_head", "text_head"]}, {"mode": "attention"}]
)
def test_an_adapter_gets_the_names_of_the_other_layout(more, boson, tmp_path):
    """Its modules are those of the converted base; PEFT's own class is asked by make test-export."""
    checkpoint = save_checkpoint(tmp_path / "run", boson, random_lora(boson, Lora(rank=4, **more)))
    assert main(["--adapter", str(checkpoint), "--format", "transformers", "--out", str(tmp_path / "out")]) == 0
    given, found = (load_file(folder / "adapter_model.safetensors") for folder in (checkpoint, tmp_path / "out"))
    assert len(given) == len(found)
    modules = {native_name(name).removesuffix(".weight") for name in read_tensors(boson)}
    config = read(tmp_path / "out" / "adapter_config.json")
    assert {name.replace("\\", "") for name in config["target_modules"].split("|")} <= modules
    assert set(config["modules_to_save"] or []) <= modules
    for name, tensor in found.items():
        module = re.sub(r"^base_model\.model\.|\.(lora_\w+(\.weight)?|weight)$", "", name)
        assert module in modules
        original = boson_name(f"{module}.weight").removesuffix(".weight")
        assert torch.equal(given[name.replace(f"model.{module}.", f"model.{original}.")], tensor)


def test_an_adapter_of_the_audio_tower_is_refused(tmp_path):
    base = build_model(tmp_path / "base", num_layers=2, dual_ffn_layers=(0, 1), codebook_size=64, audio_tower=True)
    model = random_lora(base, Lora(rank=4), conditioning="both")
    checkpoint = save_checkpoint(tmp_path / "run", base, model)
    with pytest.raises(InputError) as caught:
        main(["--adapter", str(checkpoint), "--format", "transformers", "--out", str(tmp_path / "out")])
    where = str(checkpoint / "adapter_model.safetensors")
    assert_parts(caught.value, where, "audio_encoder_proj.linear.lora_A", "layers and heads", "Merge it instead")
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="Checkpoints have Boson's names already"):
        main(["--adapter", str(checkpoint), "--format", "boson", "--out", str(tmp_path / "out")])
