"""Screening: each filter drops what it is there for, says the value, and lets good speech pass."""

import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from launch.demo.arabic_speech import save_speech
from preprocess.audio.decode import Audio, decode
from preprocess.common.errors import InputError, Rejected
from preprocess.corpus.shards import QUALITY, Corpus
from preprocess.judges.figures import audio_figures, bandwidth_hz, code_entropy_bits, text_figures
from preprocess.judges.voice_activity import speech_share
from preprocess.plan.screening import (
    Screening,
    claims_arabic,
    describe_thresholds,
    load_screening,
    screen_figures,
    screening_warning,
)
from tests.preprocess.helpers import assert_parts, failures, refused, row_failure, shard, write_jsonl

RATE_HZ = 22050
ARABIC = Path(__file__).parents[3] / "launch/recipes/screening_arabic.yaml"
TEXT = "صباح الخير، كيف حالك اليوم؟"


def quiet(samples):
    return samples * 0.003


def loud(samples):
    return np.clip(samples * 100, -0.98, 0.98)


def clipped(samples):
    return np.clip(samples * 4, -1, 1)


def silence_before(samples):
    return np.concatenate([np.zeros(3 * RATE_HZ), samples])


def silence_after(samples):
    return np.concatenate([samples, np.zeros(3 * RATE_HZ)])


def silence_between(samples):
    return np.concatenate([samples, np.zeros(16 * RATE_HZ), samples])


def telephone(samples):
    return soxr.resample(soxr.resample(samples, RATE_HZ, 8000), 8000, RATE_HZ)


def noise(samples):
    return np.random.default_rng(0).normal(size=len(samples)) * 0.05


def a_speaker_on_each_channel(samples):
    return np.stack([samples, np.roll(samples, len(samples) // 2)], axis=1)


def as_it_is(samples):
    return samples


# name, what is done to good speech, its transcript, the reason it is dropped for, and part of what is said
ROWS = [
    ("good", as_it_is, TEXT, None, None),
    ("quiet", quiet, TEXT, "too_quiet", "-69."),
    ("loud", loud, TEXT, "too_loud", "dBFS"),
    ("clipped", clipped, TEXT, "clipped", "of the samples at full scale"),
    ("before", silence_before, TEXT, "leading_silence", "3.0"),
    ("after", silence_after, TEXT, "trailing_silence", "3.0"),
    ("between", silence_between, TEXT * 6, "mostly_silence", "silence in 0.7"),
    ("telephone", telephone, TEXT, "narrow_band", "above 3900 Hz"),
    ("words_missing", as_it_is, "صباح", "slow_transcript", "1.5 letters per second"),
    ("words_too_many", as_it_is, TEXT * 5, "fast_transcript", "letters per second"),
    ("channels", a_speaker_on_each_channel, TEXT, "channels_differ", "two channels that differ by 1.4"),
    ("english", as_it_is, "good morning, how are you?", "not_arabic", "0.00 of the letters Arabic"),
    ("noise", noise, TEXT, "little_speech", "speech in 0.00"),
]


@pytest.fixture(scope="module")
def tools(model_folder, codec_folder, hubert_folder):
    return {"model": model_folder, "audio_tokenizer": codec_folder, "hubert": hubert_folder}


@pytest.fixture(scope="module")
def speech(speech_folder):
    """Samples of 'صباح الخير، كيف حالك اليوم؟'."""
    return soundfile.read(speech_folder / "salma/000.wav", dtype="float32")[0]


@pytest.fixture(scope="module")
def screened(tmp_path_factory, speech, tools):
    """The rows above under the Arabic recipe."""
    folder = tmp_path_factory.mktemp("screened")
    rows = []
    for name, change, text, *_ in ROWS:
        soundfile.write(folder / f"{name}.wav", change(speech), RATE_HZ)
        rows.append({"audio": f"{name}.wav", "text": text, "speaker": "salma"})
    manifest = write_jsonl(folder / "m.jsonl", rows)
    assert shard(manifest=manifest, out=folder / "out", workers=1, screening=ARABIC, **tools) == 0
    return folder / "out"


@pytest.mark.parametrize("line", range(1, len(ROWS) + 1), ids=[row[0] for row in ROWS])
def test_each_filter_drops_what_it_is_there_for(line, screened):
    name, _, _, reason, found = ROWS[line - 1]
    if reason is None:
        assert line not in {record["line"] for record in failures(screened)}
        return
    record = row_failure(screened, line)
    assert (record["status"], record["reason"]) == ("screened", reason)
    assert f"{name}.wav" in record["where"]
    assert found in record["found"]
    assert "(min_" in record["expected"] or "(max_" in record["expected"]  # the threshold to change


def test_every_filter_of_the_arabic_recipe_is_on_and_its_drops_are_counted(screened):
    corpus = Corpus(screened)
    assert corpus.info["rows"] == {"written": 1, "merged": 0, "screened": len(ROWS) - 1, "failed": 0}
    assert set(corpus.info["lost_hours"]) == {row[3] for row in ROWS if row[3]}
    chosen = corpus.info["settings"]["screening"]
    assert [name for name, value in chosen.items() if value is None] == ["min_speaker_similarity"]
    assert chosen["min_bandwidth_hz"] == 5000


def test_quality_figures_stand_in_the_clip_and_in_the_index(screened, speech):
    corpus = Corpus(screened)
    (row,) = corpus.index.to_pylist()
    quality = corpus.clip(0).meta["quality"]
    assert {name: row[name] for name in QUALITY} == pytest.approx({name: quality[name] for name in QUALITY})
    assert row["speech_share"] > 0.7
    assert row["code_entropy_bits"] > 2
    assert row["letters_per_sec"] == pytest.approx(21 / (len(speech) / RATE_HZ), rel=0.1)


def test_a_share_of_screened_rows_above_the_recipes_is_warned_of_with_its_main_reason(
    tmp_path, speech, tools, capsys
):
    for name, samples in {"a": speech, "b": quiet(speech), "c": quiet(speech) * 0.9}.items():
        soundfile.write(tmp_path / f"{name}.wav", samples, RATE_HZ)
    manifest = write_jsonl(tmp_path / "m.jsonl", [{"audio": f"{n}.wav", "text": TEXT, "speaker": "s"} for n in "abc"])
    (tmp_path / "s.yaml").write_text("min_rms_dbfs: -50\nwarn_share: 0.5")
    out = tmp_path / "out"
    assert shard(manifest=manifest, out=out, workers=1, screening=tmp_path / "s.yaml", waveforms="none", **tools) == 0
    said = capsys.readouterr()
    assert "screening: min_duration_sec=0.5, max_duration_sec=30, min_rms_dbfs=-50, max_peak=2" in said.out
    assert "warning: 2 of 3 rows (67%) are screened, 2 of them as too_quiet" in said.err
    # Another threshold is another corpus.
    (tmp_path / "s.yaml").write_text("min_rms_dbfs: -60\nwarn_share: 0.5")
    error = refused(manifest=manifest, out=out, workers=1, screening=tmp_path / "s.yaml", waveforms="none", **tools)
    assert_parts(error, str(out), "settings.screening.min_rms_dbfs = -60.0", "min_rms_dbfs = -50.0", "")


def test_a_wrong_recipe_says_everything_that_is_wrong(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text("min_bandwith_hz: 5000")
    with pytest.raises(InputError) as caught:
        load_screening(path)
    assert_parts(caught.value, str(path), "nearest: min_bandwidth_hz", "preprocess/plan/screening.py", "Correct")
    path.write_text(
        "min_rms_dbfs: -5\nmax_rms_dbfs: -50\nwarn_share: 20\nmin_speaker_similarity: 75\nall_arabic: true"
    )
    with pytest.raises(InputError) as caught:
        load_screening(path)
    found = "max_rms_dbfs=-50; all_arabic=True; min_speaker_similarity=75; warn_share=20"
    expected = "max_rms_dbfs above min_rms_dbfs=-5; all_arabic false without min_arabic_share; "
    expected += "min_speaker_similarity less than or equal to 1; warn_share less than or equal to 1"
    assert_parts(caught.value, str(path), found, expected, "Correct")
    path.write_text("max_peak: loud\nmin_bandwith_hz: 5000")
    with pytest.raises(InputError) as caught:
        load_screening(path)
    found = "max_peak='loud'; unknown key min_bandwith_hz (nearest: min_bandwidth_hz)"
    assert_parts(caught.value, str(path), found, "max_peak a valid number; only keys of", "Correct")


@pytest.mark.parametrize("threshold", ["40", "30", "null"])
def test_a_minimum_is_compared_with_the_maximum_also_where_that_is_a_default(threshold, tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(f"min_duration_sec: {threshold}")
    if threshold == "null":
        assert load_screening(path).min_duration_sec is None
        return
    with pytest.raises(InputError) as caught:
        load_screening(path)
    assert_parts(caught.value, str(path), "max_duration_sec=30.0", f"above min_duration_sec={threshold}", "Correct")


@pytest.mark.parametrize("item", fields(Screening), ids=lambda item: item.name)
@pytest.mark.parametrize("value", ["'5'", "[5]", "{a: 5}", ".nan", ".inf", "1e400", "5 dB", "2026-01-01", "-1000000"])
def test_every_threshold_refuses_what_is_no_number_in_its_range(item, value, tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(f"{item.name}: {value}")
    if value == "-1000000" and item.name in ("min_rms_dbfs", "max_rms_dbfs"):
        value = "true"  # decibels may be negative
        path.write_text(f"{item.name}: {value}")
    with pytest.raises(InputError) as caught:
        load_screening(path)
    assert f"{item.name}=" in caught.value.found
    assert f"{item.name} " in caught.value.expected


def test_every_threshold_says_what_it_means():
    assert [item.name for item in fields(Screening) if not item.default.description] == []


def test_a_filter_set_to_null_is_off(tmp_path):
    (tmp_path / "s.yaml").write_text("max_duration_sec: null")
    recipe = load_screening(tmp_path / "s.yaml")
    screen_figures(recipe, {"duration_sec": 7200.0}, "")
    with pytest.raises(Rejected):
        screen_figures(Screening(), {"duration_sec": 7200.0}, "")


BORDERS = {
    "min_duration_sec": (0.5, "too_short"),
    "max_duration_sec": (30.0, "too_long"),
    "max_channel_difference": (0.5, "channels_differ"),
    "min_arabic_share": (0.5, "not_arabic"),
    "min_rms_dbfs": (-70.0, "too_quiet"),
    "max_rms_dbfs": (-5.0, "too_loud"),
    "max_peak": (2.0, "beyond_full_scale"),
    "max_clipped_share": (0.25, "clipped"),
    "max_silence_share": (0.6, "mostly_silence"),
    "max_leading_silence_sec": (1.0, "leading_silence"),
    "max_trailing_silence_sec": (1.0, "trailing_silence"),
    "min_bandwidth_hz": (5000.0, "narrow_band"),
    "min_letters_per_sec": (3.0, "slow_transcript"),
    "max_letters_per_sec": (25.0, "fast_transcript"),
    "min_speech_share": (0.3, "little_speech"),
    "min_code_entropy_bits": (2.0, "monotonous_codes"),
}


@pytest.mark.parametrize("name", BORDERS)
def test_a_figure_at_its_threshold_passes_and_one_just_beyond_does_not(name):
    threshold, reason = BORDERS[name]
    recipe, figure = Screening(**{name: threshold}), name[4:]
    inside, outside = (
        np.nextafter(threshold, threshold + step) for step in ((1, -1) if name[:3] == "min" else (-1, 1))
    )
    for value in (threshold, inside):
        screen_figures(recipe, {figure: value}, "")
    with pytest.raises(Rejected) as caught:
        screen_figures(recipe, {figure: outside}, "where")
    assert (caught.value.status, caught.value.reason, caught.value.where) == ("screened", reason, "where")
    assert f"at {'least' if name[:3] == 'min' else 'most'} {threshold:g} ({name})" == caught.value.expected


def test_the_filters_that_are_on_without_a_recipe():
    assert describe_thresholds(Screening()) == (
        "min_duration_sec=0.5, max_duration_sec=30, min_rms_dbfs=-70, max_peak=2, max_clipped_share=0.25, "
        "drop_text_noise=missing_value"
    )


def test_the_warning_begins_above_its_share():
    assert screening_warning(Screening(warn_share=0.2), {"too_short": 15, "clipped": 5}, 100) is None
    said = screening_warning(Screening(warn_share=0.2), {"too_short": 6, "clipped": 15}, 100)
    assert said.startswith("warning: 21 of 100 rows (21%) are screened, 15 of them as clipped")


@pytest.mark.parametrize(
    ("language", "all_arabic", "expected"),
    [
        ("ar", False, True),
        ("ar-EG", False, True),
        ("ar_SA", False, True),
        ("Arabic", False, True),
        ("arz", False, True),
        ("arn", False, False),
        (None, False, False),
        (None, True, True),
        ("en", True, False),
    ],
)
def test_arabic_is_claimed_by_the_language_or_for_all(language, all_arabic, expected):
    assert claims_arabic(Screening(min_arabic_share=0.5, all_arabic=all_arabic), language) is expected


def test_levels_of_a_known_tone():
    seconds = np.arange(2 * 24000) / 24000
    tone = np.sin(2 * np.pi * 1000 * seconds).astype(np.float32)
    tone[:12000] = tone[-4800:] = 0
    figures = audio_figures(Audio(tone, 24000, ""))
    assert figures["rms_dbfs"] == pytest.approx(10 * np.log10(0.5 * (48000 - 16800) / 48000), abs=0.01)
    assert figures["peak"] == pytest.approx(1.0, abs=1e-3)
    assert figures["clipped_share"] == pytest.approx(0.09 * 0.65, abs=0.01)  # |sin| >= 0.99 in 9 % of a period
    assert figures["silence_share"] == pytest.approx(0.35, abs=0.01)
    assert figures["leading_silence_sec"] == pytest.approx(0.5, abs=0.01)
    assert figures["trailing_silence_sec"] == pytest.approx(0.2, abs=0.01)
    steady = np.sin(2 * np.pi * 1000 * seconds).astype(np.float32)
    assert bandwidth_hz(Audio(steady, 24000, "")) == pytest.approx(1000, abs=150)


def test_code_entropy_is_the_mean_over_codebooks():
    constant, four = np.zeros(64, np.uint16), np.arange(64, dtype=np.uint16) % 4
    assert code_entropy_bits(np.stack([constant, four])) == 1.0
    assert code_entropy_bits(np.stack([constant, constant])) == 0.0


def test_diacritics_take_no_time():
    assert text_figures("سَلامٌ", 2.0) == text_figures("سلام", 2.0) == {"letters_per_sec": 2.0, "arabic_share": 1.0}


def test_speech_share_does_not_depend_on_what_was_heard_before(speech_folder):
    audio = decode(speech_folder / "omar/001.wav")
    first = speech_share(audio)
    others = [speech_share(decode(speech_folder / f"huda/00{n}.wav")) for n in range(4)]
    assert first > 0.7
    assert speech_share(audio) == first
    assert min(others) > 0.7
    assert speech_share(Audio(noise(audio.waveform).astype(np.float32), audio.sample_rate_hz, "")) < 0.1


def test_a_word_that_begins_at_once_is_heard(tmp_path):
    """A cold silero-vad misses the beginning: of this word it hears 0.42."""
    save_speech([(str(tmp_path / "five.wav"), "خمسة", "ar+m1", 175, 25)])
    assert speech_share(decode(tmp_path / "five.wav")) > 0.6


def test_a_very_short_recording_has_figures_too():
    for num_samples in (1, 100, 900):
        figures = audio_figures(Audio(np.full(num_samples, 0.1, np.float32), 24000, ""))
        assert json.loads(json.dumps(figures)) == figures
        assert figures["rms_dbfs"] == pytest.approx(-20, abs=0.01)
    assert bandwidth_hz(Audio(np.zeros(24000, np.float32), 24000, "")) == 0.0
