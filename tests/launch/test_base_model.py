"""Every command that names a base model refuses a broken one with the same error."""

import json
import shutil

import pytest
import torch

from engine.job import prepare_job
from engine.model.weights import load_base
from engine.speak.generate import load_engine
from launch import generate, merge, show
from preprocess import shard
from preprocess.common.errors import InputError
from preprocess.corpus.base_model import how_to_name_a_base, read_base_model
from tests.fixtures.steps import ROOT, ZERO2
from tests.preprocess.helpers import assert_parts

BROKEN = {
    "cut config": ("config.json", b'{"model_type": "higgs'),
    "a list": ("config.json", b"[]"),
    "wrong type": ("config.json", b'{"model_type": "higgs_audio", "audio_num_codebooks": "8"}'),
    "Boson's assert": ("config.json", b'{"model_type": "higgs_audio", "audio_adapter_type": "x"}'),
    "no config": ("config.json", None),
    "cut tokenizer": ("tokenizer.json", b'{"version": "1.0", '),
    "no tokenizer": ("tokenizer.json", None),
    "no folder": (None, None),
    "code for the tokenizer": ("tokenizer_config.json", b'{"auto_map": {"AutoTokenizer": ["code.T", null]}}'),
    "code at a hub": ("tokenizer_config.json", b'{"auto_map": {"AutoTokenizer": ["some/repo--code.T", null]}}'),
    "code for the config": ("config.json", b'{"model_type": "higgs_audio", "auto_map": {"AutoConfig": "code.C"}}'),
}


@pytest.fixture(params=BROKEN)
def broken(request, tmp_path, model_folder):
    name, data = BROKEN[request.param]
    if name is None:
        return tmp_path / "nowhere"
    folder = shutil.copytree(model_folder, tmp_path / "model")
    (folder / name).unlink()
    if data is not None:
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture
def commands(tmp_path, random_corpus, codec_folder, hubert_folder):
    """{command: (the flag that names its base, what runs it with a base)}"""
    recipe = str(ROOT / "launch" / "recipes" / "demo.yaml")
    spoken = ["--reference", "a.wav", "--reference-text", "one", "--text", "two", "--out", str(tmp_path / "a.wav")]
    codec = ["--audio-tokenizer", str(codec_folder), "--hubert", str(hubert_folder)]
    adapter, data = tmp_path / "adapter", str(random_corpus.folder)
    adapter.mkdir()
    merged = ["--checkpoint", str(adapter), "--out", str(tmp_path / "merged")]
    return {
        "preprocess.shard": (
            "--model",
            lambda base: shard.main(["--manifest", "none.jsonl", "--model", base, "--validate-only"]),
        ),
        "train": ("--model", lambda base: prepare_job(str(ZERO2), recipe, [], base, [data], "/nonexistent", 1)),
        "merge": ("--base", lambda base: merge.main([*merged, "--base", base])),
        "generate": ("--model", lambda base: generate.main(["--model", base, *codec, *spoken])),
        "show": ("--model", lambda base: show.main([data, random_corpus.clip(0).key, "--model", base])),
    }


def test_a_broken_base_is_the_same_error_in_every_command(broken, commands):
    with pytest.raises(InputError) as caught:
        read_base_model(broken)
    expected = caught.value
    for name, (flag, run) in commands.items():
        with pytest.raises(InputError) as caught:
            run(str(broken))
        error = caught.value
        assert (error.where, error.found, error.expected) == (expected.where, expected.found, expected.expected), name
        assert error.action in (how_to_name_a_base(flag), expected.action.replace("--model", flag)), name


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({"hidden_act": "no_such"}, "can't be loaded (KeyError: 'no_such')"),
        ({"num_key_value_heads": -1}, "can't be loaded ("),
        ({"hidden_size": 48}, "[8208, 96] instead of [8208, 48]"),
    ],
)
def test_a_model_that_boson_can_not_build_is_refused(
    values, found, tmp_path, model_folder, codec_folder, hubert_folder
):
    folder = shutil.copytree(model_folder, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= values
    (folder / "config.json").write_text(json.dumps(config))
    loads = {
        "train": lambda: load_base(folder, torch.float32),
        "generate": lambda: load_engine(folder, codec_folder, hubert_folder, "cpu"),
    }
    for load in loads.values():
        with pytest.raises(InputError) as caught:
            load()
        assert_parts(caught.value, str(folder), found, "model", "Download")


def test_weights_that_are_cut_are_refused(tmp_path, model_folder):
    folder = shutil.copytree(model_folder, tmp_path / "model")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError) as caught:
        load_base(folder, torch.float32)
    assert_parts(caught.value, str(path), "no safetensors file (", "weights of the base model", "Download")
