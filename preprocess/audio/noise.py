"""A recording spoilt by noise and a room, for references from which a voice is learned in poor conditions too."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import soxr
import torch
import torchaudio

from preprocess.audio.decode import Audio, decode, probe
from preprocess.common.errors import Rejected


@dataclass(frozen=True)
class Augmentation:
    """How a noisy copy of a clip is made. Files are named under their folder; without one, made from `seed`."""

    seed: int
    snr_db: float
    noise: str | None = None
    noise_sha256: str | None = None
    noise_start_sec: float = 0.0
    response: str | None = None
    response_sha256: str | None = None


_DECAY_SEC = 0.1, 0.6  # RT60 of a made-up room: seconds until its echo is 60 dB down


_DIRECT_TO_ECHO_DB = 0.0, 10.0


_COLOUR = 0.0, 2.0  # power of made-up noise falls with frequency to this power: white to brown


_HIGHEST_PEAK = 0.99


_SILENT_RMS = 1e-5


def augment(audio: Audio, how: Augmentation, noise: Path | None, room_responses: Path | None) -> Audio:
    """The recording in a room, with noise: as long and, but for the noise, as loud as it is; the peak at most 0.99.

    The signal-to-noise ratio is that of the mean powers over the whole clip. Raises Rejected where the chosen part
    of the noise is silent or does not decode.

    noise, room_responses: the folders of the files that `how` names.
    """
    rate_hz = audio.sample_rate_hz
    rng = np.random.default_rng(how.seed)
    if how.response:
        response = _resampled(decode(room_responses / how.response), rate_hz)
        response = response[np.argmax(np.abs(response)) :]  # from the direct sound on: nothing is delayed
    else:
        response = _made_up_room(rng, rate_hz)
    level = _rms(audio.waveform)
    speech = _at_level(_convolve(audio.waveform, response), level)
    if how.noise:
        added = _part_of_noise(noise / how.noise, how.noise_start_sec, audio)
    else:
        added = _coloured_noise(rng, len(speech))
    snr_db = torch.tensor(how.snr_db, dtype=torch.float64)
    mixed = torchaudio.functional.add_noise(_tensor(speech), _tensor(added), snr_db).numpy()
    mixed *= min(1.0, _HIGHEST_PEAK / max(np.abs(mixed).max(), _HIGHEST_PEAK))
    return replace(audio, waveform=mixed.astype(np.float32))


def _part_of_noise(path: Path, start_sec: float, audio: Audio) -> np.ndarray:
    """float64 [samples] from `start_sec` on, at the audio's rate and as long; short noise is repeated."""
    end_sec = min(start_sec + audio.duration_sec, probe(path).duration_sec)
    noise = _resampled(decode(path, start_sec, end_sec), audio.sample_rate_hz)
    if _rms(noise) < _SILENT_RMS:
        found = f"silence from {start_sec} to {end_sec:.3f} s"
        raise Rejected("screened", "silent_noise", str(path), found, "noise", "Cut the silence out of the noise.")
    return np.resize(noise, len(audio.waveform))


def _made_up_room(rng: np.random.Generator, rate_hz: int) -> np.ndarray:
    """The direct sound and an echo: white noise that decays exponentially."""
    decay_sec, ratio_db = rng.uniform(*_DECAY_SEC), rng.uniform(*_DIRECT_TO_ECHO_DB)
    time_sec = np.arange(1, round(decay_sec * rate_hz)) / rate_hz
    echo = rng.normal(size=len(time_sec)) * 10 ** (-3 * time_sec / decay_sec)
    return np.concatenate([[1.0], echo * 10 ** (-ratio_db / 20) / np.sqrt(np.sum(echo**2))])


def _coloured_noise(rng: np.random.Generator, num_samples: int) -> np.ndarray:
    spectrum = np.fft.rfft(rng.normal(size=num_samples))
    spectrum[0] = 0.0
    spectrum[1:] *= np.arange(1, len(spectrum)) ** (-rng.uniform(*_COLOUR) / 2)
    return np.fft.irfft(spectrum, num_samples)


def _convolve(waveform: np.ndarray, response: np.ndarray) -> np.ndarray:
    """float64, as long as the waveform."""
    # torchaudio transforms as many samples as come out: of a power of two that is many times faster.
    size = 1 << (len(waveform) + len(response) - 2).bit_length()
    response = np.pad(response, (0, size + 1 - len(waveform) - len(response)))
    convolved = torchaudio.functional.fftconvolve(_tensor(waveform), _tensor(response))
    return convolved[: len(waveform)].numpy()


def _tensor(waveform: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(waveform.astype(np.float64))


def _resampled(audio: Audio, rate_hz: int) -> np.ndarray:
    return soxr.resample(audio.waveform, audio.sample_rate_hz, rate_hz).astype(np.float64)


def _rms(waveform: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(waveform, dtype=np.float64))))


def _at_level(waveform: np.ndarray, rms: float) -> np.ndarray:
    return waveform * (rms / max(_rms(waveform), 1e-12))
