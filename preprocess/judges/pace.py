"""Levels and pace of a corpus's speech, for warnings in generation about an unusual reference or a runaway.

They are `speech` in corpus.json, and from there in checkpoints and the merged folder:

    reference_sec, rms_dbfs, leading_silence_sec, trailing_silence_sec    [1st, 99th percentile] over the clips
    sec_per_letter    the median pace: seconds per letter without outer silence; a diacritic is no letter
"""

from collections.abc import Iterable

import numpy as np

from preprocess.audio.decode import Audio
from preprocess.common.json_file import JsonObject
from preprocess.corpus.text import has_marks, normalise_text, num_letters
from preprocess.judges.figures import audio_figures

_RANGES = {
    "reference_sec": ("seconds of audio", "duration_sec"),
    "rms_dbfs": ("dBFS", "rms_dbfs"),
    "leading_silence_sec": ("seconds of silence before speech", "leading_silence_sec"),
    "trailing_silence_sec": ("seconds of silence after speech", "trailing_silence_sec"),
}
# How far a reference may lie outside a range before there is a warning.
_MARGIN = {"reference_sec": 0.1, "rms_dbfs": 3.0, "leading_silence_sec": 0.1, "trailing_silence_sec": 0.1}
_RUNAWAY_FACTOR, _CUT_SHORT_FACTOR, _PAUSE_SEC = 2.5, 0.4, 1.0


def speech_facts(rows: Iterable[JsonObject]) -> JsonObject:
    """The facts above over the index rows in use, without those for which no row has a figure."""
    rows = [row for row in rows if row["use"]]
    facts: JsonObject = {}
    for name, (_, column) in _RANGES.items():
        values = [row[column] for row in rows if row[column] is not None]
        if values:
            facts[name] = [round(float(value), 3) for value in np.percentile(values, [1, 99])]
    paces = [1 / row["letters_per_sec"] for row in rows if row["letters_per_sec"]]
    if paces:
        facts["sec_per_letter"] = round(float(np.median(paces)), 4)
    return facts


def reference_warnings(facts: JsonObject, reference: Audio) -> list[str]:
    """A warning for each figure of a reference that lies outside the corpus's range."""
    figures = {"duration_sec": reference.duration_sec, **audio_figures(reference)}
    warnings = []
    for name, (unit, column) in _RANGES.items():
        low, high = facts.get(name, (-np.inf, np.inf))
        if not low - _MARGIN[name] <= figures[column] <= high + _MARGIN[name]:
            warnings.append(f"the reference has {figures[column]:.1f} {unit}; the corpus has {low:.1f} to {high:.1f}")
    return warnings


def length_warning(facts: JsonObject, text: str, speech_sec: float) -> str | None:
    """A warning where speech is far longer (a runaway) or shorter than `text` at the corpus's pace, else None.

    A text with marks for sounds may take any time: how long someone laughs is not written in it.
    """
    if "sec_per_letter" not in facts:
        return None
    text = normalise_text(text)
    expected_sec = num_letters(text) * facts["sec_per_letter"]
    if speech_sec > _RUNAWAY_FACTOR * expected_sec + _PAUSE_SEC and not has_marks(text):
        what = "a runaway"
    elif speech_sec < _CUT_SHORT_FACTOR * expected_sec:
        what = "words may be missing"
    else:
        return None
    return f"{speech_sec:.1f} s of speech, but the text takes {expected_sec:.1f} s at the corpus's pace: {what}"
