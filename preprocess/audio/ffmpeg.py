"""M4A, MP4, WebM, AAC, WMA and AMR by the programs ffmpeg and ffprobe, which libsndfile can't read.

Boson's librosa reads them through ffmpeg too, as 16-bit samples. Only files that begin as one of these containers
are handed over: a playlist would make ffmpeg open what it names.
"""

import io
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
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


def container(path: Path) -> str | None:
    """What the file's first bytes say, if it is one of ffmpeg's."""
    with open(path, "rb") as file:
        start = file.read(16)
    return next((name for name, (at, magic) in _CONTAINERS.items() if start[at:].startswith(magic)), None)


def duration_sec(path: Path) -> float:
    """Of the first audio stream, by the container's header (0 where it doesn't tell). Raises Rejected as `decode`."""
    about = json.loads(
        _run("ffprobe", path, "-show_entries", "stream=codec_type,duration:format=duration", "-of", "json")
    )
    streams = [stream for stream in about.get("streams", []) if stream.get("codec_type") == "audio"]
    if not streams:
        raise _rejected(path, "no_audio_stream", "no audio stream", "a file with sound", "Record it again.")
    return float(streams[0].get("duration") or about.get("format", {}).get("duration") or 0.0)


def decode(path: Path) -> tuple[np.ndarray, int]:
    """float32 [frames, channels] of the first audio stream, and its rate.

    Raises Rejected if ffmpeg is not installed or finds the file broken.
    """
    wav = _run("ffmpeg", path, "-map", "0:a:0", "-c:a", "pcm_s16le", "-f", "wav", "-")
    return soundfile.read(io.BytesIO(wav), dtype="float32", always_2d=True)


def _run(program: str, path: Path, *arguments: str) -> bytes:
    if shutil.which(program) is None:
        raise _rejected(
            path,
            "needs_ffmpeg",
            f"{container(path)} audio, and no program {program}",
            "ffmpeg and ffprobe on the PATH for such files",
            "Install ffmpeg (`apt install ffmpeg`), or convert the file to FLAC elsewhere.",
        )
    command = [program, *_QUIET, "-i", str(path), *arguments]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    said = done.stderr.decode(errors="replace").strip().splitlines()
    if done.returncode or said:  # ffmpeg goes on where frames are broken, and says so
        found = f"{container(path)} audio that {program} can't read ({said[-1] if said else done.returncode})"
        raise _rejected(path, "not_audio", found, "a whole file", "Copy or record it again.")
    return done.stdout


def _rejected(path: Path, reason: str, found: str, expected: str, action: str) -> Rejected:
    return Rejected("failed", reason, str(path), found, expected, action)
