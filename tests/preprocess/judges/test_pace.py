"""What a corpus sounds like: kept in corpus.json, warned by at generation."""

import numpy as np
import pytest

from preprocess.audio.decode import Audio
from preprocess.corpus.shards import Corpus
from preprocess.judges.pace import length_warning, reference_warnings, speech_facts


def row(**figures):
    silence = {"leading_silence_sec": 0.1, "trailing_silence_sec": 0.2}
    return {"use": True, "duration_sec": 5.0, "rms_dbfs": -20.0, "letters_per_sec": 10.0, **silence, **figures}


def tone(seconds, level=0.14, leading_sec=0.0):
    samples = level * np.sin(2 * np.pi * 300 * np.arange(round(seconds * 16000)) / 16000)
    samples[: round(leading_sec * 16000)] = 0
    return Audio(samples.astype(np.float32), 16000, "")


def test_ranges_hold_98_percent_of_the_clips_in_use():
    rows = [row(duration_sec=float(second)) for second in range(101)]
    rows += [row(duration_sec=1000.0, use=False), row(rms_dbfs=None, letters_per_sec=None)]
    facts = speech_facts(rows)
    assert facts["reference_sec"] == pytest.approx([1.0, 99.0], abs=0.1)
    assert facts["rms_dbfs"] == [-20.0, -20.0]
    assert facts["trailing_silence_sec"] == [0.2, 0.2]
    assert facts["sec_per_letter"] == 0.1


def test_a_corpus_without_quality_figures_has_no_such_facts():
    figures = dict.fromkeys(("rms_dbfs", "leading_silence_sec", "trailing_silence_sec", "letters_per_sec"))
    assert speech_facts([row(**figures)]) == {"reference_sec": [5.0, 5.0]}
    assert reference_warnings({}, tone(1.0)) == []
    assert length_warning({}, "نعم", 60.0) is None


def test_a_real_corpus_has_them(speech_corpus):
    facts = Corpus(speech_corpus).info["speech"]
    assert 0.5 < facts["reference_sec"][0] < facts["reference_sec"][1] < 30
    assert -40 < facts["rms_dbfs"][0] < facts["rms_dbfs"][1] < -10
    assert 0 <= facts["leading_silence_sec"][0] <= facts["leading_silence_sec"][1] < 1
    assert 0.05 < facts["sec_per_letter"] < 0.3


def test_a_reference_unlike_the_corpus_is_warned_of():
    facts = speech_facts([row(leading_silence_sec=0.0, trailing_silence_sec=0.0)] * 3)
    assert reference_warnings(facts, tone(5.0)) == []
    (short,) = reference_warnings(facts, tone(2.0))
    assert short == "the reference has 2.0 seconds of audio; the corpus has 5.0 to 5.0"
    (quiet,) = reference_warnings(facts, tone(5.0, level=0.014))
    assert quiet == "the reference has -40.1 dBFS; the corpus has -20.0 to -20.0"
    (late,) = reference_warnings(facts, tone(5.0, leading_sec=1.0))
    assert "1.0 seconds of silence before speech" in late


def test_speech_that_runs_away_or_ends_early_is_known_by_the_pace():
    facts = {"sec_per_letter": 0.1}
    text = "مَرْحَبًا بِكُمْ جَمِيعًا"  # 13 letters: 1.3 s
    assert length_warning(facts, text, 1.5) is None
    assert length_warning(facts, text, 4.0) is None
    assert (
        length_warning(facts, text, 4.5)
        == "4.5 s of speech, but the text takes 1.3 s at the corpus's pace: a runaway"
    )
    assert "words may be missing" in length_warning(facts, text, 0.4)


def test_how_long_a_laugh_takes_is_not_known_and_words_may_still_be_missing():
    facts, text = {"sec_per_letter": 0.1}, "مرحبا بكم جميعا <SE>[Laughter]</SE>"
    assert length_warning(facts, text, 20.0) is None
    assert "a runaway" in length_warning(facts, text.replace("</SE>", ""), 20.0)
    assert "takes 1.3 s" in length_warning(facts, text, 0.4)
