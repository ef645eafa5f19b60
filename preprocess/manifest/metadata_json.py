"""The metadata.json dialect: `samples` with audio_file, transcript_file or transcript, and speaker_id each."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from preprocess.common.errors import InputError, Rejected
from preprocess.manifest.text_file import read_text_bytes
from preprocess.manifest.values import malformed_row

COLUMNS = {
    "audio": "audio_file",
    "text": "transcript",
    "speaker": "speaker_id",
    "reference_audio": "ref_audio_file",
    "reference_text": "ref_transcript",
}


def read_samples(path: Path) -> list[Any] | None:
    """The list `samples` of a .json file; None for a file without one."""
    data = read_text_bytes(path)
    if data.lstrip()[:1] != b"{":
        return None
    try:
        samples = json.loads(data).get("samples")
    except (ValueError, RecursionError):  # JSON lines, or broken: read_records reports where
        return None
    return samples if isinstance(samples, list) else None


def _beside(path: Path, name: str) -> Path:
    """The file `name` in the folder of the manifest `path` or below it. Raises InputError for any other."""
    folder = os.path.realpath(path.parent)
    found = os.path.realpath(path.parent / name.replace("\0", "?"))
    if not found.startswith(os.path.join(folder, "")) or not os.path.isfile(found):
        raise InputError(name, "no file under the manifest's folder", "a transcript there", "Move it there.")
    return Path(found)


def read_sample_records(path: Path) -> Iterator[tuple[int, object]]:
    """(number, record) per sample; the text in its transcript_file becomes `transcript`."""
    for number, sample in enumerate(read_samples(path) or [], start=1):
        name = sample.pop("transcript_file", None) if isinstance(sample, dict) else None
        if name is None:
            yield number, sample
        elif not isinstance(name, str):
            yield number, malformed_row("", f"transcript_file = {json.dumps(name)[:60]}", "the name of a file")
        else:
            try:
                text = read_text_bytes(_beside(path, name)).decode()
                yield number, {**sample, "transcript": text}
            except (InputError, UnicodeDecodeError) as error:
                why = error.found if isinstance(error, InputError) else "not UTF-8"
                found = f"{path.parent / name}, which can't be read ({why})"
                expected = "a text file in UTF-8 beside metadata.json"
                action = "Correct transcript_file, or write the text itself as transcript."
                yield number, Rejected("failed", "no_transcript_file", "", found, expected, action)
