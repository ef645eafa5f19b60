"""Which voices are held out for validation."""

import hashlib
import statistics
from collections import Counter
from collections.abc import Iterable


def held_out_speakers(
    clips: Iterable[tuple[str, float]], pairs: Iterable[tuple[str, str]], val_speakers: str, seed: int
) -> set[str]:
    """Speakers drawn by seed among voices with two clips or more and no more audio than the median voice.

    clips: (speaker, seconds) of each clip in use. pairs: speakers that one dialogue brings together, as target and
    reference: they count as one voice, so that no held-out voice is heard in training. val_speakers: a number of
    voices ("3"), or a share of them with a point ("0.02": at least one where there are three or more).
    """
    clips = list(clips)
    voice = {speaker: speaker for speaker, _ in clips}

    def find(speaker: str) -> str:
        while voice[speaker] != speaker:
            speaker = voice[speaker]
        return speaker

    for target, reference in pairs:
        one, other = sorted((find(target), find(reference)))
        voice[other] = one

    seconds, num_clips = Counter(), Counter()
    for speaker, duration_sec in clips:
        seconds[find(speaker)] += duration_sec
        num_clips[find(speaker)] += 1
    median_sec = statistics.median(seconds.values()) if seconds else 0.0
    candidates = [name for name in seconds if num_clips[name] >= 2 and seconds[name] <= median_sec]
    candidates.sort(key=lambda name: hashlib.sha256(f"{seed}:val:{name}".encode()).digest())
    held_out = set(candidates[: _number_of_voices(val_speakers, len(seconds))])
    return {speaker for speaker in voice if find(speaker) in held_out}


def _number_of_voices(val_speakers: str, num_voices: int) -> int:
    if "." not in val_speakers:
        return int(val_speakers)
    share = float(val_speakers)
    return max(int(share * num_voices), 1 if share > 0 and num_voices >= 3 else 0)
