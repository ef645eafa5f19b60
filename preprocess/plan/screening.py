"""Filters on clips, with thresholds from a recipe: each says by a word, and with the measured value, what it drops.

The figures are those of preprocess.judges. What needs more than one clip is decided in preprocess.finish.
"""

import math
import re
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from pydantic import Field, StrictBool, StrictFloat, ValidationInfo, field_validator
from pydantic.dataclasses import dataclass

from preprocess.common.errors import Rejected
from preprocess.common.strict_yaml import STRICT, load_yaml, wrong_value

Amount = Annotated[float, Field(strict=True, ge=0)]
Share = Annotated[float, Field(strict=True, ge=0, le=1)]


@dataclass(frozen=True, config=STRICT)
class Screening:
    """Thresholds; null switches a filter off. The defaults drop what is never good, and nothing else."""

    min_duration_sec: Amount | None = Field(0.5, description="length of the clip")
    max_duration_sec: Amount | None = Field(30.0, description="length of the clip")
    min_rms_dbfs: StrictFloat | None = Field(-70.0, description="level; below is silence, or stereo that cancels out")
    max_rms_dbfs: StrictFloat | None = Field(None, description="level")
    max_peak: Amount | None = Field(
        2.0,
        description="largest sample; above is a float file of another scale than -1 to 1; lossy formats overshoot",
    )
    max_clipped_share: Share | None = Field(0.25, description="share of the samples at full scale")
    max_silence_share: Share | None = Field(None, description="share of the clip that is silence")
    max_leading_silence_sec: Amount | None = Field(None, description="silence before speech")
    max_trailing_silence_sec: Amount | None = Field(None, description="silence after speech")
    min_bandwidth_hz: Amount | None = Field(None, description="frequency above which there is nothing")
    min_letters_per_sec: Amount | None = Field(None, description="letters of the transcript; a diacritic is none")
    max_letters_per_sec: Amount | None = Field(None, description="letters of the transcript; a diacritic is none")
    min_arabic_share: Share | None = Field(
        None, description="share of the transcript's letters, where the row's language is Arabic (ar...)"
    )
    all_arabic: StrictBool = Field(False, description="rows without a language are Arabic too")
    min_speech_share: Share | None = Field(
        None, description="share of the clip that is speech, by silero-vad: some 2 % more time"
    )
    min_code_entropy_bits: Amount | None = Field(None, description="entropy of the codes, mean over codebooks")
    min_speaker_similarity: Share | None = Field(
        None,
        description="similarity to the speaker's other clips, by Resemblyzer, of clips with 2 s of speech and "
        "speakers with 5 of them: some 1 % more time; 0 drops none",
    )
    warn_share: Share = Field(0.2, description="a warning where more than this share of the rows is screened")

    @field_validator("max_duration_sec", "max_rms_dbfs", "max_letters_per_sec")
    @classmethod
    def _is_above_its_minimum(cls, high: float | None, info: ValidationInfo) -> float | None:
        name = f"min_{info.field_name.removeprefix('max_')}"
        low = info.data.get(name)
        if low is not None and high is not None and high <= low:
            raise wrong_value(f"above {name}={low:g}")
        return high

    @field_validator("all_arabic")
    @classmethod
    def _has_its_share(cls, all_arabic: bool, info: ValidationInfo) -> bool:
        if all_arabic and info.data.get("min_arabic_share", True) in (None, 0):
            raise wrong_value("false without min_arabic_share")
        return all_arabic

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
    return load_yaml(path, Screening, "preprocess/plan/screening.py", example="launch/recipes/screening_*.yaml")


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
