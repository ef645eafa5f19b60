"""The Kaldi dialect: a folder with wav.scp and text; utt2spk, utt2lang and segments where they are there.

Each line of `text` is a row. Recordings and segments without a line in `text` are refused under their own line.
"""

import math
from collections.abc import Iterator
from pathlib import Path

from preprocess.common.errors import InputError, Rejected
from preprocess.common.json_file import JsonObject
from preprocess.manifest.text_file import read_text_bytes
from preprocess.manifest.values import malformed_row

_AUDIO, _TEXT, _SPEAKERS, _LANGUAGES, _PARTS = "wav.scp", "text", "utt2spk", "utt2lang", "segments"
NAMES = (_AUDIO, _TEXT, _PARTS)


def find_kaldi_files(folder: Path) -> list[Path]:
    """The files whose lines are counted, of a Kaldi folder; [] for a folder that is none.

    Raises InputError for a folder with wav.scp and without text.
    """
    if not (folder / _AUDIO).is_file():
        return []
    if not (folder / _TEXT).is_file():
        found, expected = f"{_AUDIO} without {_TEXT}", f"a Kaldi folder: {_AUDIO}, {_TEXT} and {_SPEAKERS}"
        raise InputError(str(folder), found, expected, f"Add {_TEXT}: lines of an utterance and its words.")
    return [folder / _TEXT, _utterances_file(folder)]


def is_kaldi_file(path: Path) -> bool:
    """Whether a file belongs to a Kaldi folder."""
    return path.name in NAMES and (path.parent / _AUDIO).is_file() and (path.parent / _TEXT).is_file()


def read_kaldi(path: Path) -> Iterator[tuple[int, JsonObject | Rejected]]:
    """(line, record or why it has none) of a line of `text`, or of a line of wav.scp or segments without text."""
    return _read_rows(path.parent) if path.name == _TEXT else _without_text(path)


def _utterances_file(folder: Path) -> Path:
    """The file that lists all utterances: segments, or without it wav.scp."""
    return folder / (_PARTS if (folder / _PARTS).is_file() else _AUDIO)


def _lines(path: Path) -> Iterator[tuple[int, str, str]]:
    """(line, key, what follows it) of each line that is not blank."""
    for number, line in enumerate(read_text_bytes(path).decode(errors="replace").split("\n"), start=1):
        if fields := line.strip().split(maxsplit=1):
            yield number, fields[0], "".join(fields[1:])


def _table(path: Path) -> dict[str, list[str]]:
    """{key: the values of its lines, each once} of a file; {} where there is none."""
    values: dict[str, list[str]] = {}
    for _, key, value in _lines(path) if path.is_file() else ():
        known = values.setdefault(key, [])
        if value not in known:
            known.append(value)
    return values


def _without_text(path: Path) -> Iterator[tuple[int, Rejected]]:
    texts = _table(path.parent / _TEXT)
    for number, key, _ in _lines(path):
        if key not in texts:
            found, expected = f"{key}, which has no line in {_TEXT}", "an utterance with its words"
            yield number, Rejected("failed", "no_transcript", "", found, expected, f"Add {key} to {_TEXT}.")


def _read_rows(folder: Path) -> Iterator[tuple[int, JsonObject | Rejected]]:
    tables = {name: _table(folder / name) for name in (_AUDIO, _PARTS, _SPEAKERS, _LANGUAGES)}
    seen: dict[str, int] = {}
    for number, key, text in _lines(folder / _TEXT):
        first = seen.setdefault(key, number)
        try:
            if first != number:
                raise malformed_row("", f"{key} again, as in line {first}", "each utterance once")
            yield number, _read_row(tables, key, text)
        except Rejected as rejected:
            yield number, rejected


def _read_row(tables: dict[str, dict[str, list[str]]], key: str, text: str) -> JsonObject:
    record: JsonObject = {"id": key, "text": text}
    recording = key
    if tables[_PARTS]:
        recording, record["start"], record["end"] = _read_part(key, _value(tables, _PARTS, key))
    record["audio"] = _read_path(recording, _value(tables, _AUDIO, recording))
    if tables[_SPEAKERS]:
        record["speaker"] = _value(tables, _SPEAKERS, key)
    if tables[_LANGUAGES].get(key):
        record["language"] = _value(tables, _LANGUAGES, key)
    return record


def _value(tables: dict[str, dict[str, list[str]]], name: str, key: str) -> str:
    """What a file says about a key. Raises Rejected where it says nothing, or two things."""
    values = tables[name].get(key, [])
    if len(values) == 1 and values[0]:
        return values[0]
    found = f"{key} with {len(values)} values in {name}" if len(values) > 1 else f"{key}, which is not in {name}"
    action = f"Correct {name}, or remove the utterance."
    raise Rejected("failed", f"not_in_{name.replace('.', '_')}", "", found, f"one line of {key} in {name}", action)


def _read_part(key: str, value: str) -> tuple[str, float, float | None]:
    """(recording, start, end) of a line of segments, in seconds; an end of -1 is the end of the recording."""
    try:
        recording, start, end = value.split()[:3]
        start_sec, end_sec = float(start), float(end)
    except ValueError:
        start_sec = end_sec = math.nan
    if not start_sec >= 0 or not (end_sec == -1 or end_sec > start_sec):
        raise malformed_row("", f"{key} {value} in {_PARTS}", "a recording, its start and end in seconds")
    return recording, start_sec, None if end_sec == -1 else end_sec


def _read_path(recording: str, value: str) -> str:
    if value.endswith("|"):
        found = f"a shell command for {recording} in {_AUDIO}: {value[:80]}"
        action = "Run the commands, and name the files that they write."
        raise Rejected("failed", "shell_command", "", found, "the path of an audio file", action)
    if value.rpartition(":")[0].endswith(".ark"):
        action = "Extract the archive's recordings (Kaldi: wav-copy), and name the files."
        found = f"a part of an archive for {recording} in {_AUDIO}: {value[:80]}"
        raise Rejected("failed", "kaldi_archive", "", found, "the path of an audio file", action)
    return value
