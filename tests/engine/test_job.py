"""What can't be trained is refused before any GPU is touched, in four parts."""

import json
import shutil
import sys

import pytest

from engine.job import prepare_job
from launch.demo.small_model import build_model
from preprocess.common.errors import InputError
from tests.fixtures.steps import ROOT, ZERO2


def refused(model, data, overrides=(), recipe="demo.yaml", world_size=1):
    with pytest.raises(InputError) as caught:
        prepare_job(
            deepspeed=str(ZERO2),
            recipe=str(ROOT / "launch" / "recipes" / recipe),
            overrides=list(overrides),
            model=str(model),
            data=[str(folder) for folder in (data if isinstance(data, list) else [data])],
            out="/nonexistent",
            world_size=world_size,
        )
    return caught.value


def test_shards_of_another_codec(other_model_folder, random_corpus):
    error = refused(other_model_folder, random_corpus.folder)
    assert error.where == str(random_corpus.folder / "corpus.json")
    assert error.found == "8 codebooks of 1024 codes"
    assert error.expected == f"4 codebooks of 64 codes, as {other_model_folder / 'config.json'} says"
    assert "a corpus of another codec must be encoded again" in error.action


def test_a_corpus_counted_with_another_tokenizer(tmp_path, model_folder, random_corpus):
    model = shutil.copytree(model_folder, tmp_path / "model")
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokenizer["model"]["merges"].pop()
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    error = refused(model, random_corpus.folder)
    assert error.where.endswith("corpus.json")
    assert "text lengths counted by tokenizer" in error.found
    assert str(model) in error.expected
    assert "--model" in error.action


def test_a_model_folder_without_config(tmp_path, random_corpus):
    error = refused(tmp_path, random_corpus.folder)
    assert error.where == str(tmp_path)
    assert error.found == "no config.json"
    assert "Higgs Audio v2" in error.expected
    assert "Download" in error.action


def test_a_folder_that_is_no_finished_corpus(tmp_path, model_folder):
    error = refused(model_folder, tmp_path)
    assert error.where == str(tmp_path)
    assert error.found == "no corpus.json"
    assert "finished" in error.expected
    assert "preprocess.shard" in error.action


def test_a_shard_of_another_size(tmp_path, model_folder, random_corpus):
    data = shutil.copytree(random_corpus.folder, tmp_path / "corpus")
    shard = data / "shard-000000.tar"
    size = shard.stat().st_size
    shard.write_bytes(shard.read_bytes()[:-512])
    error = refused(model_folder, data)
    assert error.where == str(shard)
    assert error.found == f"{size - 512} bytes"
    assert error.expected.startswith(f"{size} bytes")
    assert "Copy the file again" in error.action


def test_a_model_whose_first_layer_has_no_audio_ffn(tmp_path, random_corpus):
    model = build_model(tmp_path / "model", dual_ffn_layers=(1, 2))
    error = refused(model, random_corpus.folder)
    assert error.where.endswith("config.json")
    assert error.found == "audio_dual_ffn_layers [1, 2] without layer 0"
    assert error.expected == "layer 0 among them"
    assert "serve engine" in error.action


def test_a_batch_that_misses_its_stated_range(model_folder, random_corpus):
    error = refused(model_folder, random_corpus.folder, ["batch.expected_samples_per_step=[100, 200]"])
    assert "expected_samples_per_step" in error.where
    assert "samples per step on average" in error.found
    assert error.expected == "100 to 200"
    assert "batch.max_tokens" in error.action


def test_codebook_weights_of_another_number(model_folder, random_corpus):
    error = refused(model_folder, random_corpus.folder, ["loss.codebook_weights=[1.0]"])
    assert error.where == "recipe: loss.codebook_weights"
    assert error.found == "1 weights"
    assert error.expected.startswith("8, one per codebook")
    assert "Correct" in error.action


def test_a_base_with_an_audio_tower_that_hears_nothing(tmp_path, model_folder, random_corpus):
    model = shutil.copytree(model_folder, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "skip_audio_tower": False}))
    error = refused(model, random_corpus.folder)
    assert error.where == str(model / "config.json")
    assert error.found == "an audio tower (skip_audio_tower false) with encode_whisper_embed false"
    assert error.expected == "true"
    assert "released base" in error.action


def test_a_split_with_fewer_samples_than_packs(model_folder, random_corpus):
    error = refused(model_folder, random_corpus.folder, ["batch.packs_per_step=64"])
    assert "train" in error.where
    assert "18 samples" in error.found
    assert "packs_per_step=64" in error.expected
    assert "smaller batch.packs_per_step" in error.action


def assert_wandb_refused(model_folder, random_corpus):
    error = refused(model_folder, random_corpus.folder, ["run.monitors=[tensorboard,wandb]"])
    assert (error.where, error.found) == ("recipe: run.monitors", "wandb, which is not installed here")
    assert "requirements-wandb.txt" in error.action


def test_a_run_with_wandb_where_it_is_not_installed_is_refused(model_folder, random_corpus, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    assert_wandb_refused(model_folder, random_corpus)


def test_a_folder_of_earlier_wandb_runs_is_not_taken_for_the_package(
    model_folder, random_corpus, tmp_path, monkeypatch
):
    (tmp_path / "wandb").mkdir()
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    # Only this folder is searched, so that an installed wandb is not found.
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert_wandb_refused(model_folder, random_corpus)
