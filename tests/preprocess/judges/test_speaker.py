"""Voices: a clip of someone else under a speaker's name is dropped with its similarity; a speaker's own stay."""

import base64
import json
import multiprocessing
import re

import numpy as np
import pytest
import threadpoolctl

from launch import show
from launch.demo.arabic_speech import SENTENCES, VOICES, save_speech
from preprocess.audio.decode import Audio, decode
from preprocess.corpus.shards import Corpus
from preprocess.finish.speaker_outliers import speaker_similarities
from preprocess.judges.speaker import embed_voice, load_encoder
from tests.preprocess.helpers import assert_parts, folder_bytes, row_failure, shard, write_jsonl

# The longest five sentences, so that each is spoken in two seconds or more.
LONG = sorted(SENTENCES, key=len)[-5:]
THRESHOLD = 0.75


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """(folder, rows): five clips of a woman and five of a man, then two of the man's under her name, one of them too
    short to tell; and a row that names the longer one as its reference."""
    folder = tmp_path_factory.mktemp("voices")
    (_, salma, *_), (_, omar, *_) = VOICES[:2]
    clips = [(f"salma{n}", salma, text, "salma") for n, text in enumerate(LONG)]
    clips += [(f"omar{n}", omar, text, "omar") for n, text in enumerate(LONG)]
    clips += [("stranger", omar, LONG[0] + LONG[1], "salma"), ("short", omar, "نعم، من فضلك", "salma")]
    save_speech([(str(folder / f"{name}.wav"), text, voice, 170, 50) for name, voice, text, _ in clips])
    rows = [{"audio": f"{name}.wav", "text": text, "speaker": speaker} for name, _, text, speaker in clips]
    rows.append({**rows[0], "reference_audio": "stranger.wav", "reference_text": LONG[0] + LONG[1]})
    return folder, rows


@pytest.fixture(scope="module")
def given(recordings, tmp_path_factory, model_folder, codec_folder, hubert_folder):
    """The command's flags, but --out and --workers."""
    folder, rows = recordings
    recipe = tmp_path_factory.mktemp("recipe") / "voices.yaml"
    recipe.write_text(f"min_speaker_similarity: {THRESHOLD}")
    tools = {"model": model_folder, "audio_tokenizer": codec_folder, "hubert": hubert_folder}
    manifest = write_jsonl(folder / "m.jsonl", rows)
    return {"manifest": manifest, "screening": recipe, "val_speakers": 0, "hours_per_shard": 0.002, **tools}


@pytest.fixture(scope="module")
def out(tmp_path_factory, given):
    folder = tmp_path_factory.mktemp("voices_out") / "out"
    assert shard(out=folder, workers=1, **given) == 0
    return folder


def by_source(corpus):
    return {corpus.meta(row)["source"]: entry for row, entry in enumerate(corpus.index.to_pylist())}


def test_a_clip_of_someone_else_is_dropped_and_told_with_its_similarity(out, recordings):
    corpus = Corpus(out)
    index = by_source(corpus)
    stranger = index.pop("stranger.wav")
    assert (stranger["use"], stranger["reason"]) == (False, "other_voice")
    assert stranger["speaker_similarity"] < THRESHOLD
    assert all(entry["use"] and entry["reason"] is None for entry in index.values())
    short = index.pop("short.wav")
    assert short["speaker_similarity"] is None, "too short to tell whose it is"
    assert min(entry["speaker_similarity"] for entry in index.values()) > 0.85

    line = [row["audio"] for row in recordings[1]].index("stranger.wav") + 1
    record = row_failure(out, line)
    assert (record["status"], record["reason"]) == ("screened", "other_voice")
    found = f"similarity to the speaker's other clips is {stranger['speaker_similarity']:.2f}"
    assert_parts(record, "stranger.wav", found, "at least 0.75 (min_speaker_similarity)", "is it this speaker?")
    assert row_failure(out, len(recordings[1]))["reason"] == "reference_other_voice"

    assert corpus.info["rows"] == {"written": 11, "merged": 0, "screened": 2, "failed": 0}
    assert corpus.info["clips"] == {"written": 12, "screened": 0, "failed": 0}
    assert corpus.info["lost_hours"] == {"other_voice": pytest.approx(stranger["duration_sec"] / 3600, abs=1e-5)}
    assert len(corpus.info["shards"]) > 2, "her clips lie in several shards"
    assert corpus.info["pins"].keys() >= {"resemblyzer", "webrtcvad-wheels", "silero-vad"}, "voices depend on them"


def test_show_tells_it_of_a_clip(out, tmp_path, capsys):
    stranger = by_source(Corpus(out))["stranger.wav"]
    assert show.main([str(out), stranger["key"], "--audio", str(tmp_path / "x.flac")]) == 0
    assert f"not used: other_voice (voice {stranger['speaker_similarity']:.2f})" in capsys.readouterr().out
    assert show.main([str(out)]) == 0
    assert len(re.findall(r"  used \(voice 0\.\d\d\)  ", capsys.readouterr().out)) == 10


def test_the_report_shows_similarities_and_what_was_dropped(out):
    page = (out / "report.html").read_text()
    assert "Voice, to the speaker&#x27;s others" in page or "Voice, to the speaker's others" in page
    assert "other_voice" in page
    assert "stranger.wav" in page


def test_same_bytes_with_four_workers_and_with_codes_that_are_reused(out, tmp_path, given):
    assert shard(out=tmp_path / "four", workers=4, **given) == 0
    assert folder_bytes(tmp_path / "four") == folder_bytes(out)
    assert shard(out=tmp_path / "reused", workers=1, reuse=out, **given) == 0
    assert folder_bytes(tmp_path / "reused") == folder_bytes(out)


def test_a_clean_corpus_loses_nothing_and_without_the_option_nothing_is_measured(out, tmp_path, recordings, given):
    folder, rows = recordings
    given = {**given, "manifest": write_jsonl(folder / "clean.jsonl", rows[:10]), "workers": 1, "reuse": out}
    assert shard(out=tmp_path / "clean", **given) == 0
    corpus = Corpus(tmp_path / "clean")
    assert corpus.info["rows"] == {"written": 10, "merged": 0, "screened": 0, "failed": 0}
    assert corpus.index.column("speaker_similarity").null_count == 0
    del given["screening"]
    assert shard(out=tmp_path / "off", **given) == 0
    assert Corpus(tmp_path / "off").index.column("speaker_similarity").null_count == 10
    fragments = [json.loads(path.read_text()) for path in (tmp_path / "off/fragments").glob("*.json")]
    assert sum(len(fragment["rows"]) for fragment in fragments) == 10
    assert not any("voice" in row for fragment in fragments for row in fragment["rows"])


def voice(*values):
    whole = np.zeros(256)
    whole[: len(values)] = values
    return base64.b64encode(np.round(whole * 255).astype(np.uint8).tobytes()).decode()


def test_strangers_do_not_vouch_for_one_another():
    """8 of 20 clips: the mean of all is at 0.85 to them, that of her own clips at 0.6."""
    own = {f"a{n}": {"speaker": "a", "voice": voice(1.0)} for n in range(12)}
    others = {f"b{n}": {"speaker": "a", "voice": voice(0.6, 0.8)} for n in range(8)}
    similarities = speaker_similarities(own | others, 0.87)
    assert [similarities[key] for key in own] == [1.0] * 12
    assert [similarities[key] for key in others] == pytest.approx([0.6] * 8, abs=0.005)


def test_a_clip_does_not_vouch_for_itself_and_few_clips_are_no_voice():
    own = {f"a{n}": {"speaker": "a", "voice": voice(1.0)} for n in range(4)}
    one = {"b": {"speaker": "a", "voice": voice(0.0, 1.0)}}
    assert speaker_similarities(own | one, 0.0) == {"a0": 0.9487, "a1": 0.9487, "a2": 0.9487, "a3": 0.9487, "b": 0.0}
    assert speaker_similarities(own, 0.0) == {}
    assert speaker_similarities(own | {"b": {"speaker": "b", "voice": voice(1.0)}}, 0.0) == {}
    assert speaker_similarities(own | {"short": {"speaker": "a", "voice": None}}, 0.0) == {}


def test_the_voice_of_a_clip_is_the_same_each_time_and_silence_has_none(recordings):
    folder, _ = recordings
    audio = decode(folder / "salma4.wav")
    first = embed_voice(audio)
    assert len(base64.b64decode(first)) == 256
    embed_voice(decode(folder / "omar4.wav"))
    assert embed_voice(audio) == first
    assert embed_voice(Audio(np.zeros(5 * 24000, np.float32), 24000, "")) is None
    assert embed_voice(Audio(audio.waveform[: audio.sample_rate_hz], audio.sample_rate_hz, "")) is None


def blas_threads():
    return {library["num_threads"] for library in threadpoolctl.threadpool_info() if library["user_api"] == "blas"}


def test_workers_multiply_with_one_thread_each():
    load_encoder()
    with threadpoolctl.threadpool_limits(2, "blas"):
        assert blas_threads() == {2}
        load_encoder.cache_clear()
        load_encoder()
        with multiprocessing.get_context("fork").Pool(1) as pool:
            assert blas_threads() == pool.apply(blas_threads) == {1}
