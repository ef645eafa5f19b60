"""Audio that libsndfile can't read, or not all of, through the programs ffmpeg and ffprobe.

Boson's librosa reads M4A, WebM and the like through ffmpeg too, as 16-bit samples. Only demuxers of single audio or
video files are allowed: given a playlist, ffmpeg would open the files and addresses that it names.
"""

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from preprocess.common.errors import Rejected

_DEMUXERS = (
    "aac,ac3,aiff,amr,amrnb,amrwb,ape,asf,au,avi,caf,dsf,dts,eac3,flac,flv,iff,ircam,loas,matroska,mov,mp3,mpc,mpc8,"
    "mpeg,mpegts,nistsphere,nut,ogg,oma,qcp,rm,sox,tak,tta,voc,w64,wav,webm,wv,xwma"
)
_INPUT = ["-protocol_whitelist", "file", "-format_whitelist", _DEMUXERS]
_MAX_TEMPORARY_BYTES = 16 << 30
_LONGEST_SEC = 600.0  # of one call: ffmpeg decodes hours in seconds
# By how much decoded audio may be shorter than its header or its packets say: encoders pad the beginning and the end.
_PADDING_SEC, _PADDING_SAMPLES = 0.1, 4096


class Track(NamedTuple):
    """The first audio track: seconds by the header (None: it does not say), and by its packets."""

    sample_rate_hz: int
    num_channels: int
    header_sec: float | None
    packets_sec: float


def read_duration_sec(path: Path, data: bytes | None = None) -> float:
    """Seconds of the first audio track: by the header, or by all packets where it does not say.

    data: the bytes of a file that is embedded in `path`. Raises Rejected as `decode` does.
    """
    track = _read_track(path, data, with_packets=False)
    if track.header_sec is None:
        track = _read_track(path, data, with_packets=True)
    return track.packets_sec if track.header_sec is None else track.header_sec


def decode(
    path: Path, data: bytes | None, sample_format: str, ignore_length: bool = False
) -> tuple[IO[bytes], tuple[float, float]]:
    """(WAV file with the first audio track, without a name; the shortest and longest whole audio in seconds).

    sample_format: "s16le" or "f32le". ignore_length: read a WAV to its end, whatever its header says. Raises Rejected
    if ffmpeg is not installed, finds the file broken, or would write more than a bounded temporary file.
    """
    track = _read_track(path, data, with_packets=True, ignore_length=ignore_length)
    longest_sec = _bounds(track)[1]
    num_bytes = longest_sec * track.sample_rate_hz * track.num_channels * 4
    if num_bytes > _MAX_TEMPORARY_BYTES:
        found, expected = f"{longest_sec / 3600:.1f} h of compressed audio", "less than 16 GiB when it is decoded"
        raise _rejected(path, "too_large", found, expected, "Convert it first: `ffmpeg -i FILE FILE.flac`.")
    output = tempfile.TemporaryFile()  # noqa: SIM115 - the caller reads it
    target = f"/proc/self/fd/{output.fileno()}"
    length = ["-ignore_length", "1"] if ignore_length else []
    with _input(path, data) as (name, descriptors):
        before = ["-v", "error", "-err_detect", "crccheck", *length, *_INPUT, "-i", name, "-map", "0:a:0"]
        most = ["-t", f"{longest_sec + 1:.3f}"]
        arguments = [*before, *most, "-c:a", f"pcm_{sample_format}", "-f", "wav", "-rf64", "auto", "-y", target]
        _run("ffmpeg", path, arguments, [*descriptors, output.fileno()])
    return output, _bounds(track._replace(header_sec=None) if ignore_length else track)


def _bounds(track: Track) -> tuple[float, float]:
    """The shortest and the longest that the decoded track may be, in seconds."""
    padding_sec = max(_PADDING_SEC, _PADDING_SAMPLES / track.sample_rate_hz)
    header_sec = track.packets_sec if track.header_sec is None else track.header_sec
    sec = max(header_sec, track.packets_sec)
    return sec - padding_sec, sec + padding_sec


@contextlib.contextmanager
def _input(path: Path, data: bytes | None) -> Iterator[tuple[str, list[int]]]:
    """(name by which a child process opens the file, file descriptors that it needs); embedded bytes in memory."""
    if data is None:
        yield f"file:{path}", []
        return
    descriptor = os.memfd_create("audio")  # ffmpeg must seek in it
    try:
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(data)
        yield f"/proc/self/fd/{descriptor}", [descriptor]
    finally:
        os.close(descriptor)


def _read_track(path: Path, data: bytes | None, with_packets: bool, ignore_length: bool = False) -> Track:
    entries = "stream=codec_type,sample_rate,channels,duration:format=duration"
    if with_packets:
        entries += ":packet=duration_time"
    with _input(path, data) as (name, descriptors):
        # At this level ffprobe says whether it estimates the length.
        before = ["-v", "warning", *(["-ignore_length", "1"] if ignore_length else [])]
        arguments = [*before, *_INPUT, "-select_streams", "a:0", "-show_entries", entries, "-of", "json", name]
        output, messages = _run("ffprobe", path, arguments, descriptors, warnings=True)
    facts = json.loads(output or b"{}")
    streams = [stream for stream in facts.get("streams", []) if stream.get("codec_type") == "audio"]
    if not streams or not int(streams[0].get("sample_rate", 0)):
        raise _rejected(path, "no_audio_stream", "no audio stream", "a file with audio", "Record it again.")
    header = streams[0].get("duration") or facts.get("format", {}).get("duration")
    is_estimate = header is None or "Estimating duration" in messages
    packets_sec = sum(float(packet.get("duration_time", 0)) for packet in facts.get("packets", []))
    rate_hz, channels = int(streams[0]["sample_rate"]), int(streams[0].get("channels", 1))
    return Track(rate_hz, channels, None if is_estimate else float(header), packets_sec)


def _run(
    program: str, path: Path, arguments: list[str], descriptors: list[int], warnings: bool = False
) -> tuple[bytes, str]:
    """(output, messages) of a program. Raises Rejected where it fails, or has messages (not with `warnings`)."""
    if shutil.which(program) is None:
        raise _rejected(
            path,
            "needs_ffmpeg",
            f"audio that libsndfile can't read, or not all of, and no program {program}",
            "ffmpeg and ffprobe on the PATH for such files",
            "Install ffmpeg (`apt install ffmpeg`), or convert the file to FLAC elsewhere.",
        )
    try:
        done = subprocess.run(
            [program, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            pass_fds=descriptors,
            timeout=_LONGEST_SEC,
        )
    except subprocess.TimeoutExpired as error:
        found = f"audio over which {program} was still at work after {_LONGEST_SEC:g} s"
        action = "Convert the file to FLAC elsewhere, or leave it out."
        raise _rejected(path, "not_audio", found, "a file that can be read", action) from error
    messages = done.stderr.decode(errors="replace").strip()
    if done.returncode or (messages and not warnings):  # ffmpeg reports broken frames and goes on
        why = messages.splitlines()[-1].split(": ")[-1] if messages else f"exit code {done.returncode}"
        found = f"no audio that libsndfile or {program} can read to its end ({why})"
        raise _rejected(path, "not_audio", found, "a whole audio file", "Copy or record it again.")
    return done.stdout, messages


def _rejected(path: Path, reason: str, found: str, expected: str, action: str) -> Rejected:
    return Rejected("failed", reason, str(path), found, expected, action)
