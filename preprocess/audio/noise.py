"""Noise and room echo for a recording: a noisy reference teaches the model to clone from poor recordings too."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soxr
import torch
import torchaudio

from preprocess.audio.decode import Audio, decode, probe
from preprocess.common.errors import Rejected

Samples = npt.NDArray[np.float64]  # [samples]


@dataclass(frozen=True)
class Augmentation:
    """How a noisy copy of a clip is made.

    noise, response: file names in the folders of --noise and --room-responses; None: made up from `seed`.
    """

    seed: int
    snr_db: float
    noise: str | None = None
    noise_sha256: str | None = None
    noise_start_sec: float = 0.0
    response: str | None = None
    response_sha256: str | None = None


_DECAY_SEC = 0.1, 0.6  # RT60 of a made-up room: seconds until its echo is 60 dB down
_DIRECT_TO_ECHO_DB = 0.0, 10.0
_COLOUR = 0.0, 2.0  # the power of made-up noise falls with frequency to this exponent: white to brown noise
_HIGHEST_PEAK = 0.99
_SILENT_RMS = 1e-5


def augment(audio: Audio, how: Augmentation, noise: Path | None, room_responses: Path | None) -> Audio:
    """The recording in a room, with noise: of the same length, the speech as loud as before, the peak at most 0.99.

    noise, room_responses: the folders of the files that `how` names. The signal-to-noise ratio compares mean powers
    over the whole clip. Raises Rejected where the chosen part of the noise is silent or does not decode.
    """
    rate_hz = audio.sample_rate_hz
    rng = np.random.default_rng(how.seed)
    if how.response:
        response = _resample(decode(_path_in(room_responses, how.response)), rate_hz)
        response = response[np.argmax(np.abs(response)) :]  # starts at the direct sound: adds no delay
    else:
        response = _made_up_room(rng, rate_hz)
    speech = _convolve(audio.waveform, response)
    speech = speech * (_rms(audio.waveform) / max(_rms(speech), 1e-12))
    if how.noise:
        added = _part_of_noise(_path_in(noise, how.noise), how.noise_start_sec, audio)
    else:
        added = _coloured_noise(rng, len(speech))
    mixed = speech
    if added.any():  # the made-up noise of a single sample is 0
        snr_db = torch.tensor(how.snr_db, dtype=torch.float64)
        mixed = torchaudio.functional.add_noise(_tensor(speech), _tensor(added), snr_db).numpy()
    mixed *= min(1.0, _HIGHEST_PEAK / max(np.abs(mixed).max(), _HIGHEST_PEAK))
    return replace(audio, waveform=mixed.astype(np.float32))


def _path_in(folder: Path | None, name: str) -> Path:
    assert folder, name
    return folder / name


def _part_of_noise(path: Path, start_sec: float, audio: Audio) -> Samples:
    """The noise from `start_sec` on, in the audio's rate and length; short noise is repeated."""
    end_sec = min(start_sec + audio.duration_sec, probe(path).duration_sec)
    noise = _resample(decode(path, start_sec, end_sec), audio.sample_rate_hz)
    if _rms(noise) < _SILENT_RMS:
        found = f"silence from {start_sec} to {end_sec:.3f} s"
        raise Rejected("screened", "silent_noise", str(path), found, "noise", "Cut the silence out of the noise.")
    return np.resize(noise, len(audio.waveform))


def _made_up_room(rng: np.random.Generator, rate_hz: int) -> Samples:
    """An impulse response: the direct sound, then as echo white noise that decays exponentially."""
    decay_sec, ratio_db = rng.uniform(*_DECAY_SEC), rng.uniform(*_DIRECT_TO_ECHO_DB)
    time_sec = np.arange(1, round(decay_sec * rate_hz)) / rate_hz
    echo = rng.normal(size=len(time_sec)) * 10 ** (-3 * time_sec / decay_sec)
    return np.concatenate([[1.0], echo * 10 ** (-ratio_db / 20) / np.sqrt(np.sum(echo**2))])


def _coloured_noise(rng: np.random.Generator, num_samples: int) -> Samples:
    """Noise whose power falls with frequency to a random exponent of _COLOUR."""
    spectrum = np.fft.rfft(rng.normal(size=num_samples))
    spectrum[0] = 0.0
    spectrum[1:] *= np.arange(1, len(spectrum)) ** (-rng.uniform(*_COLOUR) / 2)
    return np.fft.irfft(spectrum, num_samples)


def _convolve(waveform: npt.NDArray[Any], response: Samples) -> Samples:
    """The waveform with the room's echo, as long as before."""
    # torchaudio's FFT has as many samples as the result: with a power of two it is many times faster.
    size = 1 << (len(waveform) + len(response) - 2).bit_length()
    response = np.pad(response, (0, size + 1 - len(waveform) - len(response)))
    convolved = torchaudio.functional.fftconvolve(_tensor(waveform), _tensor(response))
    result: Samples = convolved[: len(waveform)].numpy()
    return result


def _tensor(waveform: npt.NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(waveform.astype(np.float64))


def _resample(audio: Audio, rate_hz: int) -> Samples:
    samples: npt.NDArray[np.float32] = soxr.resample(audio.waveform, audio.sample_rate_hz, rate_hz)
    return samples.astype(np.float64)


def _rms(waveform: npt.NDArray[Any]) -> float:
    return float(np.sqrt(np.mean(np.square(waveform, dtype=np.float64))))
