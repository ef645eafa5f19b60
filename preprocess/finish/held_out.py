"""The choice of voices that are held out for validation."""

import hashlib
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable

from preprocess.audio.decode import Header
from preprocess.corpus.dialogue import reference_keys
from preprocess.plan.clips import ClipTable
from preprocess.plan.forecast import FEWEST_VOICES
from preprocess.plan.screening import length_verdict
from preprocess.plan.settings import Settings


def held_out_speakers(
    clips: Iterable[tuple[str, float]], pairs: Iterable[tuple[str, str]], val_speakers: str, seed: int
) -> set[str]:
    """Speakers that are held out: drawn by seed, among voices with two or more clips and at most the median's audio.

    Speakers that a dialogue or a recording brings together count as one voice, so that no held-out voice is in a
    training sample. A voice has the name of one of its speakers: following `parent` leads from each of its speakers
    to that one. Joining two voices makes one of their two names the parent of the other.

    clips: (speaker, seconds) of each clip in use. pairs: two speakers that belong together. val_speakers: a number of
    voices ("3"), or a share of them with a point ("0.02": at least one of three voices and two of four or more, so
    that the conditioning gain has another voice's reference to compare with).
    """
    clips = list(clips)
    parent = {speaker: speaker for speaker, _ in clips}

    def voice_of(speaker: str) -> str:
        while parent[speaker] != speaker:
            speaker = parent[speaker]
        return speaker

    for pair in pairs:
        one, other = sorted(map(voice_of, pair))
        parent[other] = one

    seconds: defaultdict[str, float] = defaultdict(float)
    num_clips: Counter[str] = Counter()
    for speaker, duration_sec in clips:
        seconds[voice_of(speaker)] += duration_sec
        num_clips[voice_of(speaker)] += 1
    median_sec = statistics.median(seconds.values()) if seconds else 0.0
    candidates = [voice for voice in seconds if num_clips[voice] >= 2 and seconds[voice] <= median_sec]
    candidates.sort(key=lambda voice: hashlib.sha256(f"{seed}:val:{voice}".encode()).digest())
    held_out = set(candidates[: _number_of_voices(val_speakers, len(seconds))])
    return {speaker for speaker in parent if voice_of(speaker) in held_out}


def _number_of_voices(val_speakers: str, num_voices: int) -> int:
    if "." not in val_speakers:
        return int(val_speakers)
    share = float(val_speakers)
    fewest = min(max(num_voices - 2, 0), FEWEST_VOICES) if share > 0 else 0
    return max(int(share * num_voices), fewest)


def plan_validation(settings: Settings, table: ClipTable, headers: dict[str, Header]) -> set[str]:
    """Keys of the validation split as it will be, if all clips with a header of a fitting length are written."""
    fits = {key: h for key, h in headers.items() if length_verdict(settings.screening, h.duration_sec) == "fits"}
    if table.validation is not None:
        return table.validation & fits.keys()
    clips = {key: table.clips[key] for key in fits}
    pairs = [
        (clip.speaker, clips[reference].speaker)
        for key, clip in clips.items()
        for stored in clip.dialogues
        for reference in reference_keys(stored, key)
        if reference in clips
    ]
    lengths = [(clip.speaker, fits[key].duration_sec) for key, clip in clips.items()]
    held_out = held_out_speakers(lengths, pairs, settings.val_speakers, settings.seed)
    return {key for key, clip in clips.items() if clip.speaker in held_out}
