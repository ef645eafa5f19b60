"""Whose voice a clip is in, as Resemblyzer hears it: clips that sound unlike the others of their speaker are dropped.

A clip's voice is measured as it is encoded; which clips are someone else's is decided once all shards are made.
Resemblyzer's weights are in its wheel: nothing is downloaded. bench/human_speech.py measures what the constants are
worth.
"""

import base64
import functools
from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

from preprocess.audio import Audio
from preprocess.clips import ClipPlan
from preprocess.errors import Rejected
from preprocess.screening import Screening, screen

if TYPE_CHECKING:
    from resemblyzer import VoiceEncoder

_RATE_HZ = 16000
# Resemblyzer listens through windows of 1.6 s: of what is shorter than this, a voice's own clips scatter too far.
_SHORTEST_SEC = 2.0
# And the mean of fewer clips than this is not yet a voice.
_FEWEST_CLIPS = 5
_MAX_ROUNDS = 5


@functools.cache
def load_encoder() -> "VoiceEncoder":
    """Resemblyzer's network; loaded once a process, so a forked worker finds its parent's.

    The BLAS gets one thread, as torch has: it multiplies librosa's mel filters, and for so little a thread a core in
    each of as many workers would spin for nothing. Workers that are forked from here keep that.
    """
    import threadpoolctl
    from resemblyzer import VoiceEncoder, audio

    _ = audio.librosa.feature.melspectrogram  # librosa imports its parts on first use
    threadpoolctl.threadpool_limits(1, "blas")
    return VoiceEncoder("cpu", verbose=False)


def voice_of(audio: Audio) -> str | None:
    """A clip's voice: Resemblyzer's embedding [256], none of it negative, as base64 of 8 bits a value.

    None where less than 2 s are left once its own detector (WebRTC's) has cut out silence. 8 bits move a similarity
    by less than 0.001. The same samples give the same voice.
    """
    from resemblyzer import preprocess_wav

    if not audio.waveform.any():
        return None
    speech = preprocess_wav(audio.waveform, audio.sample_rate_hz)
    if len(speech) < _SHORTEST_SEC * _RATE_HZ:
        return None
    embedding = load_encoder().embed_utterance(speech)
    return base64.b64encode(np.round(embedding * (255 / embedding.max())).astype(np.uint8).tobytes()).decode()


def speaker_similarities(rows: dict[str, dict], threshold: float) -> dict[str, float]:
    """By key: the cosine, 0 to 1, of a clip's `voice` with the mean voice of its speaker's other clips.

    The mean is of the clips at or above the threshold, found in a few rounds, so that some strangers don't vouch for
    one another. Clips without a voice, and speakers with fewer than 5 clips that have one, have no similarity.
    """
    keys_of = defaultdict(list)
    for key in sorted(rows):
        if rows[key].get("voice"):
            keys_of[rows[key]["speaker"]].append(key)
    similarities = {}
    for keys in keys_of.values():
        if len(keys) >= _FEWEST_CLIPS:
            voices = np.stack([_read(rows[key]["voice"]) for key in keys])
            similarities |= dict(zip(keys, _compare(voices, threshold).round(4).tolist(), strict=True))
    return similarities


def _read(voice: str) -> np.ndarray:
    values = np.frombuffer(base64.b64decode(voice), np.uint8).astype(np.float64)
    return values / np.sqrt(np.square(values).sum())


def _compare(voices: np.ndarray, threshold: float) -> np.ndarray:
    """[clips] for voices [clips, 256]. Sums are numpy's own, not a BLAS's, which depend on its threads."""
    kept = np.ones(len(voices), dtype=bool)
    for _ in range(_MAX_ROUNDS):
        others = voices[kept].sum(axis=0) - voices * kept[:, None]  # a clip does not vouch for itself
        similarity = (voices * others).sum(axis=1) / np.sqrt(np.square(others).sum(axis=1))
        alike = similarity >= threshold
        if alike.sum() < 2 or (alike == kept).all():
            break
        kept = alike
    return similarity


def other_voices(rows: dict[str, dict], clips: dict[str, ClipPlan], screening: Screening) -> dict[str, Rejected]:
    """Clips that sound unlike their speaker's others, and what their rows are told; writes `speaker_similarity`.

    The column is None where a clip has no similarity, or the screening does not ask for it.
    """
    strangers, similarities = {}, {}
    if screening.min_speaker_similarity is not None:
        similarities = speaker_similarities(rows, screening.min_speaker_similarity)
    for key, row in rows.items():
        row["speaker_similarity"] = similarities.get(key)
        try:
            screen(screening, {"speaker_similarity": row["speaker_similarity"]}, clips[key].source)
        except Rejected as error:
            strangers[key] = error
    return strangers
