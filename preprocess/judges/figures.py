"""Figures of a clip's quality, for screening, the index and the report.

rms_dbfs, peak                 level of the decoded samples; a full-scale square wave has 0 dBFS and peak 1
clipped_share                  share of samples at 0.99 of full scale or beyond
silence_share                  share of 20 ms frames that are silent: 40 dB below the loudest (the 99th percentile of
                               the frames' levels), or below -60 dBFS
leading_, trailing_silence_sec before the first and after the last frame that is not silent
bandwidth_hz                   the highest frequency that is ever within 50 dB of the loudest one: about 4,000 for a
                               telephone recording, whatever the sample rate of its file
channel_difference             RMS of the difference of the file's first two channels, over that of the louder one
letters_per_sec, arabic_share  of the normalised transcript; seconds without leading and trailing silence
code_entropy_bits              entropy of the codes, mean over codebooks; at most log2(frames)
speech_share                   share of 32 ms windows in which silero-vad finds speech; only where screening needs it
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from preprocess.audio.decode import Audio
from preprocess.corpus.text import arabic_share, num_letters

_FRAME_SEC, _SILENT_BELOW_LOUDEST_DB, _SILENT_DBFS = 0.02, 40.0, -60.0
_CLIPPED_FROM, _FLOOR_DBFS = 0.99, -120.0
_BAND_HZ, _BAND_BELOW_LOUDEST_DB = 100.0, 50.0


def text_figures(text: str, spoken_sec: float) -> dict[str, float]:
    """letters_per_sec and arabic_share of a normalised transcript whose speech takes `spoken_sec`."""
    return {
        "letters_per_sec": round(num_letters(text) / max(spoken_sec, _FRAME_SEC), 4),
        "arabic_share": round(arabic_share(text), 4),
    }


def audio_figures(audio: Audio) -> dict[str, float]:
    """The figures above that need only the decoded samples, all but speech_share."""
    waveform, magnitude = audio.waveform, np.abs(audio.waveform)
    silent = _silent_frames(audio)
    num_frames, sounding = len(silent), np.flatnonzero(~silent)
    leading, trailing = (sounding[0], num_frames - 1 - sounding[-1]) if len(sounding) else (num_frames, num_frames)
    figures = {
        "rms_dbfs": _dbfs(np.mean(np.square(waveform, dtype=np.float64))),
        "peak": magnitude.max(),
        "clipped_share": np.mean(magnitude >= _CLIPPED_FROM),
        "silence_share": 1 - len(sounding) / num_frames,
        "leading_silence_sec": leading * _FRAME_SEC,
        "trailing_silence_sec": trailing * _FRAME_SEC,
        "bandwidth_hz": bandwidth_hz(audio),
        "channel_difference": audio.channel_difference,
    }
    return {name: round(float(value), 4) for name, value in figures.items()}


def code_entropy_bits(codes: npt.NDArray[np.integer[Any]]) -> float:
    """Shannon entropy in bits of codes [codebooks, frames], mean over codebooks."""
    bits = []
    for codebook in codes:
        share = np.unique(codebook, return_counts=True)[1] / codes.shape[1]
        bits.append(-np.sum(share * np.log2(share)))
    return round(float(np.mean(bits)), 4)


def _split_into_frames(audio: Audio) -> npt.NDArray[np.float32]:
    """[frames, samples], 20 ms per frame; an incomplete last frame is left out unless it is the only one."""
    size = max(round(_FRAME_SEC * audio.sample_rate_hz), 1)
    whole = len(audio.waveform) // size
    return audio.waveform[: whole * size].reshape(whole, size) if whole else audio.waveform[None]


def _dbfs(power: npt.ArrayLike) -> npt.NDArray[np.float64]:
    level: npt.NDArray[np.float64] = 10 * np.log10(np.maximum(power, 10 ** (_FLOOR_DBFS / 10)))
    return level


def _silent_frames(audio: Audio) -> npt.NDArray[np.bool_]:
    """Whether each frame [frames] is silent."""
    level = _dbfs(np.mean(np.square(_split_into_frames(audio), dtype=np.float64), axis=1))
    return level < max(np.percentile(level, 99) - _SILENT_BELOW_LOUDEST_DB, _SILENT_DBFS)


def bandwidth_hz(audio: Audio) -> float:
    """The upper edge in Hz of the highest band within 50 dB of the loudest; 0 for a clip under 40 ms or all zeros.

    A band is 100 Hz wide; its strength is the power that it exceeds in 2 % of the frames, since not every sound
    reaches the high frequencies.
    """
    size = 2 * round(_FRAME_SEC * audio.sample_rate_hz)  # 25 Hz per bin
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
    near_loudest = strength >= strength.max() * 10 ** (-_BAND_BELOW_LOUDEST_DB / 10)
    return float((np.flatnonzero(near_loudest)[-1] + 1) * _BAND_HZ)
