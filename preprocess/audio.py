"""Audio files in, exactly the samples Boson's codec would decode; 16 kHz FLAC out.

libsndfile decodes a file that was cut in half without a word, so each file's declared length is compared with
what decodes. A file's extension is never trusted: libsndfile reads the header.
"""

import hashlib
import io
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

from preprocess.errors import Rejected

WAVEFORM_SAMPLE_RATE_HZ = 16000
# A file may lack this much of what its header promises: encoders pad, and headers round.
_TOLERANCE_SEC = 0.01
# What a program writes as data size when it streams and can't know the size.
_STREAMED_BYTES = 0x7FFF0000
# libsndfile's own log, for WAV, AIFF and AU: "data : 121162 (should be 60559)"
_DATA_SIZES = re.compile(r"^\s*(?:data|SSND|Data Size)\s*:\s*(\d+) \(should be (\d+)\)", re.MULTILINE)


@dataclass(frozen=True)
class Header:
    """What a file says of itself. For MP3 without a length tag `duration_sec` is libsndfile's guess."""

    num_bytes: int
    duration_sec: float


@dataclass(frozen=True)
class Audio:
    """A decoded file: float32 [samples], mono, at the file's own rate; and the sha256 of the file."""

    waveform: np.ndarray
    sample_rate_hz: int
    sha256: str

    @property
    def duration_sec(self) -> float:
        return round(len(self.waveform) / self.sample_rate_hz, 6)


def probe(path: Path) -> Header:
    """Read a file's header. Raises Rejected if there is no file, nothing in it, or no audio header."""
    if not path.is_file():
        raise Rejected(
            "failed",
            "missing_file",
            str(path),
            "no such file",
            "an audio file",
            "Correct the path, or name the folder that audio paths are relative to with --audio-root.",
        )
    num_bytes = path.stat().st_size
    if num_bytes == 0:
        raise Rejected(
            "failed", "empty_file", str(path), "0 bytes", "an audio file", "Copy or record the file again."
        )
    try:
        info = soundfile.info(str(path))
    except soundfile.LibsndfileError as error:
        raise _not_audio(path, f"no audio that libsndfile can open ({error.error_string})") from error
    return Header(num_bytes, info.frames / info.samplerate)


def decode(path: Path) -> Audio:
    """Decode a file to what `librosa.load(path, sr=None, mono=True)` gives, which is what Boson encodes.

    Raises Rejected for a file that is missing, empty, broken, cut short, without frames, or not finite.
    """
    probe(path)
    data = path.read_bytes()
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            sample_rate_hz, declared = file.samplerate, _declared_frames(file, data)
            samples = file.read(dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise _not_audio(path, f"audio that breaks off while decoding ({error.error_string})") from error
    if len(samples) == 0:
        raise _not_audio(path, "0 samples")
    if declared - len(samples) > _TOLERANCE_SEC * sample_rate_hz:
        raise Rejected(
            "failed",
            "truncated",
            str(path),
            f"{len(samples) / sample_rate_hz:.2f} s of audio",
            f"{declared / sample_rate_hz:.2f} s, as its header says",
            "The file was cut short: copy or record it again.",
        )
    if not np.isfinite(samples).all():
        raise Rejected(
            "failed",
            "not_finite",
            str(path),
            "samples that are NaN or infinite",
            "finite samples",
            "Save the file again as 16-bit PCM, or record it again.",
        )
    mono = samples[:, 0] if samples.shape[1] == 1 else np.mean(samples.T, axis=0)  # as librosa.to_mono
    return Audio(mono, sample_rate_hz, hashlib.sha256(data).hexdigest())


def _declared_frames(file: soundfile.SoundFile, data: bytes) -> float:
    """Frames the header promises: libsndfile's own count lowers itself to what a cut WAV still holds."""
    if file.format == "MP3" and not _mp3_tells_length(data):
        return 0
    sizes = _DATA_SIZES.search(file.extra_info)
    if sizes and int(sizes[1]) < _STREAMED_BYTES and int(sizes[2]) > 0:
        return file.frames * int(sizes[1]) / int(sizes[2])
    return file.frames


def _mp3_tells_length(data: bytes) -> bool:
    """Whether the first MP3 frame, after any ID3v2 tag, is the one that holds the number of frames."""
    start = 0
    if data[:3] == b"ID3":
        start = 10 + sum((byte & 0x7F) << shift for byte, shift in zip(data[6:10], (21, 14, 7, 0), strict=True))
    first_frame = data[start : start + 512]
    return b"Xing" in first_frame or b"Info" in first_frame


def _not_audio(path: Path, found: str) -> Rejected:
    return Rejected(
        "failed",
        "not_audio",
        str(path),
        found,
        "a whole WAV, FLAC, MP3, OGG or other file of libsndfile's formats",
        "Convert the file (for example `ffmpeg -i FILE FILE.wav`), or copy or record it again.",
    )


def flac_16khz(audio: Audio) -> bytes:
    """A FLAC file: 16 kHz, mono, 16 bits. The same samples give the same bytes."""
    waveform = soxr.resample(audio.waveform, audio.sample_rate_hz, WAVEFORM_SAMPLE_RATE_HZ)
    pcm = np.clip(np.round(waveform * 32768.0), -32768, 32767).astype(np.int16)
    buffer = io.BytesIO()
    soundfile.write(buffer, pcm, WAVEFORM_SAMPLE_RATE_HZ, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()
