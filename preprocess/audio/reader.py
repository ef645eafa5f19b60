"""The one opener of audio, for files, parts of files and embedded bytes: the first reader that gets all of it.

Readers stop early without an error: libsndfile where a file was cut, at the length that it guesses for an MP3, and at
the first of several joined streams. So what was decoded is compared with what the bytes hold (preprocess.audio.held).
If it is less, ffmpeg decodes the file; if that is less too, the file is rejected.
"""

import contextlib
import functools
import io
import mmap
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import soundfile

from preprocess.audio import ffmpeg
from preprocess.audio.held.stream import Stream, exactly
from preprocess.audio.held.streams import find_streams
from preprocess.common.errors import Rejected

Samples = npt.NDArray[np.float32]  # [samples, channels]
Bounds = tuple[float, float]  # the shortest and the longest that whole audio may be, in seconds
CANT_READ = (soundfile.SoundFileError, ValueError, TypeError)  # what soundfile raises for a file that it can't read
_MOST_CHANNELS, _LOWEST_RATE_HZ, _HIGHEST_RATE_HZ = 64, 2_000, 768_000
_FFMPEG_SLACK_SEC = 0.1  # ffmpeg drops the padding of other encoders than libsndfile does
_BLOCK_SAMPLES, _MP3_RUN_UP_SAMPLES = 1 << 20, 32 * 1152
# Formats of libsndfile in which the bytes are counted. A file of one of them without a stream is no such file.
_COUNTED = {"WAV", "WAVEX", "RF64", "W64", "AIFF", "CAF", "AU", "NIST", "FLAC", "OGG", "MP3"}
_GUESSED = ("MP3",)  # formats whose length libsndfile may guess
_MOST_SAMPLES_PER_BYTE = 4096  # of a plausible header: FLAC of silence reaches some 400


def read_whole(path: Path, data: bytes) -> tuple[Samples, int]:
    """(all samples of a file, its sample rate in Hz). data: its bytes; `path` names it in errors.

    Raises Rejected for a file that no reader can decode, and for one whose bytes show that audio is missing.
    """
    streams = find_streams(data)
    for stream in streams:
        if missing := stream.cut or stream.damage:
            raise truncated(path, *missing)
    if len(streams) > 1:
        return _join(path, [read_whole(path, data[stream.start : stream.stop]) for stream in streams])
    if streams and streams[0].start:  # libsndfile may take what stands before for audio, or find no audio at all
        data = data[streams[0].start : streams[0].stop]
    read = _read_by_libsndfile(data, streams)
    if read is None:
        output = _decode_by_ffmpeg(path, data, streams)
        with soundfile.SoundFile(_name(output)) as file:
            read = _read_blocks(file, file.frames), file.samplerate
        output.close()
    _check_header(path, read[1], read[0].shape[1])
    return read


def _read_by_libsndfile(data: bytes, streams: list[Stream]) -> tuple[Samples, int] | None:
    """As read_whole; None where libsndfile can't read all of it."""
    if streams and streams[0].past_header:
        return None
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            bounds = _sum_bounds(streams)
            if not bounds and (streams or file.format not in _COUNTED):  # only the header can say
                bounds = exactly(file.frames / file.samplerate)
            if not bounds:
                return None
            samples = _read_blocks(file, int((bounds[1] + 1) * file.samplerate))
            return (samples, file.samplerate) if _fits(len(samples) / file.samplerate, bounds) else None
    except CANT_READ:
        return None


def _decode_by_ffmpeg(path: Path, data: bytes | None, streams: list[Stream]) -> IO[bytes]:
    """A WAV file without a name, with all audio of a file of one stream. data: None for that of `path` itself."""
    # What libsndfile can't even open, Boson's librosa gets through ffmpeg, too: as 16-bit samples.
    sample_format = "s16le" if _read_info(path, data) is None else "f32le"
    ignore_length = bool(streams) and streams[0].past_header and streams[0].format == "WAV"
    output, by_packets = ffmpeg.decode(path, data, sample_format, ignore_length)
    with soundfile.SoundFile(_name(output)) as file:
        sec = file.frames / file.samplerate
    if not sec:
        raise not_audio(path, "0 samples")
    held = _sum_bounds(streams)
    shortest, longest = (held[0] - _FFMPEG_SLACK_SEC, held[1] + _FFMPEG_SLACK_SEC) if held else by_packets
    if not shortest <= sec <= longest:
        expected = f"{shortest if sec < shortest else longest:.2f} s, as its bytes say"
        raise truncated(path, f"{sec:.2f} s of audio", expected)
    return output


def _join(path: Path, pieces: list[tuple[Samples, int]]) -> tuple[Samples, int]:
    """The samples of streams that stand one after the other in a file."""
    kinds = {(samples.shape[1], rate_hz) for samples, rate_hz in pieces}
    if len(kinds) > 1:
        found = " and ".join(f"{channels} channels at {rate_hz} Hz" for channels, rate_hz in sorted(kinds))
        action = "Cut the file into its parts."
        raise Rejected("failed", "joined", str(path), f"joined streams of {found}", "one kind of audio", action)
    return np.concatenate([samples for samples, _ in pieces]), pieces[0][1]


def whole_sec(path: Path, data: bytes | None, trust_header: bool) -> tuple[float, bool]:
    """(seconds of audio in a file without decoding it, whether only ffmpeg can read it).

    data: the bytes of a file that is embedded in `path`. By the header; or by a count of the bytes, unless
    `trust_header`, and where the header guesses or is implausible. Raises Rejected for a file without audio.
    """
    info = _read_info(path, data)
    num_bytes = path.stat().st_size if data is None else len(data)
    trust_header &= info is not None and info.format not in _GUESSED
    if info and trust_header and 0 < info.frames <= _MOST_SAMPLES_PER_BYTE * num_bytes:
        _check_header(path, info.samplerate, info.channels)
        return info.frames / info.samplerate, False
    bounds = _sum_bounds(find_streams(data) if data is not None else _survey(path, _version(path)))
    if bounds and info and _fits(info.frames / info.samplerate, bounds):
        return info.frames / info.samplerate, False
    if bounds:
        return sum(bounds) / 2, info is None
    return ffmpeg.read_duration_sec(path, data), True


def _read_info(path: Path, data: bytes | None) -> Any:
    """What soundfile.info says of a file; None where libsndfile can't open it."""
    try:
        return soundfile.info(str(path) if data is None else io.BytesIO(data))
    except CANT_READ:
        return None


@contextlib.contextmanager
def open_for_parts(path: Path, end_sec: float | None) -> Iterator[tuple[soundfile.SoundFile, float]]:
    """A file from whose middle parts up to `end_sec` can be read, and how many seconds of audio it holds.

    What was found out of the last files is kept. Raises Rejected as read_whole does, but of a file that is cut the
    parts before the cut can be read.
    """
    streams = _survey(path, _version(path))
    for stream in streams:
        if stream.damage:
            raise truncated(path, *stream.damage)
    file = _open_directly(path, streams)
    if file is None:
        output = _as_wav(path, _version(path))
        file = soundfile.SoundFile(_name(output))
    with file:
        _check_header(path, file.samplerate, file.channels)
        held_sec, bounds = file.frames / file.samplerate, _sum_bounds(streams)
        if bounds and not _fits(held_sec, bounds):
            held_sec = sum(bounds) / 2
        if streams and streams[-1].cut and (end_sec is None or end_sec > held_sec):
            raise truncated(path, *streams[-1].cut)
        yield file, held_sec


def _version(path: Path) -> tuple[int, int]:
    """What changes when a file does."""
    facts = path.stat()
    return facts.st_size, facts.st_mtime_ns


def _open_directly(path: Path, streams: list[Stream]) -> soundfile.SoundFile | None:
    """The file itself, where libsndfile reaches all of its audio."""
    if len(streams) > 1 or (streams and (streams[0].start or streams[0].past_header)):
        return None
    try:
        file = soundfile.SoundFile(str(path))
    except CANT_READ:
        return None
    bounds = _sum_bounds(streams)
    if (bounds and file.frames / file.samplerate >= bounds[0]) or not (bounds or file.format in _COUNTED):
        return file
    file.close()
    return None


@functools.lru_cache(maxsize=8)
def _survey(path: Path, version: tuple[int, int]) -> list[Stream]:
    """find_streams of a file, without reading all of it into memory where its file system can map it."""
    with open(path, "rb") as file:
        try:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError:
            return find_streams(file.read())
        with data:
            return find_streams(data)


@functools.lru_cache(maxsize=1)
def _as_wav(path: Path, version: tuple[int, int]) -> IO[bytes]:
    """A WAV file without a name, with all audio of a file that libsndfile can't read in the middle."""
    streams = _survey(path, version)
    if len(streams) == 1 and not streams[0].start:
        return _decode_by_ffmpeg(path, None, streams)
    samples, sample_rate_hz = read_whole(path, path.read_bytes())
    output = tempfile.TemporaryFile()  # noqa: SIM115 - it is kept
    soundfile.write(output, samples, sample_rate_hz, format="RF64", subtype="FLOAT")
    output.flush()
    return output


def read_part(file: soundfile.SoundFile, first: int, last: int) -> Samples:
    """[last - first, channels]: what the whole file decodes to there; in MP3 the last bit may differ."""
    # An MP3 frame needs bits of earlier frames, and after a seek libsndfile decodes the first ones without them.
    run_up = min(first, _MP3_RUN_UP_SAMPLES if file.format == "MP3" else 0)
    file.seek(first - run_up)
    return _read_blocks(file, run_up + last - first)[run_up:]


def _read_blocks(file: soundfile.SoundFile, most: int) -> Samples:
    """[samples, channels] up to the end, at most `most`: a header's word is not trusted with memory."""
    blocks, left = [], most
    while True:
        asked = min(_BLOCK_SAMPLES, left)
        blocks.append(file.read(asked, dtype="float32", always_2d=True))
        left -= asked
        if len(blocks[-1]) < asked or not left:
            return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)


def _name(file: IO[bytes]) -> str:
    """A path by which this process opens an open file anew."""
    return f"/proc/self/fd/{file.fileno()}"


def _sum_bounds(streams: list[Stream]) -> Bounds | None:
    """Bounds of all streams together; None where one has none."""
    shortest = [stream.shortest_sec for stream in streams if stream.shortest_sec is not None]
    longest = [stream.longest_sec for stream in streams if stream.longest_sec is not None]
    return (sum(shortest), sum(longest)) if streams and len(shortest) == len(streams) else None


def _fits(sec: float, bounds: Bounds) -> bool:
    return bounds[0] <= sec <= bounds[1]


def _check_header(path: Path, sample_rate_hz: int, num_channels: int) -> None:
    """Raise Rejected for numbers that no recording has."""
    action = "Its header is wrong: write it again as it was recorded."
    if not _LOWEST_RATE_HZ <= sample_rate_hz <= _HIGHEST_RATE_HZ:
        found, expected = f"a sample rate of {sample_rate_hz} Hz", f"{_LOWEST_RATE_HZ} to {_HIGHEST_RATE_HZ} Hz"
        raise Rejected("failed", "sample_rate", str(path), found, expected, action)
    if num_channels > _MOST_CHANNELS:
        found, expected = f"{num_channels} channels", f"at most {_MOST_CHANNELS}"
        raise Rejected("failed", "channels", str(path), found, expected, action)


def truncated(path: Path, found: str, expected: str) -> Rejected:
    """The Rejected for a file in which audio is missing."""
    action = "The file was cut short or damaged: copy or record it again."
    return Rejected("failed", "truncated", str(path), found, expected, action)


def not_audio(path: Path, found: str) -> Rejected:
    """The Rejected for a file without audio that can be read."""
    expected = "a whole WAV, FLAC, MP3, OGG or other file that libsndfile or ffmpeg reads"
    action = "Convert the file (for example `ffmpeg -i FILE FILE.wav`), or copy or record it again."
    return Rejected("failed", "not_audio", str(path), found, expected, action)
