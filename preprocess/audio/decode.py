"""Audio files in, exactly the samples that Boson's codec would decode, all of them; 16 kHz FLAC out."""

import hashlib
import io
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from preprocess.audio.reader import (
    CANT_READ,
    Samples,
    not_audio,
    open_for_parts,
    read_part,
    read_whole,
    truncated,
    whole_sec,
)
from preprocess.common.errors import Rejected
from preprocess.common.files import cached_sha256

WAVEFORM_SAMPLE_RATE_HZ = 16000
NO_SUCH_FILE = "no such file"
_TOLERANCE_SEC = 0.01  # by which a part may be shorter than asked for
_ROUNDED_END_SEC = 0.05  # by which the end of a part may lie beyond the file: times rounded to a tenth of a second


@dataclass(frozen=True)
class Header:
    """What a file's header says; where it can't say, what its bytes hold.

    end_beyond_sec: by how much a part's end lies beyond the file, as rounded times do; the part ends with the file.
    """

    num_bytes: int
    duration_sec: float
    by_ffmpeg: bool = False
    end_beyond_sec: float = 0.0


@dataclass(frozen=True)
class Audio:
    """A decoded file: mono [samples] at the file's own sample rate, and the sha256 of the file.

    channel_difference: RMS of the difference of the first two channels over the RMS of the louder one; 0 for mono.
    """

    waveform: npt.NDArray[np.float32]
    sample_rate_hz: int
    sha256: str
    channel_difference: float = 0.0

    @property
    def duration_sec(self) -> float:
        return round(len(self.waveform) / self.sample_rate_hz, 6)


def probe(
    path: Path, start_sec: float | None = None, end_sec: float | None = None, data: bytes | None = None
) -> Header:
    """The header of an audio file; `duration_sec` is that of the part from `start_sec` to `end_sec`.

    data: the bytes of a file that is embedded in `path`. Raises Rejected for a missing, unreadable or empty file, for
    one without an audio header, and for a part that reaches beyond the audio.
    """
    num_bytes = _check_file(path, data)
    sec, by_ffmpeg = whole_sec(path, data, trust_header=start_sec is None and end_sec is None)
    first_sec, last_sec = _check_part(path, start_sec, end_sec, sec)
    return Header(num_bytes, last_sec - first_sec, by_ffmpeg, max((end_sec or 0.0) - sec, 0.0))


def _check_part(path: Path, start_sec: float | None, end_sec: float | None, file_sec: float) -> tuple[float, float]:
    """(start, end) of a part within `file_sec`. Raises Rejected for one that lies beyond it."""
    first_sec, last_sec = start_sec or 0.0, file_sec if end_sec is None else end_sec
    if (start_sec is not None and first_sec >= file_sec) or last_sec > file_sec + _ROUNDED_END_SEC:
        found = f"start {first_sec} s, end {last_sec} s"
        action = "Correct start and end (in seconds), or name the recording that they belong to."
        raise Rejected("failed", "part_outside", str(path), found, f"a part of its {file_sec:.2f} s", action)
    return first_sec, min(last_sec, file_sec)


def _check_file(path: Path, data: bytes | None) -> int:
    """The number of bytes of a file. Raises Rejected for one that is missing, unreadable or empty."""
    found = _why_unreadable(path)
    if found:
        action = "Correct the path, or name the folder that audio paths are relative to with --audio-root."
        raise Rejected("failed", "missing_file", str(path), found, "an audio file", action)
    num_bytes = path.stat().st_size if data is None else len(data)
    if num_bytes == 0:
        raise Rejected(
            "failed", "empty_file", str(path), "0 bytes", "an audio file", "Copy or record the file again."
        )
    return num_bytes


def _why_unreadable(path: Path) -> str | None:
    try:
        if not path.is_file():
            return NO_SUCH_FILE
    except OSError as error:  # a name that is too long, a folder that may not be entered
        return f"a path that can't be checked ({error.strerror})"
    return None if os.access(path, os.R_OK) else "a file that may not be read (permission denied)"


def decode(
    path: Path,
    start_sec: float | None = None,
    end_sec: float | None = None,
    data: bytes | None = None,
    channel: int | None = None,
) -> Audio:
    """The samples that `librosa.load(path, sr=None, mono=True)` returns, which are the ones that Boson encodes.

    Where librosa stops before the end of the audio, all of it. data: the bytes of a file that is embedded in `path`.
    With `start_sec` or `end_sec`, the samples from round(start_sec * rate) to round(end_sec * rate): of two adjacent
    parts each sample is in exactly one. The rest of the file is not read into memory. channel: use this one, from 0,
    instead of the mean of all. Raises Rejected for a file that is missing, empty, broken, cut short, without frames,
    or not finite, and for a part that reaches beyond the audio.
    """
    _check_file(path, data)
    if start_sec is None and end_sec is None:
        content = path.read_bytes() if data is None else data
        samples, sample_rate_hz = read_whole(path, content)
        sha256 = hashlib.sha256(content).hexdigest()
    elif data is None:
        samples, sample_rate_hz = _decode_part(path, start_sec, end_sec)
        sha256 = cached_sha256(path)  # cached: many clips may be parts of one file
    else:
        whole, sample_rate_hz = read_whole(path, data)
        first_sec, last_sec = _check_part(path, start_sec, end_sec, len(whole) / sample_rate_hz)
        samples = whole[round(first_sec * sample_rate_hz) : round(last_sec * sample_rate_hz)]
        sha256 = hashlib.sha256(data).hexdigest()
    if len(samples) == 0:
        raise not_audio(path, "0 samples")
    if not np.isfinite(samples).all():
        found, action = "samples that are NaN or infinite", "Save the file again as 16-bit PCM, or record it again."
        raise Rejected("failed", "not_finite", str(path), found, "finite samples", action)
    return Audio(_mono(path, samples, channel), sample_rate_hz, sha256, _channel_difference(samples))


def _decode_part(path: Path, start_sec: float | None, end_sec: float | None) -> tuple[Samples, int]:
    """(samples of a part, their rate in Hz)."""
    try:
        with open_for_parts(path, end_sec) as (file, file_sec):
            first_sec, last_sec = _check_part(path, start_sec, end_sec, file_sec)
            first, last = round(first_sec * file.samplerate), round(last_sec * file.samplerate)
            samples = read_part(file, first, last)
            missing_sec = (last - first - len(samples)) / file.samplerate
            if missing_sec > _TOLERANCE_SEC:
                found = f"{len(samples) / file.samplerate:.2f} s of audio from {first_sec} s on"
                raise truncated(path, found, f"{last_sec - first_sec:.2f} s")
            return samples, file.samplerate
    except soundfile.SoundFileError as error:
        raise not_audio(path, f"audio that breaks off while decoding ({error})") from error


def _mono(path: Path, samples: Samples, channel: int | None) -> npt.NDArray[np.float32]:
    """[samples]: the channel, or the mean of all."""
    num_channels = samples.shape[1]
    if channel is not None and channel >= num_channels:
        found, action = f"{num_channels} channels", "Correct the row's channel: the first is 0."
        raise Rejected("failed", "no_such_channel", str(path), found, f"channel {channel}", action)
    if channel is not None or num_channels == 1:
        return samples[:, channel or 0]
    mean: npt.NDArray[np.float32] = np.mean(samples.T, axis=0)  # as librosa.to_mono
    return mean


def _channel_difference(samples: Samples) -> float:
    """As in Audio, of [samples, channels]."""
    if samples.shape[1] == 1:
        return 0.0
    first, second = samples[:, 0], samples[:, 1]
    rms = [float(np.sqrt(np.mean(np.square(x, dtype=np.float64)))) for x in (first - second, first, second)]
    return rms[0] / max(*rms[1:], 1e-9)


def duration_if_longer(
    longest_sec: float,
    path: Path,
    start_sec: float | None = None,
    end_sec: float | None = None,
    data: bytes | None = None,
) -> float | None:
    """Seconds of a recording by its header if that is longer than `longest_sec`, else None.

    At most `longest_sec` and one more second are decoded, to check that the audio is really there. None too for a
    recording within that second and for one that does not decode: `decode` finds out.
    """
    header = probe(path, start_sec, end_sec, data)
    if header.duration_sec <= longest_sec + 1.0:
        return None
    if header.by_ffmpeg:
        return header.duration_sec
    try:
        with soundfile.SoundFile(str(path) if data is None else io.BytesIO(data)) as file:
            first, wanted = (round(sec * file.samplerate) for sec in (start_sec or 0.0, longest_sec + 1.0))
            return header.duration_sec if len(read_part(file, first, first + wanted)) == wanted else None
    except CANT_READ:
        return None


def flac_16khz(audio: Audio) -> bytes:
    """A FLAC file: 16 kHz, mono, 16 bits. The same samples give the same bytes."""
    pcm = np.clip(np.round(waveform_at_16khz(audio) * 32768.0), -32768, 32767).astype(np.int16)
    buffer = io.BytesIO()
    soundfile.write(buffer, pcm, WAVEFORM_SAMPLE_RATE_HZ, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def waveform_at_16khz(audio: Audio) -> npt.NDArray[np.float32]:
    """[samples] at 16 kHz, by soxr, the resampler that Boson's code uses through librosa."""
    waveform: npt.NDArray[np.float32] = soxr.resample(audio.waveform, audio.sample_rate_hz, WAVEFORM_SAMPLE_RATE_HZ)
    return waveform
