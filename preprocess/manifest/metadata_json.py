"""A folder with metadata.json: `samples[]` of audio_file, transcript_file or transcript, speaker_id."""

import json
from collections.abc import Iterator
from pathlib import Path

from preprocess.common.errors import Rejected
from preprocess.manifest.columns import malformed

COLUMNS = {
    "audio": "audio_file",
    "text": "transcript",
    "speaker": "speaker_id",
    "reference_audio": "ref_audio_file",
    "reference_text": "ref_transcript",
}


def read_samples(path: Path) -> list | None:
    """`samples` of a .json file that has them, else None."""
    data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    if data.lstrip()[:1] != b"{":
        return None
    try:
        samples = json.loads(data).get("samples")
    except (ValueError, RecursionError):  # JSON lines, or broken: read_records says where
        return None
    return samples if isinstance(samples, list) else None


def read_folder(path: Path) -> Iterator[tuple[int, object]]:
    """(number, record) of each sample; the words of its transcript_file become `transcript`."""
    for number, sample in enumerate(read_samples(path) or [], start=1):
        name = sample.pop("transcript_file", None) if isinstance(sample, dict) else None
        if name is None:
            yield number, sample
        elif not isinstance(name, str):
            yield number, malformed("", f"transcript_file = {json.dumps(name)[:60]}", "a file's name")
        else:
            try:
                words = (path.parent / name).read_bytes().decode("utf-8-sig")
                yield number, {**sample, "transcript": words}
            except (OSError, UnicodeDecodeError) as error:
                yield number, _unreadable(path.parent / name, error)


def _unreadable(path: Path, error: Exception) -> Rejected:
    return Rejected(
        "failed",
        "no_transcript_file",
        "",
        f"{path}, which can't be read ({error.strerror if isinstance(error, OSError) else 'not UTF-8'})",
        "a text file in UTF-8 beside metadata.json",
        "Correct transcript_file, or give the words as transcript.",
    )
