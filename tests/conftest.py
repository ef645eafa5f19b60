"""Session fixtures: each tiny folder is built once and shared by all tests. Tests never write into them."""

import gc
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)

# The same examples in every run: a new one is no fault of the change that meets it. `make fuzz` draws others.
settings.register_profile("fixed", derandomize=True)
settings.register_profile("fuzz", print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))


@pytest.fixture(scope="module", autouse=True)
def _return_memory():
    """After each file of tests: else a worker of pytest keeps up to 10 GB that glibc has not given back."""
    from preprocess.codec.freed_memory import trim_memory

    yield
    gc.collect()
    trim_memory()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A tiny model of 8 codebooks x 1,024, DualFFN in layers 0 and 2 of 4."""
    from launch.demo.small_model import build_model

    return build_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def other_model_folder(tmp_path_factory):
    """Another shape: 4 codebooks x 64, DualFFN in every layer, plain dual_ffn adapter."""
    from launch.demo.small_model import build_model

    return build_model(
        tmp_path_factory.mktemp("other_model"),
        num_codebooks=4,
        codebook_size=64,
        hidden_size=64,
        num_layers=3,
        dual_ffn_layers=(0, 1, 2),
        adapter_type="dual_ffn",
        seed=1,
    )


@pytest.fixture(scope="session")
def random_corpus(tmp_path_factory, model_folder):
    """Random codes for `model_folder`: 4 speakers of 6 clips, the last one the validation split."""
    from tests.fixtures.corpus import write_random_corpus

    return write_random_corpus(tmp_path_factory.mktemp("random_corpus"), model_folder)


@pytest.fixture(scope="session")
def other_random_corpus(tmp_path_factory, other_model_folder):
    """Random codes for `other_model_folder`."""
    from tests.fixtures.corpus import write_random_corpus

    folder = tmp_path_factory.mktemp("other_random_corpus")
    return write_random_corpus(folder, other_model_folder, num_codebooks=4, codebook_size=64, seed=3)


@pytest.fixture(scope="session")
def one_rank():
    """One warm process in a gloo group of its own."""
    from tests.fixtures.ranks import Ranks

    ranks = Ranks(1)
    yield ranks
    ranks.close()


@pytest.fixture(scope="session")
def two_ranks():
    """Two warm processes in one gloo group."""
    from tests.fixtures.ranks import Ranks

    ranks = Ranks(2)
    yield ranks
    ranks.close()


@pytest.fixture(scope="session")
def hubert_folder(tmp_path_factory):
    """The HuBERT of `codec_folder`."""
    from launch.demo.small_codec import build_hubert

    return build_hubert(tmp_path_factory.mktemp("hubert"))


@pytest.fixture(scope="session")
def codec_folder(tmp_path_factory, hubert_folder):
    """A tiny codec that fits `model_folder`: 8 codebooks x 1,024 codes, 25 frames a second, 24 kHz."""
    from launch.demo.small_codec import build_codec

    return build_codec(tmp_path_factory.mktemp("codec"), hubert_folder)


@pytest.fixture(scope="session")
def speech_folder(tmp_path_factory):
    """Arabic speech: corpus.jsonl and WAV files, 4 voices with 4 sentences each, some 40 s."""
    from launch.demo.arabic_speech import build_arabic_corpus

    folder = tmp_path_factory.mktemp("speech")
    build_arabic_corpus(folder, voices=4, sentences=4)
    return folder


@pytest.fixture(scope="session")
def speech_corpus(tmp_path_factory, speech_folder, model_folder, codec_folder, hubert_folder):
    """The folder that preprocess.shard writes for `speech_folder`: two shards, one voice held out."""
    from preprocess.shard import main

    out = tmp_path_factory.mktemp("speech_corpus") / "shards"
    flags = {"model": model_folder, "audio-tokenizer": codec_folder, "hubert": hubert_folder, "out": out}
    flags |= {"manifest": speech_folder / "corpus.jsonl", "workers": 1, "hours-per-shard": 0.006}
    assert main([text for name, value in flags.items() for text in (f"--{name}", str(value))]) == 0
    return out


@pytest.fixture(scope="session")
def short_folder(tmp_path_factory, speech_folder):
    """Quick to encode: corpus.jsonl and WAV files of 0.8 s, 4 voices with 2 clips each."""
    import json

    import soundfile

    folder = tmp_path_factory.mktemp("short")
    rows = [json.loads(line) for line in (speech_folder / "corpus.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["audio"].endswith(("000.wav", "001.wav"))]
    for row in rows:
        (folder / row["audio"]).parent.mkdir(exist_ok=True)
        samples, rate_hz = soundfile.read(speech_folder / row["audio"], start=3000, frames=17640)
        soundfile.write(folder / row["audio"], samples, rate_hz)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    (folder / "corpus.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def speech_index():
    """The index of 100,000 speech-like clips by 2,000 speakers."""
    from tests.fixtures.index import build_speech_index

    return build_speech_index()


@pytest.fixture(scope="session")
def telling(tmp_path_factory, model_folder, codec_folder, hubert_folder):
    """(corpus folder, rows) of five clips that can't be told apart without the whole prompt."""
    from preprocess.shard import main
    from tests.fixtures.telling import build_telling

    folder = tmp_path_factory.mktemp("telling")
    manifest, rows = build_telling(folder / "audio")
    flags = {"manifest": manifest, "model": model_folder, "audio-tokenizer": codec_folder, "hubert": hubert_folder}
    flags |= {"out": folder / "shards", "workers": 1}
    assert main([text for name, value in flags.items() for text in (f"--{name}", str(value))]) == 0
    return folder / "shards", rows
