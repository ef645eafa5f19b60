"""Audio files in, exactly the samples Boson's codec would decode; 16 kHz FLAC out.

libsndfile decodes half of a file without an error, so the length in each file's header is compared with what decodes.
A file's extension does not matter: libsndfile reads the header.
"""

import hashlib
import io
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from preprocess.audio import ffmpeg
from preprocess.common.errors import Rejected
from preprocess.common.files import cached_sha256

WAVEFORM_SAMPLE_RATE_HZ = 16000
NO_SUCH_FILE = "no such file"
_TOLERANCE_SEC = 0.01  # by which a file may be shorter than its header says: encoders pad, and headers round
_ENCODER_PADDING_SEC = 0.1  # by which a file that ffmpeg reads may be shorter still
_STREAMED_BYTES = 0x7FFF0000  # a program that streams writes at least this as data size: it can't know the size
_MP3_RUN_UP_FRAMES = 32 * 1152
# libsndfile's own log, for WAV, AIFF and AU: "data : 121162 (should be 60559)"
_DATA_SIZES = re.compile(r"^\s*(?:data|SSND|Data Size)\s*:\s*(\d+) \(should be (\d+)\)", re.MULTILINE)


@dataclass(frozen=True)
class Header:
    """What a file's header says. For MP3 without a length tag `duration_sec` is libsndfile's guess.

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
    found = _why_unreadable(path)
    if found:
        action = "Correct the path, or name the folder that audio paths are relative to with --audio-root."
        raise Rejected("failed", "missing_file", str(path), found, "an audio file", action)
    num_bytes = path.stat().st_size if data is None else len(data)
    if num_bytes == 0:
        raise Rejected(
            "failed", "empty_file", str(path), "0 bytes", "an audio file", "Copy or record the file again."
        )
    try:
        info = soundfile.info(_source(path, data))
    except soundfile.LibsndfileError as error:
        if data is None and ffmpeg.find_container(path):
            return _probe_by_ffmpeg(path, start_sec, end_sec)
        raise _not_audio(path, f"no audio that libsndfile can open ({error.error_string})") from error
    duration_sec = info.frames / info.samplerate
    if (start_sec or 0.0) > duration_sec or (end_sec or 0.0) > duration_sec + _TOLERANCE_SEC:
        found = f"start {start_sec or 0.0} s, end {end_sec if end_sec is not None else duration_sec} s"
        action = "Correct start and end (in seconds), or name the recording that they belong to."
        raise Rejected("failed", "part_outside", str(path), found, f"a part of its {duration_sec:.2f} s", action)
    end_sec = duration_sec if end_sec is None else min(end_sec, duration_sec)
    return Header(num_bytes, end_sec - (start_sec or 0.0))


def _source(path: Path, data: bytes | None) -> str | io.BytesIO:
    return str(path) if data is None else io.BytesIO(data)


def _why_unreadable(path: Path) -> str | None:
    try:
        if not path.is_file():
            return NO_SUCH_FILE
    except OSError as error:  # a name that is too long, a folder that may not be entered
        return f"a path that can't be checked ({error.strerror})"
    return None if os.access(path, os.R_OK) else "a file that may not be read (permission denied)"


def _probe_by_ffmpeg(path: Path, start_sec: float | None, end_sec: float | None) -> Header:
    duration_sec = ffmpeg.read_duration_sec(path)
    if start_sec is not None or end_sec is not None:
        found = f"start or end, in {ffmpeg.find_container(path)} audio"
        expected = "parts of a format that can be read from the middle"
        action = "Convert the recording first (`ffmpeg -i FILE FILE.flac`)."
        raise Rejected("failed", "part_of_compressed", str(path), found, expected, action)
    return Header(path.stat().st_size, duration_sec, by_ffmpeg=True)


def decode(
    path: Path,
    start_sec: float | None = None,
    end_sec: float | None = None,
    data: bytes | None = None,
    channel: int | None = None,
) -> Audio:
    """The samples that `librosa.load(path, sr=None, mono=True)` returns, which are the ones that Boson encodes.

    data: the bytes of a file that is embedded in `path`. With `start_sec` or `end_sec`, the samples from
    round(start_sec * rate) to round(end_sec * rate): of two adjacent parts each sample is in exactly one. The rest of
    the file is not read into memory. channel: use this one, from 0, instead of the mean of all. Raises Rejected for a
    file that is missing, empty, broken, cut short, without frames, or not finite, and for a part that reaches beyond
    the audio.
    """
    header = probe(path, start_sec, end_sec, data)
    whole = start_sec is None and end_sec is None
    try:
        if header.by_ffmpeg:
            samples, sample_rate_hz = ffmpeg.decode(path)
            declared = (header.duration_sec - _ENCODER_PADDING_SEC) * sample_rate_hz
        elif whole:
            data = path.read_bytes() if data is None else data
            with soundfile.SoundFile(io.BytesIO(data)) as file:
                sample_rate_hz, declared = file.samplerate, _declared_frames(file, data)
                samples = file.read(dtype="float32", always_2d=True)
        else:
            with soundfile.SoundFile(_source(path, data)) as file:
                sample_rate_hz = file.samplerate
                first = round((start_sec or 0.0) * sample_rate_hz)
                last = file.frames if end_sec is None else min(round(end_sec * sample_rate_hz), file.frames)
                declared = last - first
                samples = _read_part(file, first, last)
    except soundfile.LibsndfileError as error:
        raise _not_audio(path, f"audio that breaks off while decoding ({error.error_string})") from error
    if len(samples) == 0:
        raise _not_audio(path, "0 samples")
    if declared - len(samples) > _TOLERANCE_SEC * sample_rate_hz:
        found = f"{len(samples) / sample_rate_hz:.2f} s of audio"
        expected = f"{declared / sample_rate_hz:.2f} s, as its header says"
        action = "The file was cut short: copy or record it again."
        raise Rejected("failed", "truncated", str(path), found, expected, action)
    if not np.isfinite(samples).all():
        found, action = "samples that are NaN or infinite", "Save the file again as 16-bit PCM, or record it again."
        raise Rejected("failed", "not_finite", str(path), found, "finite samples", action)
    sha256 = cached_sha256(path) if data is None else hashlib.sha256(data).hexdigest()  # cached: for parts of a file
    return Audio(_mono(path, samples, channel), sample_rate_hz, sha256, _channel_difference(samples))


def _mono(path: Path, samples: npt.NDArray[np.float32], channel: int | None) -> npt.NDArray[np.float32]:
    """[samples]: the channel, or the mean of all."""
    num_channels = samples.shape[1]
    if channel is not None and channel >= num_channels:
        action = "Correct the row's channel: the first is 0."
        found = f"{num_channels} channels"
        raise Rejected("failed", "no_such_channel", str(path), found, f"channel {channel}", action)
    if channel is not None or num_channels == 1:
        return samples[:, channel or 0]
    return np.mean(samples.T, axis=0)  # as librosa.to_mono


def _channel_difference(samples: npt.NDArray[np.float32]) -> float:
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
        with soundfile.SoundFile(_source(path, data)) as file:
            first, wanted = (round(sec * file.samplerate) for sec in (start_sec or 0.0, longest_sec + 1.0))
            return header.duration_sec if len(_read_part(file, first, first + wanted)) == wanted else None
    except soundfile.LibsndfileError:
        return None


def _read_part(file: soundfile.SoundFile, first: int, last: int) -> npt.NDArray[np.float32]:
    """[last - first, channels]: what the whole file decodes to there; in MP3 the last bit may differ."""
    # An MP3 frame needs bits of earlier frames, and after a seek libsndfile decodes the first ones without them.
    run_up = min(first, _MP3_RUN_UP_FRAMES if file.format == "MP3" else 0)
    file.seek(first - run_up)
    samples: npt.NDArray[np.float32] = file.read(run_up + last - first, dtype="float32", always_2d=True)
    return samples[run_up:]


def _declared_frames(file: soundfile.SoundFile, data: bytes) -> float:
    """Frames by the header, 0 where it has no number: libsndfile's own count is what is left of a WAV cut short."""
    if file.format == "MP3" and not _mp3_has_length(data):
        return 0
    frames: int = file.frames
    sizes = _DATA_SIZES.search(file.extra_info)
    if sizes and int(sizes[1]) < _STREAMED_BYTES and int(sizes[2]) > 0:
        return frames * int(sizes[1]) / int(sizes[2])
    return frames


def _mp3_has_length(data: bytes) -> bool:
    """Whether the first MP3 frame, after any ID3v2 tag, is the one with the number of frames."""
    start = 0
    if data[:3] == b"ID3":
        start = 10 + sum((byte & 0x7F) << shift for byte, shift in zip(data[6:10], (21, 14, 7, 0), strict=True))
    first_frame = data[start : start + 512]
    return b"Xing" in first_frame or b"Info" in first_frame


def _not_audio(path: Path, found: str) -> Rejected:
    expected = "a whole WAV, FLAC, MP3, OGG or other file that libsndfile reads"
    action = "Convert the file (for example `ffmpeg -i FILE FILE.wav`), or copy or record it again."
    return Rejected("failed", "not_audio", str(path), found, expected, action)


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


def num_flac_samples(flac: bytes) -> int:
    """Number of samples of a FLAC file, by its header."""
    return int(soundfile.info(io.BytesIO(flac)).frames)
