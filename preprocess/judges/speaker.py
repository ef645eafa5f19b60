"""Voice embeddings by Resemblyzer, to drop clips that sound unlike the other clips of their speaker.

A clip's voice is measured as it is encoded; preprocess.finish.speaker_outliers decides once all shards are made.
Resemblyzer's weights are in its wheel: nothing is downloaded. bench/human_speech.py measures how well the constants
do.
"""

import base64
import functools
from typing import TYPE_CHECKING

import numpy as np

from preprocess.audio.decode import Audio

if TYPE_CHECKING:
    from resemblyzer import VoiceEncoder

_RATE_HZ = 16000
# Resemblyzer's windows last 1.6 s: below this length the clips of one voice scatter too far.
_SHORTEST_SEC = 2.0


@functools.cache
def load_encoder() -> "VoiceEncoder":
    """Resemblyzer's network, loaded once per process; a forked worker inherits it.

    BLAS is limited to one thread, as torch is, here and in workers forked from here: it only multiplies librosa's mel
    filters, and with one worker per core further threads would spin for nothing.
    """
    import threadpoolctl
    from resemblyzer import VoiceEncoder, audio

    _ = audio.librosa.feature.melspectrogram  # librosa imports its parts on first use
    threadpoolctl.threadpool_limits(1, "blas")
    return VoiceEncoder("cpu", verbose=False)


def embed_voice(audio: Audio) -> str | None:
    """Resemblyzer's embedding [256] of a clip, in base64; None for less than 2 s of speech.

    The values, none of them negative, are stored in 8 bits each, which changes a similarity by less than 0.001.
    Speech is what Resemblyzer's own detector (WebRTC's) leaves. The same samples give the same embedding.
    """
    from resemblyzer import preprocess_wav

    if not audio.waveform.any():
        return None
    speech = preprocess_wav(audio.waveform, audio.sample_rate_hz)
    if len(speech) < _SHORTEST_SEC * _RATE_HZ:
        return None
    embedding = load_encoder().embed_utterance(speech)
    return base64.b64encode(np.round(embedding * (255 / embedding.max())).astype(np.uint8).tobytes()).decode()
