"""Where speech is, as silero-vad hears it. Its weights are in its wheel: nothing is downloaded."""

import functools

import numpy as np
import soxr
import torch

from preprocess.audio.decode import Audio

_RATE_HZ = 16000
_SPEECH_FROM = 0.5  # silero's own threshold
_WINDOW_SAMPLES = 512
# Silence that it hears first: without, it misses the beginning, and of a word of half a second all of it.
_LEAD_WINDOWS = 16


@functools.cache
def load_detector() -> torch.jit.ScriptModule:
    """silero-vad; loaded once a process, so a forked worker finds its parent's."""
    from silero_vad import load_silero_vad  # sets torch's threads to 1 as it is imported

    return load_silero_vad()


def speech_share(audio: Audio) -> float:
    """The share of 32 ms windows in which silero-vad hears speech, 0 to 1. The same samples give the same share."""
    waveform = soxr.resample(audio.waveform, audio.sample_rate_hz, _RATE_HZ).astype(np.float32)
    heard = torch.from_numpy(np.pad(waveform, (_LEAD_WINDOWS * _WINDOW_SAMPLES, 0)))
    # The profiling executor of TorchScript compiles after a few calls, and rounds otherwise from then on.
    with torch.inference_mode(), torch.jit.optimized_execution(False):
        probability = load_detector().audio_forward(heard, _RATE_HZ)  # [1, windows]; forgets earlier clips
    return round((probability[:, _LEAD_WINDOWS:] > _SPEECH_FROM).float().mean().item(), 4)
