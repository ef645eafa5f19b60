"""transformers 5's own classes, in an environment of their own, say what this code says of the folders it writes."""

import json

import numpy as np
import pytest
import soundfile
import torch
from boson_multimodal.serve.serve_engine import HiggsAudioServeEngine
from safetensors.torch import load_file, save_file

from engine.base.recipe import Lora
from engine.merge.folder import merge_checkpoint
from engine.speak.generate import clone_voice
from launch.convert import main as convert
from launch.demo.small_codec import RELEASED_SIZE, build_codec
from launch.demo.small_model import build_model
from preprocess.codec.load import hubert_from
from preprocess.corpus.base_model import read_base_model
from tests.fixtures.adapter import random_lora, save_checkpoint
from tests.fixtures.native_codec import build_native_codec
from tests.fixtures.released import build_released
from tests.fixtures.second_opinion import differences, run_transformers_5
from tests.fixtures.speaker import REFERENCE_TEXT, SYSTEM_TEXT, TARGET_TEXT, build_speaker

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


@pytest.mark.parametrize("more", [{}, {"rslora": True, "dora": True, "train_whole": ["audio_head"]}], ids=str)
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


@pytest.fixture(scope="module")
def stock(tmp_path_factory, hubert_folder):
    """(speaker, its folder for transformers, its codec for transformers, columns that Boson's own engine says)."""
    folder = tmp_path_factory.mktemp("stock")
    base = build_released(folder / "base")
    codec = build_codec(folder / "codec", hubert_folder, ratios=RELEASED_SIZE["ratios"], codebook_dim=16)
    native_codec = build_native_codec(codec, hubert_folder, folder / "native_codec")
    speaker = build_speaker(folder, base, codec, hubert_folder)
    checkpoint = folder / "run" / "checkpoints" / "step-000007"
    merge_checkpoint(checkpoint, None, folder / "stock", layout="transformers")
    with hubert_from(hubert_folder):
        engine = HiggsAudioServeEngine(str(speaker.folder), str(codec), device="cpu")
    pairs = [(REFERENCE_TEXT, speaker.reference)]
    said = clone_voice(engine, speaker.layout, pairs, TARGET_TEXT, greedy=True).generated_audio_tokens
    assert np.array_equal(said, speaker.columns)
    return speaker, folder / "stock", native_codec


def test_a_stock_pipeline_without_this_code_says_the_same(stock, tmp_path):
    """Prompt by the folder's chat template, columns of the reference by its processor, greedy codes by its class."""
    speaker, folder, codec = stock
    samples, _ = soundfile.read(speaker.reference, dtype="float32")
    save_file({"reference": torch.from_numpy(samples)}, tmp_path / "reference.safetensors")
    texts = {"system": SYSTEM_TEXT, "reference": REFERENCE_TEXT, "target": TARGET_TEXT}
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    run_transformers_5("speak", folder, codec, tmp_path)
    found = load_file(tmp_path / "spoken.safetensors")
    placeholder = read_base_model(folder).config.audio_out_token_idx
    delay = read_base_model(folder).tokenizer.convert_tokens_to_ids("<|reserved_special_token_6|>")
    ids = [placeholder if number == delay else number for number in found["input_ids"].tolist()]
    prompt = [
        number for number, before in zip(ids, [None, *ids], strict=False) if (number, before) != (placeholder,) * 2
    ]
    assert prompt == [*speaker.prompt, read_base_model(folder).config.audio_out_bos_token_id]  # it forces the start
    assert np.array_equal(found["reference_columns"].numpy(), speaker.prompt_columns)
    said = found["columns"].numpy()
    assert np.array_equal(said, speaker.columns[:, : said.shape[1]])
    assert said.shape[1] >= speaker.columns.shape[1] - 1  # Boson's engine appends one column at the end of the stream
