"""The share of a clip that is speech, by silero-vad. Its weights are in its wheel: nothing is downloaded."""

import functools

import numpy as np
import torch

from preprocess.audio.decode import WAVEFORM_SAMPLE_RATE_HZ, Audio, waveform_at_16khz

_SPEECH_FROM = 0.5  # silero's own threshold
_WINDOW_SAMPLES = 512
# Silence put before each clip: without it silero-vad misses the beginning, and all of a half-second word.
_LEAD_WINDOWS = 16


@functools.cache
def load_detector() -> torch.jit.ScriptModule:
    """silero-vad's network, loaded once per process; a forked worker inherits it."""
    from silero_vad import load_silero_vad  # importing it sets torch's threads to 1

    detector: torch.jit.ScriptModule = load_silero_vad()
    return detector


def speech_share(audio: Audio) -> float:
    """The share of 32 ms windows in which silero-vad finds speech, 0 to 1. The same samples give the same share."""
    padded = torch.from_numpy(np.pad(waveform_at_16khz(audio), (_LEAD_WINDOWS * _WINDOW_SAMPLES, 0)))
    # TorchScript's profiling executor compiles after a few calls, and then rounds differently.
    with torch.inference_mode(), torch.jit.optimized_execution(False):  # type: ignore[attr-defined]  # not in __all__
        # [1, windows]; audio_forward resets the detector's state
        probability = load_detector().audio_forward(padded, WAVEFORM_SAMPLE_RATE_HZ)
    return round(float((probability[:, _LEAD_WINDOWS:] > _SPEECH_FROM).float().mean()), 4)
