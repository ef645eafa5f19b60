"""Judge a clip before it is encoded, as a run and a preview do: its figures, and whether the screening keeps it."""

from preprocess.audio.decode import Audio
from preprocess.corpus.text import normalise_text
from preprocess.encode.reuse import Reused
from preprocess.judges.figures import audio_figures, text_figures
from preprocess.judges.speaker import embed_voice, load_encoder
from preprocess.judges.voice_activity import load_detector, speech_share
from preprocess.plan.clips import ClipPlan
from preprocess.plan.screening import Screening, claims_arabic, screen_figures


def load_screening_networks(screening: Screening) -> None:
    """Load the networks that the screening needs, so that workers forked from here share them."""
    if screening.min_speech_share is not None:
        load_detector()
    if screening.min_speaker_similarity is not None:
        load_encoder()


def refuse_length(screening: Screening, plan: ClipPlan, duration_sec: float) -> None:
    """Raise Rejected for a clip that is too short or too long: before hours of audio are measured."""
    screen_figures(screening, {"duration_sec": duration_sec}, str(plan.recording))


def judge_clip(
    screening: Screening, plan: ClipPlan, audio: Audio | Reused
) -> tuple[dict[str, float], dict[str, str | None]]:
    """(figures of a clip, its `voice` where the screening asks for one), before it is encoded and made noisy.

    Raises Rejected where the screening drops it.
    """
    figures = _screened_figures(screening, plan, audio)
    if screening.min_speaker_similarity is None or plan.augmentation:  # a copy goes with its clip
        return figures, {}
    return figures, {"voice": embed_voice(_samples(plan, audio))}


def _screened_figures(screening: Screening, plan: ClipPlan, audio: Audio | Reused) -> dict[str, float]:
    where = str(plan.recording)
    figures = dict(audio.figures) if isinstance(audio, Reused) else audio_figures(audio)
    known_speech_share = figures.pop("speech_share", None)
    if plan.recording.channel is not None:  # nothing was mixed
        figures.pop("channel_difference", None)
    elif "channel_difference" not in figures:  # reused from a corpus in which it was not measured
        figures["channel_difference"] = audio_figures(_samples(plan, audio))["channel_difference"]
    if plan.text:
        silence_sec = figures["leading_silence_sec"] + figures["trailing_silence_sec"]
        figures |= text_figures(normalise_text(plan.text), audio.duration_sec - silence_sec)
    if not claims_arabic(screening, plan.language):
        figures.pop("arabic_share", None)
    screen_figures(screening, figures, where)
    if screening.min_speech_share is not None:  # last: the others cost next to nothing
        if known_speech_share is None:
            known_speech_share = speech_share(_samples(plan, audio))
        figures["speech_share"] = known_speech_share
        screen_figures(screening, figures, where)
    return figures


def _samples(plan: ClipPlan, audio: Audio | Reused) -> Audio:
    return plan.recording.decode() if isinstance(audio, Reused) else audio
