"""Human speech end to end: Debian's telephone prompts, English and Spanish, become shards. Skipped where missing."""

import shutil
from collections import Counter

import numpy as np
import pytest

from preprocess import verify
from preprocess.audio.decode import decode
from preprocess.corpus.base_model import read_base_model
from preprocess.corpus.dialogue import DEFAULT_SYSTEM_TEXT
from preprocess.corpus.shards import QUALITY, Corpus
from preprocess.judges.voice_activity import speech_share
from preprocess.manifest.read import read_manifest
from preprocess.plan.clips import build_clips
from tests.fixtures.asterisk import INSTALL, prompts, write_corpus
from tests.fixtures.dialects import as_dialects
from tests.preprocess.helpers import failures, flags, shard

pytestmark = pytest.mark.long
NUM_PROMPTS = 60


@pytest.fixture(scope="module")
def found():
    """All English and Spanish prompts."""
    found = [prompt for prompt in prompts() if prompt[1]["language"] in ("en", "es")]
    if {row["language"] for _, row in found} != {"en", "es"} or not shutil.which("ffmpeg"):
        pytest.skip(f"no human speech here: {INSTALL}")
    return found


@pytest.fixture(scope="module")
def chosen(found):
    """60 of them, every so many in the order of their names, and the longest."""
    longest = max(found, key=lambda prompt: prompt[0].stat().st_size)
    others = [prompt for prompt in found if prompt is not longest]
    return [*others[:: len(others) // (NUM_PROMPTS - 1)][: NUM_PROMPTS - 1], longest]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, chosen):
    folder = tmp_path_factory.mktemp("human")
    write_corpus(folder, chosen)
    return folder


@pytest.fixture(scope="module")
def tools(codec_folder, hubert_folder):
    return {"audio_tokenizer": codec_folder, "hubert": hubert_folder}


@pytest.fixture(scope="module")
def corpus(folder, model_folder, tools):
    out = folder / "shards"
    given = {"manifest": folder / "corpus.jsonl", "model": model_folder, **tools}
    assert shard(out=out, workers=2, hours_per_shard=0.01, val_speakers=0, **given) == 0
    return Corpus(out)


def test_every_dialect_gives_the_same_clips(folder, chosen, model_folder):
    """Sources, texts, speakers and keys, of CSV, TSV, JSON, Parquet, NeMo, lhotse, Kaldi and published ChatML."""
    rows = [{name: row[name] for name in ("audio", "text", "speaker")} for _, row in chosen]
    specials = read_base_model(model_folder).special_tokens
    clips = {}
    for dialect, path in as_dialects(folder, rows).items():
        manifest = read_manifest(path, specials, DEFAULT_SYSTEM_TEXT)
        assert not manifest.rejected, dialect
        table = build_clips(manifest, folder)
        clips[dialect] = {key: (clip.source, clip.text, clip.speaker) for key, clip in table.clips.items()}
    assert len(clips["JSONL"]) == len(chosen)
    for dialect, found in clips.items():
        assert found == clips["JSONL"], dialect


def test_hardly_a_prompt_is_dropped_by_the_defaults_and_both_accounts_balance(corpus, chosen):
    """What is longer than 30 s, or is a letter spoken in less than half a second."""
    rows, clips = corpus.info["rows"], corpus.info["clips"]
    assert sum(rows.values()) == len(chosen) == NUM_PROMPTS
    assert (rows["failed"], clips["failed"]) == (0, 0)
    dropped = Counter(record["reason"] for record in failures(corpus.folder) if record["line"])
    assert dropped["too_long"] >= 1
    assert dropped.keys() <= {"too_long", "too_short", "duplicate", "two_transcripts"}
    assert dropped["too_long"] + dropped["too_short"] <= 3
    assert rows["written"] + sum(dropped.values()) == NUM_PROMPTS
    assert clips["written"] == corpus.index.num_rows == NUM_PROMPTS - dropped["too_long"] - dropped["too_short"]
    hours = sum(corpus.index.column("duration_sec").to_pylist()) / 3600
    assert corpus.info["hours"] == pytest.approx(hours, abs=1e-6)


def test_codes_are_those_of_bosons_encode(corpus, folder, tools, capsys):
    """Its own encode, of each file by its path, with none of our faster paths."""
    argv = flags(clips=NUM_PROMPTS // 2, audio_root=folder, **tools)
    assert verify.main([str(corpus.folder), *argv]) == 0
    said = capsys.readouterr().out
    assert "equal codes, by codebook: " + ", ".join(["100.0000%"] * 8) in said
    assert f"{NUM_PROMPTS // 2} clips tried, 0 problems" in said


def test_figures_of_human_speech_are_plausible(corpus):
    figures = {name: corpus.index.column(name).to_numpy() for name in QUALITY}
    assert -30 < figures["rms_dbfs"].min() < figures["rms_dbfs"].max() < -8
    assert figures["bandwidth_hz"].min() > 3000
    assert np.median(figures["bandwidth_hz"]) > 7000, "files of 16 kHz"
    assert figures["clipped_share"].max() < 0.001
    assert figures["silence_share"].max() < 0.5
    assert max(figures[f"{end}_silence_sec"].max() for end in ("leading", "trailing")) < 2
    assert figures["code_entropy_bits"].min() > 2
    assert 0.06 < corpus.info["speech"]["sec_per_letter"] < 0.15
    assert corpus.info["speech"]["reference_sec"][0] >= 0.5


def test_speech_is_heard_in_the_shortest_words(tmp_path, found):
    """Silero-vad hears it in each that is more than one letter; cold, it misses "at"."""
    words = [prompt for prompt in found if "letters" not in prompt[0].parts and prompt[0].stat().st_size > 4000]
    words = sorted(words, key=lambda prompt: prompt[0].stat().st_size)[:150]
    write_corpus(tmp_path, words)
    shares = {row["audio"]: speech_share(decode(tmp_path / row["audio"])) for _, row in words}
    assert min(shares.values()) > 0.3, sorted(shares.items(), key=lambda item: item[1])[:3]
    assert np.median(list(shares.values())) > 0.8
