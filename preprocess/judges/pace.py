"""What a corpus sounds like, for generation: a reference unlike it is warned of, and a runaway is known.

corpus.json keeps it as `speech`, from there checkpoints and the merged folder:

    reference_sec, rms_dbfs, leading_silence_sec, trailing_silence_sec    [1st, 99th percentile] over the clips
    sec_per_letter    the median pace: seconds without outer silence a letter, 0 for a diacritic
"""

from collections.abc import Iterable

import numpy as np

from preprocess.audio.decode import Audio
from preprocess.corpus.text import normalise_text, num_letters
from preprocess.judges.figures import audio_figures

_RANGES = {
    "reference_sec": ("seconds of audio", "duration_sec"),
    "rms_dbfs": ("dBFS", "rms_dbfs"),
    "leading_silence_sec": ("seconds of silence before speech", "leading_silence_sec"),
    "trailing_silence_sec": ("seconds of silence after speech", "trailing_silence_sec"),
}
# A range is of many clips: a reference is unlike them only where it lies outside by more than this.
_MARGIN = {"reference_sec": 0.1, "rms_dbfs": 3.0, "leading_silence_sec": 0.1, "trailing_silence_sec": 0.1}
_RUNAWAY_FACTOR, _CUT_SHORT_FACTOR, _PAUSE_SEC = 2.5, 0.4, 1.0


def speech_facts(rows: Iterable[dict]) -> dict:
    """The facts of index rows, those in use. A figure that no row has is left out."""
    rows = [row for row in rows if row["use"]]
    facts = {}
    for name, (_, column) in _RANGES.items():
        values = [row[column] for row in rows if row[column] is not None]
        if values:
            facts[name] = [round(float(value), 3) for value in np.percentile(values, [1, 99])]
    paces = [1 / row["letters_per_sec"] for row in rows if row["letters_per_sec"]]
    if paces:
        facts["sec_per_letter"] = round(float(np.median(paces)), 4)
    return facts


def reference_warnings(facts: dict, reference: Audio) -> list[str]:
    """What about a reference recording lies outside of what the model has heard."""
    figures = {"duration_sec": reference.duration_sec, **audio_figures(reference)}
    warnings = []
    for name, (unit, column) in _RANGES.items():
        low, high = facts.get(name, (-np.inf, np.inf))
        if not low - _MARGIN[name] <= figures[column] <= high + _MARGIN[name]:
            warnings.append(f"the reference has {figures[column]:.1f} {unit}; the corpus has {low:.1f} to {high:.1f}")
    return warnings


def length_warning(facts: dict, text: str, speech_sec: float) -> str | None:
    """Whether speech is far longer (a runaway) or shorter than the corpus's pace makes `text`; None if it fits."""
    if "sec_per_letter" not in facts:
        return None
    expected_sec = num_letters(normalise_text(text)) * facts["sec_per_letter"]
    if speech_sec > _RUNAWAY_FACTOR * expected_sec + _PAUSE_SEC:
        what = "a runaway"
    elif speech_sec < _CUT_SHORT_FACTOR * expected_sec:
        what = "words may be missing"
    else:
        return None
    return f"{speech_sec:.1f} s of speech where the corpus's pace makes {expected_sec:.1f} s of the text: {what}"
