"""The LJSpeech dialect: lines of `id|text|normalised text` in metadata.csv, wavs/ID.wav for each; one speaker."""

from collections.abc import Iterator
from pathlib import Path

from preprocess.common.errors import InputError, Rejected
from preprocess.common.json_file import JsonObject
from preprocess.manifest.values import malformed_row

# The third field: numbers and abbreviations written out as they are spoken.
COLUMNS = {"text": "normalized_text"}


def is_ljspeech(path: Path) -> bool:
    """Whether the first line of a .csv has a `|`. Raises InputError if it has and there is no wavs/ beside it."""
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        first = file.readline()
    if "|" not in first:
        return False
    if not (path.parent / "wavs").is_dir():
        raise InputError(
            str(path),
            f"a first line with {first.count('|')} `|` and no folder {path.parent / 'wavs'}",
            "LJSpeech: lines of id|text|normalised text, and the recordings as wavs/ID.wav",
            "Put the recordings there, or write the manifest as CSV with a header (audio,text,speaker).",
        )
    return True


def read_ljspeech(path: Path) -> Iterator[tuple[int, JsonObject | Rejected]]:
    """(line, record or why it has none) per line; the speaker is named after the folder."""
    text = path.read_bytes().decode("utf-8-sig", errors="replace")
    for line, row in enumerate(text.split("\n"), start=1):
        fields = row.rstrip("\r").split("|")
        if not row.strip():
            continue
        if len(fields) not in (2, 3):
            yield line, malformed_row("", f"{len(fields)} fields", "id|text or id|text|normalised text")
            continue
        record = {
            "audio": f"wavs/{fields[0]}.wav",
            "text": fields[1],
            "normalized_text": fields[-1],
            "speaker": path.absolute().parent.name,
            "id": fields[0],
        }
        yield line, record
