"""The stored 16 kHz waveforms are those of Boson's own resampler."""

import math

import librosa
import numpy as np
import pytest

from preprocess.audio.decode import WAVEFORM_SAMPLE_RATE_HZ, Audio, waveform_at_16khz


@pytest.mark.parametrize("rate_hz", [8000, 16000, 22050, 24000, 32000, 44100, 48000])
def test_the_16_khz_waveform_equals_bosons_bit_for_bit(rate_hz):
    """Before it is rounded to 16 bits. Boson's code resamples waveforms for the audio tower and the semantic model
    with librosa.resample, whose default is soxr_hq; torchaudio's resampler has another filter and other samples.
    Where the exact length is not a whole number, librosa may put one zero after the last sample."""
    rng = np.random.default_rng(rate_hz)
    for num_samples in (1, 2, 479, 480, 35_999, rate_hz, rate_hz * 3 + 7):
        waveform = rng.normal(0, 0.1, num_samples).astype(np.float32)
        bosons = librosa.resample(waveform, orig_sr=rate_hz, target_sr=WAVEFORM_SAMPLE_RATE_HZ)
        ours = waveform_at_16khz(Audio(waveform, rate_hz, ""))
        assert ours.dtype == bosons.dtype == np.float32
        assert np.array_equal(ours, bosons[: len(ours)]), num_samples
        assert bosons[len(ours) :].tolist() in ([], [0.0]), num_samples
        assert len(bosons) == math.ceil(num_samples * WAVEFORM_SAMPLE_RATE_HZ / rate_hz)
