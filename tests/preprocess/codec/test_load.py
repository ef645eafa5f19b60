"""Codes in shards are Boson's, for every kind of file; the codec opens offline or says why not."""

import gc
import io
import json
import os
import pickle  # noqa: S403 - to write what must not be read
import shutil

import numpy as np
import pytest
import soundfile
import torch
from boson_multimodal.audio_processing import higgs_audio_tokenizer as boson
from boson_multimodal.serve.serve_engine import HiggsAudioServeEngine
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.demo.small_codec import build_codec, build_hubert
from preprocess.audio.decode import decode
from preprocess.codec.load import encode_waveform, hubert_from, load_codec
from preprocess.common.errors import InputError
from preprocess.corpus.shards import Corpus
from tests.fixtures.codec import code_entropy_bits
from tests.fixtures.speech import save_variant
from tests.fixtures.strange import made_strange, used_or_refused
from tests.preprocess.helpers import assert_parts, shard, write_jsonl

# File name -> how it is saved. The MP3's rate and channels, and a WAV under another name, are part of the point.
VARIANTS = {
    "plain.wav": {},
    "lossless.flac": {},
    "lossy.mp3": {},
    "stereo.wav": {"channels": 2},
    "stereo_44k.mp3": {"channels": 2, "sample_rate_hz": 44100},
    "telephone_8k.wav": {"sample_rate_hz": 8000},
    "cd_44k.flac": {"sample_rate_hz": 44100},
    "studio_48k.wav": {"sample_rate_hz": 48000},
    "codec_rate_24k.wav": {"sample_rate_hz": 24000},
    "six_channels.wav": {"channels": 6},
}


@pytest.fixture(autouse=True)
def _collect_codecs():
    """An error's traceback holds a codec of 0.3 GB in a cycle, of which Python counts the few objects alone."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def boson_codec(codec_folder, hubert_folder):
    """Boson's tokenizer as Boson's loader gives it: nothing of ours but the place of HuBERT."""
    with hubert_from(hubert_folder):
        return boson.load_higgs_audio_tokenizer(str(codec_folder), device="cpu")


@pytest.fixture(scope="module")
def variants(tmp_path_factory, speech_folder, model_folder, codec_folder, hubert_folder):
    """A corpus of the same sentence saved in many ways, and where its files lie."""
    folder = tmp_path_factory.mktemp("variants")
    samples, rate_hz = soundfile.read(speech_folder / "salma/000.wav", frames=30000)
    soundfile.write(folder / "source.wav", samples, rate_hz)
    for name, how in VARIANTS.items():
        save_variant(folder / "source.wav", folder / name, **how)
    rows = [{"audio": name, "text": "صباح الخير", "speaker": "salma"} for name in VARIANTS]
    manifest = write_jsonl(folder / "corpus.jsonl", rows)
    tools = {"model": model_folder, "audio_tokenizer": codec_folder, "hubert": hubert_folder}
    assert shard(manifest=manifest, out=folder / "out", workers=1, **tools) == 0
    return Corpus(folder / "out"), folder


@pytest.mark.parametrize("name", VARIANTS)
def test_codes_in_the_shard_equal_boson_encode_of_the_file(name, variants, boson_codec):
    corpus, folder = variants
    sources = [corpus.clip(row).meta["source"] for row in range(corpus.index.num_rows)]
    codes = corpus.clip(sources.index(name)).codes
    expected = boson_codec.encode(str(folder / name)).numpy()
    assert codes.dtype == np.uint16
    assert np.array_equal(codes, expected)


def test_codes_equal_boson_encode_at_every_length(boson_codec, codec_folder, hubert_folder):
    """Lengths round a frame's border: some need Boson's padding, some its trimming, some neither."""
    codec, facts = load_codec(codec_folder, hubert_folder)
    hop = round(facts.sample_rate_hz / facts.frame_rate_hz)
    noise = np.random.default_rng(0).normal(0, 0.1, 20 * hop).astype(np.float32)
    runs = []
    boson_codec.encoder.register_forward_hook(lambda *_: runs.append(1))
    for num_samples in range(14 * hop, 15 * hop + 1, hop // 6):
        wave = noise[:num_samples]
        expected = boson_codec.encode(wave, facts.sample_rate_hz).numpy()
        assert np.array_equal(encode_waveform(codec, wave, facts.sample_rate_hz), expected), num_samples
    assert 7 < len(runs) < 14, "the lengths should cover both of Boson's ways"


def test_codes_on_speech_are_varied(speech_corpus):
    """Some 40 s of Arabic: the fixture's codes have more than 8 bits a codebook, so equal codes prove something."""
    corpus = Corpus(speech_corpus)
    codes = np.concatenate([corpus.clip(row).codes for row in range(corpus.index.num_rows)], axis=1)
    entropies = code_entropy_bits(codes)
    print("entropy of each codebook, bits:", [round(bits, 2) for bits in entropies])
    assert min(entropies) > 8.0
    assert codes.shape[0] == 8
    assert codes.shape[1] > 800


def test_two_codecs_of_different_shape_in_one_process(tmp_path, codec_folder, hubert_folder, speech_folder):
    other_folder = build_codec(
        tmp_path / "codec",
        build_hubert(tmp_path / "hubert", seed=3),
        num_codebooks=5,
        codebook_size=300,
        ratios=(8, 5, 4, 2),
        sample_rate_hz=16000,
        dimension=32,
        seed=3,
    )
    other, facts = load_codec(other_folder, tmp_path / "hubert")
    assert (facts.num_codebooks, facts.codebook_size) == (5, 300)
    assert (facts.frame_rate_hz, facts.sample_rate_hz) == (50.0, 16000)
    path = speech_folder / "omar/000.wav"
    audio = decode(path)
    with hubert_from(tmp_path / "hubert"):
        expected = boson.load_higgs_audio_tokenizer(str(other_folder), device="cpu").encode(str(path)).numpy()
    codes = encode_waveform(other, audio.waveform, audio.sample_rate_hz)
    assert np.array_equal(codes, expected)
    assert min(code_entropy_bits(codes)) > 5.0

    first, first_facts = load_codec(codec_folder, hubert_folder)
    assert encode_waveform(first, audio.waveform, audio.sample_rate_hz).shape[0] == first_facts.num_codebooks == 8
    assert first_facts.fingerprint != facts.fingerprint


def test_the_fingerprint_is_that_of_what_decides_and_not_of_how_a_file_is_written(
    tmp_path, codec_folder, hubert_folder
):
    """A layer norm that adds more is another HuBERT, a line end is not."""
    fingerprints = [load_codec(codec_folder, hubert_folder)[1].fingerprint]
    for number, change in enumerate([lambda text: text + "\n", lambda text: text.replace("1e-05", "1e-04")]):
        hubert = shutil.copytree(hubert_folder, tmp_path / str(number))
        text = (hubert / "config.json").read_text()
        (hubert / "config.json").write_text(change(text))
        assert (hubert / "config.json").read_text() != text
        fingerprints.append(load_codec(codec_folder, hubert)[1].fingerprint)
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


def test_serve_engine_opens_and_boson_is_left_as_it_was(model_folder, codec_folder, hubert_folder):
    before = boson.AutoModel
    with hubert_from(hubert_folder):
        engine = HiggsAudioServeEngine(str(model_folder), str(codec_folder), device="cpu", kv_cache_lengths=[64])
    assert engine.audio_tokenizer.sampling_rate == 24000
    assert boson.AutoModel is before
    with pytest.raises(KeyError), hubert_from(hubert_folder):
        raise KeyError
    assert boson.AutoModel is before


def test_a_hubert_that_brings_code_is_refused(tmp_path, codec_folder, hubert_folder):
    shutil.copytree(hubert_folder, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "evil.Model"}}))
    with pytest.raises(InputError) as caught:
        load_codec(codec_folder, tmp_path)
    assert_parts(caught.value, str(tmp_path), "auto_map", "no code of its own", "take auto_map out")


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("config.json", {"configuration_files": ["../other/config.4.0.0.json"]}, "configuration_files = "),
        ("adapter_config.json", {"base_model_name_or_path": "../other"}, "adapter_config.json"),
        ("model.safetensors.index.json", {"weight_map": {"x": "../other/model.safetensors"}}, "index of several"),
    ],
)
def test_a_hubert_that_names_other_files_is_refused(name, content, found, tmp_path, codec_folder, hubert_folder):
    """transformers would read those in place of the folder's."""
    folder = shutil.copytree(hubert_folder, tmp_path / "hubert")
    before = json.loads((folder / name).read_text()) if name == "config.json" else {}
    (folder / name).write_text(json.dumps({**before, **content}))
    if "index" in name:
        (folder / "model.safetensors").unlink()
    with pytest.raises(InputError) as caught:
        load_codec(codec_folder, folder)
    assert_parts(caught.value, str(folder), found, "", "hf download")


@pytest.mark.parametrize(("kind", "found"), [("codec", "no such folder"), ("hubert", "no such folder")])
def test_a_missing_folder_is_named_with_the_download_command(kind, found, tmp_path, codec_folder, hubert_folder):
    folders = {"codec": codec_folder, "hubert": hubert_folder, kind: tmp_path / "nowhere"}
    with pytest.raises(InputError) as caught:
        load_codec(folders["codec"], folders["hubert"])
    assert_parts(
        caught.value, str(tmp_path / "nowhere"), found, f"a {kind}".replace("hubert", "HuBERT"), "hf download"
    )


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", "broken JSON (Expecting value"),
        (b"\x80", "broken JSON ('utf-8' codec"),
        (b"[" * 10_000, "broken JSON (maximum recursion depth"),
        (b"[]", "JSON of type list, not an object"),
    ],
)
@pytest.mark.parametrize("kind", ["codec", "hubert"])
def test_a_config_that_is_no_json_object_is_refused(kind, data, found, tmp_path, codec_folder, hubert_folder):
    folders = {"codec": codec_folder, "hubert": hubert_folder}
    folders[kind] = shutil.copytree(folders[kind], tmp_path / kind)
    path = tmp_path / kind / "config.json"
    path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        load_codec(folders["codec"], folders["hubert"])
    assert_parts(caught.value, str(path), found, "config.json of a", "hf download")


@pytest.mark.parametrize(
    ("kind", "values", "found"),
    [
        ("codec", {"sample_rate": -1, "bins": [1024], "n_q": "8"}, "bins = [1024] (Input should be a valid integer)"),
        ("codec", {"sample_rate": -1}, "sample_rate = -1 (Input should be greater than"),
        ("codec", {"ratios": [0]}, "ratios.0 = 0 (Input should be greater than"),
        ("codec", {"ratios": 7}, "ratios = 7 (Input should be a valid list)"),
        ("codec", {"n_q": 60_000}, "n_q = 60000"),
        ("codec", {"D": 60_000}, "D = 60000"),
        ("codec", {"sample_rate": 10**9}, "sample_rate = 1000000000"),
        ("codec", {"no_such": 1}, "Boson's loader refuses ("),
        ("hubert", {"hidden_size": "x"}, "hidden_size = 'x' (Input should be a valid integer)"),
        ("hubert", {"num_hidden_layers": None}, "num_hidden_layers = None (Input should be a valid integer)"),
        ("hubert", {"num_hidden_layers": 60_000}, "num_hidden_layers = 60000"),
        ("hubert", {"conv_stride": "../../x"}, "conv_stride = '../../x' (Input should be a valid list)"),
        ("hubert", {"hidden_dropout": float("nan")}, "hidden_dropout = nan"),
        ("hubert", {"num_attention_heads": 7}, "refuses ("),
        ("hubert", {"hidden_act": "no"}, "transformers refuses (KeyError: 'no')"),
        ("hubert", {"torch_dtype": "no"}, "transformers refuses (AttributeError: module 'torch'"),
        *(("hubert", {"layer_norm_eps": eps}, f"layer_norm_eps = {eps}") for eps in (float("nan"), -1.0, 0.0, 1e30)),
        ("hubert", {"num_labels": 3_000_000}, "num_labels = 3000000"),
        ("hubert", {"pruned_heads": {"0": [0]}}, "pruned_heads = "),
        ("hubert", {"quantization_config": {"quant_method": "gptq"}}, "quantization_config = "),
        ("hubert", {"model_type": ["hubert"]}, "model_type ['hubert']"),
    ],
)
def test_values_that_make_no_codec_are_refused(kind, values, found, tmp_path, codec_folder, hubert_folder):
    folders = {"codec": codec_folder, "hubert": hubert_folder}
    folders[kind] = shutil.copytree(folders[kind], tmp_path / kind)
    path = tmp_path / kind / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    with pytest.raises(InputError) as caught:
        load_codec(folders["codec"], folders["hubert"])
    assert_parts(caught.value, str(tmp_path / kind), found, "", "hf download")


class Trace:
    """Unpickling it leaves a trace."""

    def __reduce__(self):
        return exec, ("import os; os.environ['UNPICKLED'] = 'yes'",)


def _saved(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


STRANGE_FILES = {
    "a pickle that runs": (_saved({"weight": Trace()}), "a pickle of other things"),
    "a plain pickle": (pickle.dumps(Trace()), "a pickle of other things"),
    "a list": (_saved([torch.ones(2)]), "a list with other things"),
    "a number": (_saved({"weight": 1}), "a dict with other things"),
    "nothing": (b"", "no file of weights ("),
    "half a zip": (b"PK" + bytes(60), "a pickle of other things"),
    "NaN": (_saved({"a": torch.ones(2), "b": torch.tensor([1.0, float("nan")])}), "NaN or infinity in b"),
    "infinity": (_saved({"a": torch.tensor([float("-inf")], dtype=torch.bfloat16)}), "NaN or infinity in a"),
}


@pytest.mark.parametrize("case", STRANGE_FILES)
@pytest.mark.parametrize("kind", ["codec", "hubert"])
def test_weights_that_are_no_finite_tensors_are_refused_and_nothing_is_unpickled(
    kind, case, tmp_path, codec_folder, hubert_folder
):
    folders = {"codec": codec_folder, "hubert": hubert_folder}
    data, found = STRANGE_FILES[case]
    shutil.copy(folders[kind] / "config.json", tmp_path)
    path = tmp_path / ("model.pth" if kind == "codec" else "pytorch_model.bin")
    path.write_bytes(data)
    folders[kind] = tmp_path
    with pytest.raises(InputError) as caught:
        load_codec(folders["codec"], folders["hubert"])
    assert_parts(caught.value, str(path), found, "", "hf download")
    assert "weights_only" not in str(caught.value)
    assert "UNPICKLED" not in os.environ


@given(data=st.data())
@settings(deadline=None, max_examples=8)
def test_a_strange_config_ends_in_no_traceback(data, codec_folder, hubert_folder, tmp_path_factory):
    kind = data.draw(st.sampled_from(["codec", "hubert"]))
    folders = {"codec": codec_folder, "hubert": hubert_folder}
    folder = tmp_path_factory.mktemp("strange")
    for path in folders[kind].iterdir():
        (folder / path.name).symlink_to(path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(data.draw(made_strange(config))))
    folders[kind] = folder
    loaded = used_or_refused(lambda: load_codec(folders["codec"], folders["hubert"]))
    if not isinstance(loaded, InputError):
        codec, facts = loaded
        rate_hz = facts.sample_rate_hz
        codes = used_or_refused(lambda: encode_waveform(codec, np.zeros(rate_hz, np.float32), rate_hz))
        assert isinstance(codes, InputError) or (
            len(codes) == facts.num_codebooks and codes.max() < facts.codebook_size
        )


def test_hubert_without_weights_is_refused(tmp_path, codec_folder, hubert_folder):
    shutil.copy(hubert_folder / "config.json", tmp_path)
    with pytest.raises(InputError) as caught:
        load_codec(codec_folder, tmp_path)
    assert_parts(caught.value, str(tmp_path), "no weights", "model.safetensors", "--hubert")


def test_codec_weights_that_do_not_match_the_config_are_refused(tmp_path, codec_folder, hubert_folder):
    """Boson's loader takes both without a word, and leaves random weights behind."""
    shutil.copy(codec_folder / "config.json", tmp_path)
    state = torch.load(codec_folder / "model.pth", weights_only=True)
    state["fc_prior.wait"] = state.pop("fc_prior.weight")
    torch.save(state, tmp_path / "model.pth")
    with pytest.raises(InputError) as caught:
        load_codec(tmp_path, hubert_folder)
    assert_parts(
        caught.value,
        "model.pth",
        "no fc_prior.weight",
        "all weights that config.json describes",
        "Download the codec",
    )


def test_codec_without_semantic_weights_takes_them_from_hubert(tmp_path, codec_folder, hubert_folder):
    shutil.copy(codec_folder / "config.json", tmp_path)
    state = torch.load(codec_folder / "model.pth", weights_only=True)
    kept = {name: value for name, value in state.items() if not name.startswith("semantic_model.")}
    assert len(kept) < len(state)
    torch.save(kept, tmp_path / "model.pth")
    codec, _ = load_codec(tmp_path, hubert_folder)
    whole, _ = load_codec(codec_folder, hubert_folder)
    noise = np.random.default_rng(0).normal(0, 0.1, 24000).astype(np.float32)
    assert np.array_equal(encode_waveform(codec, noise, 24000), encode_waveform(whole, noise, 24000))
