"""A codec in the layout of transformers 5 is the one in Boson's: codes, sound, facts and fingerprint."""

import gc
import json
import os
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from launch.demo.small_codec import RELEASED_SIZE, build_codec
from preprocess.codec.load import encode_waveform, load_codec
from preprocess.codec.native_layout import native_name
from preprocess.common.errors import InputError
from tests.fixtures.native_codec import build_native_codec

SMALL = {"codebook_dim": 16}
RELEASED_FORM = {**RELEASED_SIZE, "codebook_dim": 64}


@pytest.fixture(autouse=True)
def _collect_codecs():
    """An error's traceback holds a codec of 0.3 GB in a cycle, of which Python counts the few objects alone."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def small(tmp_path_factory, hubert_folder):
    """A small codec in Boson's layout and its native twin."""
    folder = tmp_path_factory.mktemp("codecs")
    codec = build_codec(folder / "boson", hubert_folder, **SMALL)
    return codec, build_native_codec(codec, hubert_folder, folder / "native")


@pytest.fixture(scope="module")
def released(tmp_path_factory, hubert_folder):
    """Both layouts in the form of the released codec: 8 codebooks of 64 dimensions, four target bandwidths."""
    folder = tmp_path_factory.mktemp("released")
    codec = build_codec(folder / "boson", hubert_folder, **RELEASED_FORM)
    return codec, build_native_codec(codec, hubert_folder, folder / "native")


@pytest.fixture
def native(small, tmp_path):
    """A copy of the native twin, to be spoilt."""
    return shutil.copytree(small[1], tmp_path / "codec")


@pytest.mark.parametrize("form", ["small", "released"])
def test_codes_sound_facts_and_fingerprint_are_those_of_the_other_layout(form, request, hubert_folder):
    folders = request.getfixturevalue(form)
    noise = np.random.default_rng(0).normal(0, 0.1, 60_000).astype(np.float32)
    found = []
    for folder in folders:
        tokenizer, facts = load_codec(folder, hubert_folder)
        rate = facts.sample_rate_hz
        codes = [encode_waveform(tokenizer, noise[:length], rate) for length in (13_441, 24_000, 30_007, 60_000)]
        with torch.no_grad():
            sound = tokenizer.decode(torch.from_numpy(codes[-1].astype(np.int64))[None])
        found.append((facts, codes, sound))
    (facts, codes, sound), (other_facts, other_codes, other_sound) = found
    assert facts == other_facts
    assert all(np.array_equal(one, other) for one, other in zip(codes, other_codes, strict=True))
    assert len(np.unique(codes[-1])) > 100
    assert np.array_equal(sound, other_sound)


@pytest.mark.parametrize("form", ["small", "released"])
def test_every_tensor_is_in_the_mapping_once(form, request):
    boson, native = request.getfixturevalue(form)
    ratios = json.loads((boson / "config.json").read_text())["ratios"]
    names = torch.load(boson / "model.pth", weights_only=True).keys()
    mapped = [native_name(name, len(ratios)) for name in names if not name.endswith("weight_g")]
    assert len(set(mapped)) == len(mapped)
    found = load_file(native / "model.safetensors").keys()
    assert {*mapped} - found <= {"semantic_model.masked_spec_embed"}
    assert {name for name in found if not name.startswith("semantic_model.")} <= {*mapped}


@pytest.mark.parametrize("what", ["codebook", "semantic encoder", "HuBERT", "convolution", "config"])
def test_another_codec_has_another_fingerprint(what, small, native, hubert_folder):
    tensors = load_file(native / "model.safetensors")
    names = {
        "codebook": "quantizer.quantizers.3.codebook.embed",
        "semantic encoder": "encoder_semantic.conv.weight",
        "HuBERT": "semantic_model.encoder.layer_norm.weight",
        "convolution": "acoustic_decoder.conv2.weight",
    }
    if what == "config":
        config = json.loads((native / "config.json").read_text())
        (native / "config.json").write_text(json.dumps({**config, "target_bandwidths": [0.5, 1.0, 1.5]}))
        state = {name: tensor for name, tensor in tensors.items() if ".quantizers.6." not in name}
        tensors = {name: tensor for name, tensor in state.items() if ".quantizers.7." not in name}
    elif what == "convolution":
        tensors[names[what]] *= 1.1
    else:
        tensors[names[what]].view(-1)[0] += 0.01
    save_file(tensors, native / "model.safetensors", {"format": "pt"})
    fingerprints = [load_codec(folder, hubert_folder)[1].fingerprint for folder in (small[1], native)]
    assert fingerprints[0] != fingerprints[1]


def drop(name):
    def spoil(folder):
        tensors = load_file(folder / "model.safetensors")
        del tensors[name]
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return spoil


def put(name, change):
    def spoil(folder):
        tensors = load_file(folder / "model.safetensors")
        tensors[name] = change(tensors[name])
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return spoil


def with_config(**values):
    def spoil(folder):
        path = folder / "config.json"
        config = json.loads(path.read_text())
        for key, value in values.items():
            config[key] = {**config.get(key, {}), **value} if isinstance(value, dict) else value
        path.write_text(json.dumps(config))

    return spoil


RATIOS = [8, 5, 4, 6]
SPOILT = {
    "a codebook gone": (drop("quantizer.quantizers.7.codebook.embed"), "no quantizer.quantizers.7.codebook.embed"),
    "HuBERT gone": (drop("semantic_model.encoder.layer_norm.bias"), "no semantic_model.encoder.layer_norm.bias"),
    "misshapen": (put("fc.bias", lambda tensor: tensor[:-1].clone()), "instead of"),
    "NaN": (put("fc.bias", lambda tensor: tensor * float("nan")), "NaN or infinity in fc.bias"),
    "int8": (put("fc.bias", lambda tensor: tensor.to(torch.int8)), "dtype torch.int8"),
    "strides": (with_config(strides=[2, 1]), "strides = [2, 1]"),
    "dilations": (with_config(block_dilations=[1, 3]), "block_dilations = [1, 3]"),
    "another decoder": (
        with_config(acoustic_model_config={"upsampling_ratios": [2, 2]}),
        "upsampling_ratios = [2, 2]",
    ),
    "another encoder": (
        with_config(acoustic_model_config={"downsampling_ratios": RATIOS, "upsampling_ratios": RATIOS}),
        "instead of",
    ),
    "more codebooks": (with_config(target_bandwidths=[4.0]), "no quantizer.quantizers.10"),
    "no rate": (with_config(sample_rate="x"), "sample_rate = 'x'"),
    "another HuBERT": (with_config(semantic_model_config={"layer_norm_eps": 1e-3}), "layer_norm_eps 0.001"),
    "no projections": (with_config(codebook_dim=64 + 768), "codebook_dim = 832"),
    "one code": (with_config(codebook_size=1), "codebook_size = 1"),
    "a long convolution": (with_config(acoustic_model_config={"downsampling_ratios": [60_000]}), "60000"),
    "no such activation": (with_config(semantic_model_config={"hidden_act": 3}), "hidden_act 3"),
    "strange HuBERT": (with_config(semantic_model_config={"conv_dim": 7}), "Boson's class refuses"),
    "code": (with_config(auto_map={"AutoModel": "evil.C"}), "code that would run"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "no model.safetensors"),
    "cut": (lambda folder: os.truncate(folder / "model.safetensors", 5000), "no file of weights"),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_what_is_no_whole_codec_is_refused(kind, native, hubert_folder):
    spoil, found = SPOILT[kind]
    spoil(native)
    with pytest.raises(InputError) as caught:
        load_codec(native, hubert_folder)
    assert caught.value.where.startswith(str(native))
    assert found in caught.value.found
    assert "Download" in caught.value.action


def test_what_boson_s_class_does_not_use_is_named_and_passed_over(small, tmp_path, hubert_folder, capsys):
    """An old release of the codec has more than its class."""
    folder = shutil.copytree(small[0], tmp_path / "codec")
    state = torch.load(folder / "model.pth", weights_only=True)
    torch.save({**state, "fc1.weight": torch.ones(3), "fc1.bias": torch.ones(3)}, folder / "model.pth")
    _, facts = load_codec(folder, hubert_folder)
    assert "fc1.bias, fc1.weight, which Boson's class does not use" in capsys.readouterr().out
    assert facts == load_codec(small[0], hubert_folder)[1]
