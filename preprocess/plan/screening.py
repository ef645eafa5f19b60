"""Filters on clips, with thresholds from a recipe: each drops a clip with a reason and the measured value.

The figures are those of preprocess.judges. Filters that compare clips with each other are in preprocess.finish.
"""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, StrictBool, StrictFloat, ValidationInfo, field_validator
from pydantic.dataclasses import dataclass

from preprocess.common.errors import Rejected
from preprocess.common.strict_yaml import STRICT, load_yaml, wrong_value
from preprocess.corpus.text import is_arabic_language
from preprocess.judges.text_noise import NOISE_KINDS

Amount = Annotated[float, Field(strict=True, ge=0)]
Share = Annotated[float, Field(strict=True, ge=0, le=1)]


def _check_kinds(kinds: list[Any]) -> list[Any]:
    if not all(kind in list(NOISE_KINDS) for kind in kinds):
        raise wrong_value(f"a list of some of {', '.join(NOISE_KINDS)}")
    return kinds


@dataclass(frozen=True, config=STRICT)
class Screening:
    """Thresholds; null switches a filter off. The defaults drop only what is never good."""

    min_duration_sec: Amount | None = Field(default=0.5, description="length of the clip")
    max_duration_sec: Amount | None = Field(default=30.0, description="length of the clip")
    min_rms_dbfs: StrictFloat | None = Field(
        default=-70.0, description="level; below is silence, or stereo that cancels out"
    )
    max_rms_dbfs: StrictFloat | None = Field(default=None, description="level")
    max_peak: Amount | None = Field(
        default=2.0,
        description="largest sample; above is a float file of another scale than -1 to 1; lossy formats overshoot",
    )
    max_clipped_share: Share | None = Field(default=0.25, description="share of the samples at full scale")
    max_silence_share: Share | None = Field(default=None, description="share of the clip that is silence")
    max_leading_silence_sec: Amount | None = Field(default=None, description="silence before speech")
    max_trailing_silence_sec: Amount | None = Field(default=None, description="silence after speech")
    min_bandwidth_hz: Amount | None = Field(default=None, description="frequency above which there is nothing")
    min_letters_per_sec: Amount | None = Field(default=None, description="letters of the transcript, no diacritics")
    max_letters_per_sec: Amount | None = Field(default=None, description="letters of the transcript, no diacritics")
    max_channel_difference: Amount | None = Field(
        default=None, description="RMS of the first two channels' difference, over that of the louder; one is 0"
    )
    min_arabic_share: Share | None = Field(
        default=None, description="share of the transcript's letters, where the row's language is Arabic (ar...)"
    )
    drop_text_noise: Annotated[list[Any], Field(strict=True), AfterValidator(_check_kinds)] = Field(
        default=["missing_value"], description="kinds of noise in transcripts, of preprocess.judges.text_noise"
    )
    all_arabic: StrictBool = Field(default=False, description="rows without a language are Arabic too")
    min_speech_share: Share | None = Field(
        default=None, description="share of the clip that is speech, by silero-vad: some 2 % more time"
    )
    min_code_entropy_bits: Amount | None = Field(default=None, description="entropy of the codes, mean of codebooks")
    min_speaker_similarity: Share | None = Field(
        default=None,
        description="similarity to the speaker's other clips, by Resemblyzer, of clips with 2 s of speech and "
        "speakers with 5 of them: some 1 % more time; 0 drops none",
    )
    warn_share: Share = Field(default=0.2, description="a warning where more than this share of the rows is screened")

    @field_validator("max_duration_sec", "max_rms_dbfs", "max_letters_per_sec")
    @classmethod
    def _check_above_minimum(cls, high: float | None, info: ValidationInfo) -> float | None:
        name = f"{info.field_name}".replace("max_", "min_")
        low = info.data.get(name)
        if low is not None and high is not None and high <= low:
            raise wrong_value(f"above {name}={low:g}")
        return high

    @field_validator("all_arabic")
    @classmethod
    def _check_has_share(cls, all_arabic: bool, info: ValidationInfo) -> bool:
        if all_arabic and info.data.get("min_arabic_share", True) in (None, 0):
            raise wrong_value("false without min_arabic_share")
        return all_arabic

    @property
    def longest_sec(self) -> float:
        """The longest clip that passes, in seconds."""
        return math.inf if self.max_duration_sec is None else self.max_duration_sec


# In the order in which they are applied: the reason, the measured value, and what to do.
_FILTERS = {
    "min_duration_sec": ("too_short", "{:.3f} s of audio", "Nothing to do."),
    "max_duration_sec": (
        "too_long",
        "{:.2f} s of audio",
        "Cut the recording into utterances with a transcript each.",
    ),
    "max_channel_difference": (
        "channels_differ",
        "two channels that differ by {:.2f} of the louder one",
        "Listen: is there a speaker on each? Pick one channel with the row's `channel` (0 is the first).",
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
    "min_bandwidth_hz": (
        "narrow_band",
        "nothing above {:.0f} Hz",
        "Find the original: this one is of telephone quality.",
    ),
    "min_letters_per_sec": (
        "slow_transcript",
        "{:.1f} letters per second",
        "Listen: the transcript lacks words, or the recording has more than speech.",
    ),
    "max_letters_per_sec": (
        "fast_transcript",
        "{:.1f} letters per second",
        "Listen: the recording lacks words of the transcript.",
    ),
    "min_speech_share": ("little_speech", "speech in {:.2f} of the recording", "Listen: is it speech?"),
    "min_code_entropy_bits": ("monotonous_codes", "{:.2f} bits per codebook", "Listen: is it silence, hum or noise?"),
    "min_speaker_similarity": (
        "other_voice",
        "a voice whose similarity to the speaker's other clips is {:.2f}",
        "Listen: is it this speaker? Correct the name, or remove the row.",
    ),
}


def load_screening(path: Path | None) -> Screening:
    """The recipe in a YAML file; the defaults without one. Raises one InputError for all that is wrong in it."""
    if path is None:
        return Screening()
    return load_yaml(path, Screening, "preprocess/plan/screening.py", example="launch/recipes/screening_*.yaml")


def screen_figures(screening: Screening, figures: dict[str, float], where: str) -> None:
    """Raise Rejected for the first filter that a figure does not pass. Filters of other figures are skipped."""
    for name, (reason, found, action) in _FILTERS.items():
        threshold, is_minimum = getattr(screening, name), name.startswith("min_")
        value = figures.get(name[4:])
        if threshold is None or value is None:
            continue
        if value < threshold if is_minimum else value > threshold:
            expected = f"at {'least' if is_minimum else 'most'} {threshold:g} ({name})"
            raise Rejected("screened", reason, where, found.format(value), expected, action)


def claims_arabic(screening: Screening, language: str | None) -> bool:
    """Whether a row's transcript must be in Arabic script, by its language: a code, "ar-EG" or "ar_SA"."""
    return is_arabic_language(language) if language else screening.all_arabic


def describe_thresholds(screening: Screening) -> str:
    """The filters that are on with their thresholds, for the command's output."""
    on = {name: value for name, value in asdict(screening).items() if name in _FILTERS and value is not None}
    shown = [f"{name}={value:g}" for name, value in on.items()]
    if screening.drop_text_noise:
        shown.append(f"drop_text_noise={'+'.join(screening.drop_text_noise)}")
    return ", ".join(shown)


def screening_warning(screening: Screening, reasons: dict[str, int], num_rows: int) -> str | None:
    """A warning, with the most frequent reason, where more than `warn_share` of the rows is screened; else None."""
    total = sum(reasons.values())
    if total <= screening.warn_share * num_rows:
        return None
    reason = max(sorted(reasons), key=reasons.__getitem__)
    return (
        f"warning: {total} of {num_rows} rows ({total / num_rows:.0%}) are screened, {reasons[reason]} of them as "
        f"{reason}: listen to some of them, and change the threshold in the --screening recipe if they are good"
    )


def length_verdict(screening: Screening, duration_sec: float) -> str:
    """The reason for which a clip of this length is dropped, or "fits"."""
    try:
        screen_figures(screening, {"duration_sec": duration_sec}, "")
    except Rejected as rejected:
        return rejected.reason
    return "fits"
