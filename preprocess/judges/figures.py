"""Figures of a clip's quality: what screening decides by, and what the index and the report keep.

rms_dbfs, peak                 level of the decoded samples; a full-scale square wave has 0 dBFS and peak 1
clipped_share                  share of samples at 0.99 of full scale or beyond
silence_share                  share of 20 ms frames that are silent: 40 dB below the loudest (the 99th percentile of
                               the frames' levels), or below -60 dBFS
leading_, trailing_silence_sec before the first and after the last frame that is not silent
bandwidth_hz                   the highest frequency that is ever within 50 dB of the loudest one: some 4,000 for a
                               telephone recording, whatever the sample rate of its file
letters_per_sec, arabic_share  of the normalised transcript; seconds without leading and trailing silence
code_entropy_bits              entropy of the codes, mean over codebooks; at most log2(frames)
speech_share                   share of 32 ms windows in which silero-vad hears speech; measured where it is asked for
"""

import numpy as np

from preprocess.audio.decode import Audio
from preprocess.corpus.text import arabic_share, num_letters

_FRAME_SEC, _SILENT_BELOW_LOUDEST_DB, _SILENT_DBFS = 0.02, 40.0, -60.0
_CLIPPED_FROM, _FLOOR_DBFS = 0.99, -120.0
_BAND_HZ, _BAND_BELOW_LOUDEST_DB = 100.0, 50.0


def text_figures(text: str, spoken_sec: float) -> dict[str, float]:
    """Figures of a normalised transcript that is spoken in `spoken_sec`."""
    return {
        "letters_per_sec": round(num_letters(text) / max(spoken_sec, _FRAME_SEC), 4),
        "arabic_share": round(arabic_share(text), 4),
    }


def audio_figures(audio: Audio) -> dict[str, float]:
    """Figures of a decoded file, all but those of its text and its codes."""
    waveform, magnitude = audio.waveform, np.abs(audio.waveform)
    sounding = np.flatnonzero(~_silent_frames(audio))
    num_frames = _frames(audio).shape[0]
    leading, trailing = (sounding[0], num_frames - 1 - sounding[-1]) if len(sounding) else (num_frames, num_frames)
    figures = {
        "rms_dbfs": _dbfs(np.mean(np.square(waveform, dtype=np.float64))),
        "peak": magnitude.max(),
        "clipped_share": np.mean(magnitude >= _CLIPPED_FROM),
        "silence_share": 1 - len(sounding) / num_frames,
        "leading_silence_sec": leading * _FRAME_SEC,
        "trailing_silence_sec": trailing * _FRAME_SEC,
        "bandwidth_hz": bandwidth_hz(audio),
    }
    return {name: round(float(value), 4) for name, value in figures.items()}


def code_entropy_bits(codes: np.ndarray) -> float:
    """Shannon entropy of codes [codebooks, frames], mean over codebooks."""
    bits = []
    for codebook in codes:
        share = np.unique(codebook, return_counts=True)[1] / codes.shape[1]
        bits.append(-np.sum(share * np.log2(share)))
    return round(float(np.mean(bits)), 4)


def _frames(audio: Audio) -> np.ndarray:
    """[frames, samples] of 20 ms; an incomplete last frame is left out unless it is the only one."""
    size = max(round(_FRAME_SEC * audio.sample_rate_hz), 1)
    whole = len(audio.waveform) // size
    return audio.waveform[: whole * size].reshape(whole, size) if whole else audio.waveform[None]


def _dbfs(power: float | np.ndarray) -> np.ndarray:
    return 10 * np.log10(np.maximum(power, 10 ** (_FLOOR_DBFS / 10)))


def _silent_frames(audio: Audio) -> np.ndarray:
    level = _dbfs(np.mean(np.square(_frames(audio), dtype=np.float64), axis=1))
    return level < max(np.percentile(level, 99) - _SILENT_BELOW_LOUDEST_DB, _SILENT_DBFS)


def bandwidth_hz(audio: Audio) -> float:
    """Upper edge of the highest 100 Hz band that comes, in the strongest 2 % of the frames, near the loudest band."""
    size = 2 * round(_FRAME_SEC * audio.sample_rate_hz)  # 25 Hz a bin
    if len(audio.waveform) < size:
        return 0.0
    frames = np.lib.stride_tricks.sliding_window_view(audio.waveform, size)[:: size // 2]
    power = np.square(np.abs(np.fft.rfft(frames * np.hanning(size).astype(np.float32), axis=1)))
    bins = round(_BAND_HZ * size / audio.sample_rate_hz)
    num_bands = power.shape[1] // bins
    bands = power[:, : num_bands * bins].reshape(len(power), num_bands, bins).mean(axis=2)
    strength = np.percentile(bands, 98, axis=0)
    if strength.max() <= 0:
        return 0.0
    return float(
        (np.flatnonzero(strength >= strength.max() * 10 ** (-_BAND_BELOW_LOUDEST_DB / 10))[-1] + 1) * _BAND_HZ
    )
