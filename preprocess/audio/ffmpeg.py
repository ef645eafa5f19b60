"""M4A, MP4, WebM, AAC, WMA and AMR, which libsndfile can't read, through the programs ffmpeg and ffprobe.

Boson's librosa reads them through ffmpeg too, as 16-bit samples. Only files that begin as one of these containers
are passed on: given a playlist, ffmpeg would open the files and addresses that it names.
"""

import io
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

from preprocess.common.errors import Rejected

_CONTAINERS = {
    "MP4 or M4A": (4, b"ftyp"),
    "WebM or Matroska": (0, b"\x1aE\xdf\xa3"),
    "WMA": (0, b"\x30\x26\xb2\x75"),
    "AMR": (0, b"#!AMR"),
    "AAC": (0, b"\xff\xf1"),
    "MPEG-2 AAC": (0, b"\xff\xf9"),
}
_QUIET = ["-v", "error", "-protocol_whitelist", "file"]


def find_container(path: Path) -> str | None:
    """The file's container by its first bytes ("MP4 or M4A"); None if it is none of those above."""
    with open(path, "rb") as file:
        start = file.read(16)
    return next((name for name, (at, magic) in _CONTAINERS.items() if start[at:].startswith(magic)), None)


def read_duration_sec(path: Path) -> float:
    """Seconds of the first audio stream by the header, 0 where it has none. Raises Rejected as `decode` does."""
    header = json.loads(
        _run("ffprobe", path, "-show_entries", "stream=codec_type,duration:format=duration", "-of", "json")
    )
    streams = [stream for stream in header.get("streams", []) if stream.get("codec_type") == "audio"]
    if not streams:
        raise _rejected(path, "no_audio_stream", "no audio stream", "a file with audio", "Record it again.")
    return float(streams[0].get("duration") or header.get("format", {}).get("duration") or 0.0)


def decode(path: Path) -> tuple[npt.NDArray[np.float32], int]:
    """float32 [frames, channels] of the first audio stream, and its sample rate in Hz.

    Raises Rejected if ffmpeg is not installed or finds the file broken.
    """
    wav = _run("ffmpeg", path, "-map", "0:a:0", "-c:a", "pcm_s16le", "-f", "wav", "-")
    samples, sample_rate_hz = soundfile.read(io.BytesIO(wav), dtype="float32", always_2d=True)
    return samples, sample_rate_hz


def _run(program: str, path: Path, *arguments: str) -> bytes:
    if shutil.which(program) is None:
        raise _rejected(
            path,
            "needs_ffmpeg",
            f"{find_container(path)} audio, and no program {program}",
            "ffmpeg and ffprobe on the PATH for such files",
            "Install ffmpeg (`apt install ffmpeg`), or convert the file to FLAC elsewhere.",
        )
    command = [program, *_QUIET, "-i", str(path), *arguments]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    errors = done.stderr.decode(errors="replace").strip().splitlines()
    if done.returncode or errors:  # ffmpeg reports broken frames and goes on
        why = errors[-1] if errors else done.returncode
        found = f"{find_container(path)} audio that {program} can't read ({why})"
        raise _rejected(path, "not_audio", found, "a whole file", "Copy or record it again.")
    return done.stdout


def _rejected(path: Path, reason: str, found: str, expected: str, action: str) -> Rejected:
    return Rejected("failed", reason, str(path), found, expected, action)
