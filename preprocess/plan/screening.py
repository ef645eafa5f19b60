"""Filters on clips, with thresholds from a recipe: each says by a word, and with the measured value, what it drops.

The figures are those of preprocess.judges. What needs more than one clip is decided in preprocess.finish.
"""

import math
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from preprocess.common.errors import Rejected
from preprocess.common.strict_yaml import load_yaml, refuse_wrong_values


@dataclass
class Screening:
    """Thresholds; null switches a filter off. The defaults drop what is never good, and nothing else."""

    min_duration_sec: float | None = 0.5
    max_duration_sec: float | None = 30.0
    min_rms_dbfs: float | None = -70.0  # silence; and stereo whose channels cancel out
    max_rms_dbfs: float | None = None
    max_peak: float | None = 2.0  # float files of another scale than -1 to 1; lossy formats overshoot a little
    max_clipped_share: float | None = 0.25
    max_silence_share: float | None = None
    max_leading_silence_sec: float | None = None
    max_trailing_silence_sec: float | None = None
    min_bandwidth_hz: float | None = None
    min_letters_per_sec: float | None = None  # a diacritic is no letter
    max_letters_per_sec: float | None = None
    min_arabic_share: float | None = None  # of the transcript's letters, where the row's language is Arabic (ar...)
    all_arabic: bool = False  # rows without a language are Arabic too
    min_speech_share: float | None = None  # by silero-vad: some 2 % more time
    min_code_entropy_bits: float | None = None
    # By Resemblyzer, of clips with 2 s of speech and speakers with 5 of them: some 1 % more time. 0 drops none.
    min_speaker_similarity: float | None = None
    warn_share: float = 0.2  # a warning where more than this share of the rows is screened

    @property
    def longest_sec(self) -> float:
        return math.inf if self.max_duration_sec is None else self.max_duration_sec


# Arabic in ISO 639, and the codes of its spoken varieties.
_ARABIC = {"ar", "ara", "arabic", "arb", "arz", "ary", "arq", "ars", "apc", "acm", "aeb", "afb", "ajp", "ayl"}

# In the order in which they are tried: reason, what was measured, what to do.
_FILTERS = {
    "min_duration_sec": ("too_short", "{:.3f} s of audio", "Nothing to do."),
    "max_duration_sec": (
        "too_long",
        "{:.2f} s of audio",
        "Cut the recording into utterances with a transcript each.",
    ),
    "min_arabic_share": (
        "not_arabic",
        "{:.2f} of the letters Arabic",
        "Write the transcript in Arabic script, or correct the row's language.",
    ),
    "min_rms_dbfs": (
        "too_quiet",
        "an RMS level of {:.1f} dBFS",
        "Record it louder; if it sounds well, its two channels cancel out: save one of them.",
    ),
    "max_rms_dbfs": ("too_loud", "an RMS level of {:.1f} dBFS", "Record it at a lower level."),
    "max_peak": ("beyond_full_scale", "a peak of {:.2f}", "Save it again with samples from -1 to 1."),
    "max_clipped_share": ("clipped", "{:.4f} of the samples at full scale", "Record it at a lower level."),
    "max_silence_share": ("mostly_silence", "silence in {:.2f} of the recording", "Cut the silence out."),
    "max_leading_silence_sec": ("leading_silence", "{:.2f} s of silence before speech", "Cut the silence off."),
    "max_trailing_silence_sec": ("trailing_silence", "{:.2f} s of silence after speech", "Cut the silence off."),
    "min_bandwidth_hz": ("narrow_band", "nothing above {:.0f} Hz", "Find the recording before it was a telephone's."),
    "min_letters_per_sec": (
        "slow_transcript",
        "{:.1f} letters a second",
        "Listen: the transcript lacks words, or the recording holds more than them.",
    ),
    "max_letters_per_sec": (
        "fast_transcript",
        "{:.1f} letters a second",
        "Listen: the recording lacks words of the transcript.",
    ),
    "min_speech_share": ("little_speech", "speech in {:.2f} of the recording", "Listen: is it speech?"),
    "min_code_entropy_bits": ("monotonous_codes", "{:.2f} bits a codebook", "Listen: silence, hum or noise?"),
    "min_speaker_similarity": (
        "other_voice",
        "a voice whose similarity to the speaker's other clips is {:.2f}",
        "Listen: is it this speaker? Correct the name, or remove the row.",
    ),
}


def load_screening(path: Path | None) -> Screening:
    """The recipe in a YAML file; the defaults without one. Raises InputError for what is wrong in it, all at once."""
    if path is None:
        return Screening()
    recipe = load_yaml(path, Screening, "preprocess/plan/screening.py", example="launch/recipes/screening_*.yaml")
    bounds = {item.name.removeprefix("min_") for item in fields(recipe) if item.name.startswith("min_")}
    pairs = {figure: [getattr(recipe, f"{end}_{figure}", None) for end in ("min", "max")] for figure in bounds}
    similarity = recipe.min_speaker_similarity
    refuse_wrong_values(
        str(path),
        [
            (f"min_{figure}", low, f"below max_{figure}={high}", low is None or high is None or low < high)
            for figure, (low, high) in sorted(pairs.items())
        ]
        + [
            ("warn_share", recipe.warn_share, "0 to 1", 0 <= recipe.warn_share <= 1),
            ("min_speaker_similarity", similarity, "0 to 1", 0 <= (similarity or 0) <= 1),
            (
                "all_arabic",
                recipe.all_arabic,
                "with min_arabic_share",
                recipe.min_arabic_share or not recipe.all_arabic,
            ),
        ],
    )
    return recipe


def screen(screening: Screening, figures: dict[str, float], where: str) -> None:
    """Raise Rejected for the first filter that a figure does not pass. Filters without their figure are not tried."""
    for name, (reason, found, action) in _FILTERS.items():
        threshold, end, figure = getattr(screening, name), name[:3], name[4:]
        value = figures.get(figure)
        if threshold is None or value is None:
            continue
        if value < threshold if end == "min" else value > threshold:
            expected = f"at {'least' if end == 'min' else 'most'} {threshold:g} ({name})"
            raise Rejected("screened", reason, where, found.format(value), expected, action)


def claims_arabic(screening: Screening, language: str | None) -> bool:
    """Whether a row's transcript is to be in Arabic script: by its language, a code or "ar-EG", "ar_SA"."""
    if not language:
        return screening.all_arabic
    return re.split("[-_]", language.lower())[0] in _ARABIC


def thresholds(screening: Screening) -> str:
    """The filters that are on, for the command's own output."""
    on = {name: value for name, value in asdict(screening).items() if name in _FILTERS and value is not None}
    return ", ".join(f"{name}={value:g}" for name, value in on.items())


def dominating_reason(screening: Screening, reasons: dict[str, int], num_rows: int) -> str | None:
    """A warning where more than `warn_share` of the rows is screened: how many, and by which filter most."""
    total = sum(reasons.values())
    if total <= screening.warn_share * num_rows:
        return None
    reason = max(sorted(reasons), key=reasons.__getitem__)
    return (
        f"warning: {total} of {num_rows} rows ({total / num_rows:.0%}) are screened, {reasons[reason]} of them as "
        f"{reason}: listen to some of them, and change the threshold in the --screening recipe if they are good"
    )
