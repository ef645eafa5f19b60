"""Whose voice a clip is in, as Resemblyzer hears it: clips that sound unlike the others of their speaker are dropped.

A clip's voice is measured as it is encoded; which clips are someone else's is decided once all shards are made.
Resemblyzer's weights are in its wheel: nothing is downloaded. bench/human_speech.py measures what the constants are
worth.
"""

import base64
import functools
from typing import TYPE_CHECKING

import numpy as np

from preprocess.audio.decode import Audio

if TYPE_CHECKING:
    from resemblyzer import VoiceEncoder

_RATE_HZ = 16000
# Resemblyzer listens through windows of 1.6 s: of what is shorter than this, a voice's own clips scatter too far.
_SHORTEST_SEC = 2.0


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


def embed_voice(audio: Audio) -> str | None:
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
