"""The Kaldi dialect: a folder with wav.scp, text, perhaps utt2spk, and segments where recordings are long.

A row is a line of `text`. wav.scp names files: a line that ends in `|` is a shell command, and is not run.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from preprocess.common.errors import Rejected
from preprocess.common.json_file import JsonObject
from preprocess.manifest.text_file import read_text
from preprocess.manifest.values import malformed_row

TEXT = "text"
_RECORDINGS = "wav.scp"


class _Line(NamedTuple):
    number: int
    value: str


def is_kaldi(path: Path) -> bool:
    """Whether a file is the `text` of a Kaldi folder."""
    return path.name == TEXT and (path.parent / _RECORDINGS).is_file()


def read_kaldi(folder: Path) -> Iterator[tuple[int, JsonObject | Rejected]]:
    """(line of `text`, record or why it has none) per utterance.

    Utterances of segments, or else of wav.scp, that are not in `text` come last, numbered on from its last line.
    """
    has_segments = (folder / "segments").is_file()
    recordings, segments = _read_map(folder, _RECORDINGS), _read_map(folder, "segments")
    speakers = _read_map(folder, "utt2spk")
    texts, last = set(), 0
    for last, (name, text) in _read_lines(folder, TEXT):
        record: JsonObject | Rejected
        try:
            if name in texts:
                raise malformed_row("", f"the utterance {name} for the second time", "each utterance once")
            texts.add(name)
            record = _locate(name, recordings, segments) if has_segments else _locate_whole(name, name, recordings)
            speaker = speakers.get(name)
            if isinstance(speaker, Rejected):
                raise speaker
            record |= {"text": text, "speaker": speaker.value if speaker else None, "id": name}
        except Rejected as rejected:
            record = rejected
        yield last, record
    source, of_source = ("segments", segments) if has_segments else (_RECORDINGS, recordings)
    silent = [name for name in of_source if name not in texts]
    for number, name in enumerate(silent, start=last + 1):
        found = f"the utterance {name} of {source}, which is not in text"
        action = "Write its transcript into text, or remove it."
        yield number, Rejected("failed", "missing_value", "", found, "a transcript per utterance", action)


def _locate(name: str, recordings: dict[str, _Line | Rejected], segments: dict[str, _Line | Rejected]) -> JsonObject:
    """The audio, start and end of an utterance of a long recording."""
    segment = segments.get(name)
    if segment is None:
        raise malformed_row("", f"the utterance {name}, which is not in segments", "a line of segments per utterance")
    if isinstance(segment, Rejected):
        raise segment
    values = segment.value.split()
    if len(values) not in (3, 4):
        found = f"{segment.value!r:.60} in segments line {segment.number}"
        raise malformed_row("", found, "the recording, its start and its end in seconds")
    recording, start, end, *channel = values
    whole = _locate_whole(name, recording, recordings)
    # Kaldi's -1: to the end of the recording. Sides of a telephone call are A and B.
    channels = {"A": "0", "B": "1"}
    return whole | {
        "start": start,
        "end": None if end.startswith("-1") else end,
        "channel": channels.get(channel[0], channel[0]) if channel else None,
    }


def _locate_whole(name: str, recording: str, recordings: dict[str, _Line | Rejected]) -> JsonObject:
    """The audio of a recording."""
    line = recordings.get(recording)
    if line is None:
        raise malformed_row("", f"the recording {recording} of {name}, which is not in wav.scp", "a line of wav.scp")
    if isinstance(line, Rejected):
        raise line
    path = line.value.strip()
    place = f"wav.scp line {line.number}"
    if path.endswith("|") or path.startswith("|"):
        found, expected = f"a shell command in {place}: {path[:60]}", "the path of an audio file"
        action = "Run the command yourself, and name the file that it writes."
        raise Rejected("failed", "shell_command", "", found, expected, action)
    if path == "-" or path.rpartition(":")[2].isdigit():
        found, expected = f"a place in an archive in {place}: {path[:60]}", "the path of an audio file"
        action = "Write each recording to a file of its own (Kaldi: wav-copy), and name it."
        raise Rejected("failed", "archive", "", found, expected, action)
    return {"audio": path}


def _read_map(folder: Path, name: str) -> dict[str, _Line | Rejected]:
    """{first word: the rest of the line}, {} without the file; a word that is there twice has a Rejected."""
    found: dict[str, _Line | Rejected] = {}
    for number, (key, value) in _read_lines(folder, name) if (folder / name).is_file() else ():
        if key in found:
            found[key] = malformed_row("", f"{key} for the second time in {name} line {number}", "each name once")
        elif not value:
            found[key] = malformed_row("", f"nothing behind {key} in {name} line {number}", "a value per name")
        else:
            found[key] = _Line(number, value)
    return found


def _read_lines(folder: Path, name: str) -> Iterator[tuple[int, tuple[str, str]]]:
    """(number, (first word, the rest)) of the lines that are not blank."""
    for number, line in enumerate(read_text(folder / name).split("\n"), start=1):
        if line.strip():
            first, *rest = line.strip().split(maxsplit=1)
            yield number, (first, rest[0] if rest else "")
