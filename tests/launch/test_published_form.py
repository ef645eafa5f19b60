"""The commands of the README on folders in the form that the hub's main holds: recordings in, speech out."""

import json

import numpy as np
import pytest
import soundfile

from engine.merge.folder import merge_checkpoint
from launch import generate, show
from launch.demo.small_codec import RELEASED_SIZE, build_codec
from preprocess.corpus.shards import Corpus
from preprocess.verify import main as verify
from tests.fixtures.native import build_native
from tests.fixtures.native_codec import build_native_codec
from tests.fixtures.released import FILES, build_released
from tests.fixtures.speaker import REFERENCE_TEXT, TARGET_TEXT, build_speaker
from tests.preprocess.helpers import shard


@pytest.fixture(scope="module")
def published(tmp_path_factory, hubert_folder):
    """{layout: (base, codec)}: of the pinned revisions, and of the hub's main."""
    folder = tmp_path_factory.mktemp("published")
    base = build_released(folder / "base", num_layers=2)
    codec = build_codec(folder / "codec", hubert_folder, ratios=RELEASED_SIZE["ratios"], codebook_dim=64)
    native_codec = build_native_codec(codec, hubert_folder, folder / "native_codec")
    return {"pinned": (base, codec), "main": (build_native(base, folder / "native", FILES), native_codec)}


def test_both_forms_give_one_corpus(published, tmp_path, short_folder, hubert_folder, capsys):
    corpora = []
    for name, (base, codec) in published.items():
        tools = {"model": base, "audio_tokenizer": codec, "hubert": hubert_folder, "workers": 1}
        assert shard(manifest=short_folder / "corpus.jsonl", out=tmp_path / name, **tools) == 0
        corpora.append(Corpus(tmp_path / name))
    one, other = corpora
    assert one.info["codec"] == other.info["codec"]
    assert one.info["text_tokenizer"] == other.info["text_tokenizer"]
    assert one.index.equals(other.index)
    for row in range(one.index.num_rows):
        assert np.array_equal(one.clip(row).codes, other.clip(row).codes)
    base, codec = published["main"]  # reads what the other form made
    tools = ["--audio-tokenizer", str(codec), "--hubert", str(hubert_folder)]
    words = ["--model", str(base), *tools, "--audio-root", str(short_folder), "--clips", "2"]
    assert verify([str(tmp_path / "pinned"), *words]) == 0
    clip = ["--audio", str(tmp_path / "clip.wav")]
    assert show.main([str(tmp_path / "pinned"), one.clip(0).key, *tools, *clip]) == 0
    assert len(soundfile.read(tmp_path / "clip.wav")[0]) > 10_000


def test_the_merged_model_is_spoken_with_the_codec_of_main(published, tmp_path, hubert_folder, capsys):
    base, codec = published["pinned"]
    speaker = build_speaker(tmp_path, base, codec, hubert_folder)
    merge_checkpoint(
        tmp_path / "run" / "checkpoints" / "step-000007", None, tmp_path / "native", layout="transformers"
    )
    sounds = []
    for model, tokenizer in ((speaker.folder, codec), (tmp_path / "native", published["main"][1])):
        words = ["--model", model, "--audio-tokenizer", tokenizer, "--hubert", hubert_folder, "--greedy"]
        words += ["--reference", speaker.reference, "--reference-text", REFERENCE_TEXT, "--text", TARGET_TEXT]
        assert generate.main([str(word) for word in [*words, "--out", tmp_path / "out.wav"]]) == 0
        sounds.append(soundfile.read(tmp_path / "out.wav")[0])
    printed = capsys.readouterr().out
    assert printed.count("the model started and stopped by itself") == 2
    assert printed.count("step 7 of 10") == 2
    assert "loss_audio 4.2500" in printed
    assert len(sounds[0]) > 10_000
    assert np.array_equal(*sounds)
    assert json.loads((tmp_path / "native" / "config.json").read_text())["model_type"] == "higgs_audio_v2"
